"""Laws of trials: what is said of several starts, against figures of the library, and what each is trained from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lenslib.errors import InputError
from lenslib.metrics import classification_metrics
from lenslib.models import create_model
from lenslib.models.heads import head_names
from lenslib.records import Records
from lenslib.settings import Settings
from lenslib.trials import as_photographs, by_trial, fit, judge, probabilities, record, slug


def answers(labels, skill, seed):
    """Probabilities of three classes, the better the more skill."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += skill
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


LABELS = np.arange(150) % 3


def test_one_start_is_judged_as_any_run():
    scores = answers(LABELS, 1.0, 0)
    found, run = judge(LABELS, {"a": [scores]}), classification_metrics(LABELS, scores, ["a", "b", "c"])
    assert found["a"] == pytest.approx(run["macro_auc"])
    assert found["a_accuracy"] == pytest.approx(run["accuracy"])


def test_several_starts_give_their_mean():
    several = [answers(LABELS, 1.0, seed) for seed in range(3)]
    found = judge(LABELS, {"a b": several})
    aucs = [roc_auc_score(LABELS, one, multi_class="ovr") for one in several]
    assert [found[f"a_b_seed{k}"] for k in range(3)] == pytest.approx(aucs)
    assert found["a_b"]["value"] == pytest.approx(np.mean(aucs))
    assert found["a_b_accuracy"]["value"] == pytest.approx(np.mean([one.argmax(1) == LABELS for one in several]))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), skill=st.floats(0.2, 2))
def test_changes_are_differences_and_turn_with_their_arguments(seed, skill):
    scores = {"a": [answers(LABELS, skill, seed)], "b": [answers(LABELS, 1.0, seed + 1)]}
    there = judge(LABELS, scores, {"a": "b"})["a_change"]
    back = judge(LABELS, scores, {"b": "a"})["b_change"]
    found = judge(LABELS, scores)
    assert there["value"] == pytest.approx(found["a"]["value"] - found["b"]["value"])
    assert (there["value"], there["low"], there["high"]) == pytest.approx((-back["value"], -back["high"], -back["low"]))


def test_what_does_not_change_the_order_changes_nothing():
    scores = answers(LABELS, 1.0, 0)
    change = judge(LABELS, {"a": [scores], "b": [scores]}, {"b": "a"})["b_change"]
    assert change == {"value": 0, "low": 0, "high": 0}


def test_a_paired_interval_is_narrower_than_that_of_strangers():
    """The same lenses are hard for both: what they share does not blur the difference."""
    scores = answers(LABELS, 1.0, 0)
    blurred = 0.9 * scores + 0.1 * answers(LABELS, 1.0, 1)
    found = judge(LABELS, {"a": [scores], "b": [blurred]}, {"b": "a"})
    width = found["b_change"]["high"] - found["b_change"]["low"]
    assert 0 < width < 0.7 * np.hypot(*(found[name]["high"] - found[name]["low"] for name in "ab"))


def test_unfit_trials_are_refused():
    scores = answers(LABELS, 1.0, 0)
    with pytest.raises(InputError, match="unknown trial 'c'"):
        judge(LABELS, {"a": [scores]}, {"a": "c"})
    with pytest.raises(InputError, match="'a' has no scores"):
        judge(LABELS, {"a": []})
    with pytest.raises(InputError, match="one class alone"):
        judge(np.zeros(150, int), {"a": [scores]})
    with pytest.raises(InputError, match="sum to one"):
        judge(LABELS, {"a": [2 * scores]})


def test_a_name_is_a_field_of_a_record():
    assert slug("ResNet-18, as in 2023") == "ResNet_18_as_in_2023"


def test_photographs_run_from_zero_to_one_in_equal_channels_whatever_the_units():
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    shown = as_photographs(images, 12, channels=3)
    assert shown.shape == (4, 3, 12, 12)
    assert torch.equal(shown[:, 0], shown[:, 2])
    assert torch.equal(shown.amin((1, 2, 3)), torch.zeros(4))
    assert torch.equal(shown.amax((1, 2, 3)), torch.ones(4))
    torch.testing.assert_close(as_photographs(7 * images - 3, 12, channels=3), shown)
    assert as_photographs(images, 18).shape == (4, 1, 18, 18)
    assert torch.equal(as_photographs(torch.ones(1, 1, 4, 4), 4), torch.zeros(1, 1, 4, 4))


