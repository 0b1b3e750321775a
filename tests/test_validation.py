"""Trained weights by name, their cards, and what fresh images say of them."""

import numpy as np
import pytest
import torch

from lenslib import weights
from lenslib.classification import train_classifier
from lenslib.dataset import write_dataset
from lenslib.errors import InputError
from lenslib.inference import classifier_metadata, load_classifier
from lenslib.recipe import load_recipe
from lenslib.records import load_run, run_folder, write_run
from lenslib.settings import Settings
from lenslib.validation import load_validation, record_validation

NAME = "classification/deeplense_1/small_cnn"
PLACE = {"profile": "desk", "task": "classification", "recipe": "deeplense_1", "model": "small_cnn", "seed": 0}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    recipe = load_recipe("deeplense_1", {"instrument.pixels": 32, "instrument.pixel_scale": 0.15})
    folder = tmp_path_factory.mktemp("data")
    return recipe, [write_dataset(recipe, 240, seed, folder / str(seed), progress=False) for seed in (1, 2)]


@pytest.fixture(scope="module")
def network(drawn):
    """Trained a little, and far too sure."""
    trained = train_classifier(drawn[1][0], "small_cnn", 24, Settings(epochs=4, batch_size=16, patience=0), "cpu")
    with torch.no_grad():
        trained.model.head.weight.mul_(20)
    return trained.model


@pytest.fixture
def named(drawn, network, tmp_path, monkeypatch):
    """The weights of a network in a record whose test scores are its own."""
    recipe, (test, _) = drawn
    monkeypatch.setattr(weights, "RESULTS", tmp_path / "results")
    folder = run_folder(tmp_path / "results", **PLACE)
    facts = {"metrics": {"macro_auc": {"value": 0.5, "low": 0.4, "high": 0.6}, "weight_count": 3}}
    facts |= {"weights": network.state_dict(), "weights_metadata": classifier_metadata("small_cnn", recipe, 24)}
    facts |= {"parameters": {"train_count": 60, "test_count": 240}, "datasets": {"test": test.digest}}
    write_run(folder, **PLACE, **facts, predictions={"labels": test.labels, "scores": np.full((240, 3), 1 / 3)})
    scores = load_classifier(folder / weights.WEIGHTS).probabilities(test.images[:])
    write_run(folder, **PLACE, **facts, predictions={"labels": test.labels, "scores": scores})
    return folder / weights.WEIGHTS


def test_weights_have_names_and_paths(named, tmp_path):
    assert list(weights.list_weights()) == [NAME]
    assert weights.find_weights(NAME) == named
    assert weights.find_weights(tmp_path / "own.safetensors") == tmp_path / "own.safetensors"
    with pytest.raises(InputError, match=f"did you mean {NAME}"):
        weights.find_weights("classification/deeplense_1/small_cn")
    with pytest.raises(InputError, match="no weights"):
        weights.check_named(tmp_path / "own.safetensors")


def test_full_size_is_preferred(named, tmp_path):
    better = run_folder(tmp_path / "results", **PLACE | {"profile": "full"})
    run = load_run(named.parent)
    write_run(better, **PLACE | {"profile": "full"}, parameters={}, metrics=run.metrics, weights={"a": torch.ones(1)})
    assert weights.find_weights(NAME).parent == better


def test_sureness_is_mended_and_strange_images_are_known(named, drawn):
    recipe, (_, fresh) = drawn
    classifier = load_classifier(named)
    run = record_validation(classifier, named, fresh)
    assert run.task == "classification_validation"
    assert run.metrics["brier_after"] < run.metrics["brier_before"]
    assert run.metrics["ece_after"] < run.metrics["ece_before"]
    assert run.metrics["unlike"] < 0.1
    found = load_validation(named)
    assert found.temperature == run.metrics["temperature"]
    images = recipe.sample(60, seed=5).images
    usual = found.strange(classifier.prepare(images).numpy())
    assert sum(map(bool, usual)) < 6
    noise = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for other in (noise, -images[:8], images[:8].roll(12, dims=-1)):
        assert all(found.strange(classifier.prepare(other).numpy()))
    assert f"{found.temperature:.3f}" in weights.model_card(NAME)


def test_a_card_has_figures_with_intervals_and_limits(named):
    card = weights.model_card(NAME)
    assert load_validation(named) is None
    for words in ("| macro auc | 0.5 | 0.4 to 0.6 |", "60 and 240 images", "## Limits", "MIT"):
        assert words in card


def test_images_it_knows_validate_nothing(named, drawn):
    recipe, (test, fresh) = drawn
    classifier = load_classifier(named)
    with pytest.raises(InputError, match="trained or judged on these images"):
        record_validation(classifier, named, test)
    with pytest.raises(InputError, match="too few"):
        record_validation(classifier, named, recipe_set(recipe, named.parent / "few", 20))


def recipe_set(recipe, folder, count):
    return write_dataset(recipe, count, 9, folder, progress=False)


def test_the_command_line(named, drawn, run):
    code, out, _ = run("weights")
    assert code == 0
    assert NAME in out
    code, out, _ = run("weights", NAME)
    assert out.startswith(f"# {NAME}")
    code, out, _ = run("validate", NAME, drawn[1][1].folder)
    assert code == 0
    assert "temperature" in out
    code, _, errors = run("validate", "nobody/knows/this", drawn[1][1].folder)
    assert code == 2
    assert len(errors) == 1