@pytest.fixture(scope="module")
def lenses():
    """Thirty images in which the class is where the light is."""
    labels = torch.arange(30) % 3
    images = 0.1 * torch.randn(30, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for k in range(3):
        images[labels == k, :, 4 * k : 4 * k + 4] += 1
    return images, labels


BRIEF = Settings(epochs=2, batch_size=9, learning_rate=4e-3, augment="none")


def test_of_several_rates_the_held_out_images_choose(lenses):
    images, labels = (part.repeat(7, *[1] * (part.ndim - 1)) for part in lenses)
    # of wrong labels nothing can be learned but by heart, so that the held-out scores of the rates differ
    labels = labels[torch.randperm(210, generator=torch.Generator().manual_seed(1))]
    rates = (1e-12, 4e-3)  # at a rate of nothing a network stays what it was
    alone = [fit("small_cnn", images, labels, BRIEF, rates=(rate,)).best["val_score"] for rate in rates]
    assert alone[0] != alone[1]
    for order in (rates, rates[::-1]):
        tried = fit("small_cnn", images, labels, BRIEF, rates=order)
        assert tried.best["val_score"] == max(alone)
    assert probabilities(tried.model, images).shape == (210, 3)


def test_the_last_tenth_is_never_trained_on(lenses):
    images, labels = lenses
    other = images.clone()
    other[27:] = images[:3]
    one, two = (fit("small_cnn", shown, labels, BRIEF) for shown in (images, other))
    assert [row["train_loss"] for row in one.history] == [row["train_loss"] for row in two.history]
    assert [row["val_loss"] for row in one.history] != [row["val_loss"] for row in two.history]


def test_of_a_frozen_network_the_last_layer_alone_moves(lenses, tmp_path):
    from safetensors.torch import save_file

    first = create_model("small_cnn", 3, 16)
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    frozen = Settings(
        epochs=1, batch_size=9, augment="none", weights=str(tmp_path / "weights.safetensors"), frozen=True
    )
    found, last = fit("small_cnn", *lenses, frozen).model.state_dict(), head_names(first)
    moved = {name for name, value in first.state_dict().items() if not torch.equal(value, found[name])}
    assert moved
    assert moved <= set(last)


def test_what_cannot_be_trained_is_refused(lenses):
    images, labels = lenses
    with pytest.raises(InputError, match="give two images or more"):
        fit("small_cnn", images[:1], labels[:1], BRIEF)
    with pytest.raises(InputError, match="30 images and 29 labels"):
        fit("small_cnn", images, labels[:29], BRIEF)
    # a class left out, one below 0, one that the held-out images alone have, one class alone
    late = torch.where(torch.arange(30) < 27, labels % 2, 2)
    for wrong in (labels * 2, labels - 1, late, labels * 0):
        with pytest.raises(InputError, match="each among the images that are trained on"):
            fit("small_cnn", images, wrong, BRIEF)
    with pytest.raises(InputError, match="cannot begin with weights"):
        fit("resnet18", images, labels, replace(BRIEF, weights="imagenet"), share=0.25)


def test_a_record_has_each_trial_as_it_was_judged_and_trained(lenses, tmp_path):
    images, labels = lenses
    trained = {"one, brief": [fit("small_cnn", images, labels, replace(BRIEF, seed=seed)) for seed in (0, 1)]}
    scores = {name: [probabilities(one.model, images) for one in networks] for name, networks in trained.items()}
    place = {"profile": "test", "task": "trial", "recipe": "none", "model": "small_cnn", "seed": 3}
    record(tmp_path, place, labels.numpy(), scores, trained, metrics={"remark": "kept"}, parameters={"epochs": 2})
    run = Records(tmp_path).select("trial", "none", "small_cnn")[0]
    assert run.parameters == {"epochs": 2, "test_count": 30}
    assert run.metrics["one_brief"] == judge(labels.numpy(), scores, seed=3)["one_brief"]
    assert run.metrics["one_brief_weights"] == sum(p.numel() for p in create_model("small_cnn", 3, 16).parameters())
    assert run.metrics["remark"] == "kept"
    assert run.seconds["one_brief"] == pytest.approx(sum(one.seconds for one in trained["one, brief"]))
    epochs, answers = by_trial(run)
    assert list(epochs["one, brief"].val_score) == [row["val_score"] for row in trained["one, brief"][0].history]
    assert np.array_equal(answers["one, brief"][0], labels)
    assert np.array_equal(answers["one, brief"][1], scores["one, brief"][0].astype(np.float32))
