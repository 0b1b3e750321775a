"""From images to probabilities: recipes and frames by one code, and what cannot be judged is withheld."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lenslib.classification import classify, record_run, train_classifier
from lenslib.dataset import open_dataset, write_dataset
from lenslib.errors import InputError
from lenslib.fit_classify import load_fit_classifier, with_psf
from lenslib.refine import noise_map
from lenslib.residuals import write_residuals
from lenslib.settings import Settings
from lenslib.simulate import render


@pytest.fixture(scope="module")
def run(small_matched, tmp_path_factory):
    """A record of weights trained, hardly, on residuals of fits that began with the truth, and the sets."""
    root, recipe = tmp_path_factory.mktemp("fits"), small_matched({"substructure.mass_fraction": 0.01})
    sets = []
    for name, seed, count in (("train", 5, 36), ("test", 6, 24)):
        write_dataset(recipe, count, seed, root / name, progress=False)
        data = open_dataset(root / name)
        sets.append(write_residuals(data, root / f"{name}_residual", progress=False, start="truth"))
    settings = Settings(epochs=1, batch_size=16)
    trained = train_classifier(sets[0], "small_cnn", 40, settings)
    scores, rate = classify(trained, sets[1], "small_cnn", 40)
    return record_run(root / "results", "mine", "small_cnn", 40, settings, trained, *sets, scores, rate), recipe, root


@pytest.fixture(scope="module")
def classifier(run):
    found = load_fit_classifier(run[0].folder / "weights.safetensors")
    found.templates = 2048
    return found


@pytest.fixture(scope="module")
def lenses(run):
    _, recipe, _ = run
    batch = recipe.sample(10, seed=9)
    return batch.images, {name: batch.params[name] for name in ("background_rms", "exposure_time")}, batch.params


def test_answers_are_those_of_the_set_that_the_command_writes(run, classifier):
    record, _, root = run
    data = open_dataset(root / "test")
    params = {name: torch.from_numpy(data.params[name].to_numpy(copy=True)) for name in data.params}
    answers = classifier.answers(data.images, params, starts=params)
    given = ~answers.withheld
    assert given.mean() > 0.8
    np.testing.assert_allclose(answers.probabilities[given], record.predictions()["scores"][given], atol=1e-4)
    assert np.isnan(answers.probabilities[~given]).all()
    assert all(answers.reasons[k] for k in np.flatnonzero(~given))


def test_a_frame_with_noise_map_and_kernel_is_judged_as_a_recipe_is(run, classifier, lenses):
    images, facts, truth = lenses
    recipe = run[1]
    own = classifier.answers(images, facts, starts=truth)
    noise = noise_map(recipe, facts, own.fit.model)
    kernel = recipe.instrument.psf.kernel(recipe.instrument.pixel_scale)
    frame = classifier.answers(images, noise, psf=kernel, starts=truth)
    both = ~own.withheld & ~frame.withheld
    assert both.mean() > 0.8
    np.testing.assert_allclose(frame.probabilities[both], own.probabilities[both], atol=0.02)
    # in any unit
    dimmed = classifier.answers(0.5 * images, 0.5 * noise, psf=kernel, starts=truth)
    np.testing.assert_allclose(dimmed.probabilities[both], frame.probabilities[both], atol=0.02)


def test_what_stands_out_beyond_all_that_was_trained_on_is_withheld(run, classifier, lenses):
    images, facts, truth = lenses
    images, facts, truth = images[:2], *({name: value[:2] for name, value in of.items()} for of in (facts, truth))
    assert classifier.most_significant > open_dataset(run[2] / "train_residual").images[:, 2].max()
    usual = classifier.answers(images, facts, starts=truth)
    strict = replace(classifier, most_significant=0.5 * float(usual.highest.min())).answers(images, facts, starts=truth)
    assert all("more than any substructure" in reason for reason in np.array(strict.reasons)[~usual.withheld])


def test_a_star_is_withheld(run, classifier, lenses):
    images, facts, truth = lenses
    kernel = torch.from_numpy(run[1].instrument.psf.kernel(run[1].instrument.pixel_scale)).float()
    half = len(kernel) // 2
    starry, here = images.clone(), slice(20 - half, 21 + half)
    starry[:, 0, here, here] += 3 * images.max() * kernel / kernel.max()
    assert classifier.answers(starry, facts, starts=truth).withheld.all()


def test_a_search_finds_what_the_truth_finds(classifier, lenses):
    images, facts, truth = lenses
    searched, known = classifier.answers(images, facts), classifier.answers(images, facts, starts=truth)
    both = ~searched.withheld & ~known.withheld
    assert both.mean() > 0.6
    close = np.abs(searched.probabilities[both] - known.probabilities[both]).max(1) < 0.02
    assert close.mean() > 0.8


def test_answers_of_turned_images_are_averaged(classifier):
    channels = np.random.default_rng(0).normal(size=(3, 4, 40, 40)).astype(np.float32)
    steady = classifier.classifier.probabilities(channels, turns=True)
    again = classifier.classifier.probabilities(np.ascontiguousarray(np.rot90(channels, 1, (2, 3))), turns=True)
    np.testing.assert_allclose(steady, again, atol=1e-4)


def test_fits_that_fail_are_withheld(classifier, lenses):
    images, facts, truth = lenses
    wrong = dict(truth) | {"lens_theta_E": torch.full((10,), 0.2), "source_center_x": torch.full((10,), 2.0)}
    answers = classifier.answers(images, facts, starts=wrong)
    assert answers.withheld.mean() > 0.5
    assert np.isnan(answers.probabilities[answers.withheld]).all()
    assert all("fit" in reason or "no arcs" in reason for reason in answers.reasons if reason)
    # sky alone
    dark = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    answers = classifier.answers(dark, torch.ones_like(dark))
    assert all(answers.reasons)


def test_what_is_no_lens_or_not_of_this_noise_is_withheld(run, classifier, lenses):
    images, facts, truth = lenses
    noise = noise_map(run[1], facts, images.clamp(min=0))
    # light that no lens has bent, as bright
    bare = dict(truth) | {"lens_theta_E": torch.full((10,), 1e-3), "gamma1": 0 * truth["gamma1"]}
    galaxy = render(run[1], bare | {"gamma2": 0 * truth["gamma2"]})
    drawn = galaxy + noise * torch.randn(galaxy.shape, generator=torch.Generator().manual_seed(2))
    answers = classifier.answers(drawn, noise, starts=bare)
    assert all(answers.reasons)
    assert any("Einstein radius" in reason for reason in answers.reasons)
    # three times the noise that there is
    answers = classifier.answers(images, 3 * noise, starts=truth)
    assert all(answers.reasons)
    assert any("less than was said" in reason for reason in answers.reasons)
    # noise without end is a mask
    mask = torch.zeros(40, 40, dtype=bool)
    mask[5:35, 5:35] = True
    hidden = classifier.answers(images, noise.masked_fill(mask, torch.inf), starts=truth)
    assert all("mask covers" in reason for reason in hidden.reasons)


def test_a_mask_over_the_arcs_is_said(classifier, lenses):
    images, facts, truth = lenses
    mask = torch.zeros(40, 40, dtype=bool)
    mask[:2] = True
    open_sky = classifier.answers(images, facts, mask=mask, starts=truth)
    assert open_sky.withheld.mean() < 0.3
    # what is masked does not matter
    spoilt = images.clone()
    spoilt[..., mask] = torch.nan
    again = classifier.answers(spoilt, facts, mask=mask, starts=truth)
    np.testing.assert_allclose(again.probabilities, open_sky.probabilities, atol=1e-3)
    mask[5:35, 5:35] = True
    hidden = classifier.answers(images, facts, mask=mask)
    assert all("mask covers" in reason for reason in hidden.reasons)
    assert np.isnan(hidden.probabilities).all()
    with pytest.raises(InputError, match="leaves no pixel"):
        classifier.answers(images, facts, mask=torch.ones(40, 40, dtype=bool))


@pytest.mark.parametrize("kernel", [np.ones((4, 4)), np.ones((3, 5)), np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_kernels_without_sense_are_refused(run, kernel):
    with pytest.raises(InputError, match="point-spread function"):
        with_psf(run[1], kernel)


def test_frames_of_another_size_are_refused(classifier):
    for size in (30, 50):
        with pytest.raises(InputError, match="trained on"):
            classifier.answers(torch.ones(1, 1, size, size), torch.ones(1, 1, size, size))
    with pytest.raises(InputError, match="noise map has the shape"):
        classifier.answers(torch.ones(1, 1, 40, 40), torch.ones(1, 1, 30, 30))
    with pytest.raises(InputError, match="exposure_time"):
        classifier.answers(torch.ones(1, 1, 40, 40), {"background_rms": 1.0})


@pytest.fixture
def predict(run, lenses, tmp_path, capsys):
    from lenslib.cli import main

    np.save(tmp_path / "frame.npy", lenses[0][0, 0].numpy())
    weights = str(run[0].folder / "weights.safetensors")

    def call(*options, image="frame.npy"):
        with pytest.raises(SystemExit) as stop:
            main(["predict", weights, str(tmp_path / image), *map(str, options)])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err.splitlines()

    return call


def test_the_command_asks_for_noise_and_kernel(predict, lenses, tmp_path):
    code, _, said = predict("--psf", "recipe")
    assert (code, len(said)) == (2, 1)
    assert "--noise FILE" in said[0]
    photons = ["--background-rms", float(lenses[1]["background_rms"][0])]
    assert predict("--psf", "recipe", *photons)[0] == 2
    photons += ["--exposure-time", float(lenses[1]["exposure_time"][0])]
    code, _, said = predict(*photons)
    assert (code, len(said)) == (2, 1)
    assert "--psf FILE" in said[0]
    np.save(tmp_path / "mask.npy", np.pad(np.ones((30, 30)), 5))
    code, out, _ = predict("--psf", "recipe", *photons, "--mask", tmp_path / "mask.npy", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert row["class"] == "withheld"
    assert row["no_sub"] is None
    assert "mask covers" in row["reason"]
    spoilt = lenses[0][0, 0].numpy().copy()
    spoilt[20, 20] = np.nan
    np.save(tmp_path / "spoilt.npy", spoilt)
    assert predict("--psf", "recipe", *photons, "--mask", tmp_path / "mask.npy", image="spoilt.npy")[0] == 0
    assert "1 pixels that are NaN" in predict("--psf", "recipe", *photons, image="spoilt.npy")[2][0]
    np.save(tmp_path / "large.npy", np.random.default_rng(0).random((50, 50)))
    code, _, said = predict("--psf", "recipe", *photons, image="large.npy")
    assert (code, len(said)) == (2, 1)
    assert "40 x 40" in said[0]


def test_the_command_judges_a_frame(predict, run, classifier, lenses, tmp_path):
    recipe, (images, facts, _) = run[1], lenses
    np.save(tmp_path / "noise.npy", noise_map(recipe, facts, images.clamp(min=0))[0, 0].numpy())
    np.save(tmp_path / "psf.npy", recipe.instrument.psf.kernel(recipe.instrument.pixel_scale))
    code, out, _ = predict("--noise", tmp_path / "noise.npy", "--psf", tmp_path / "psf.npy", "--turns", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert set(row) == {"file", "class", *classifier.classes, "highest_significance", "reason"}
    if not row["reason"]:
        assert sum(row[name] for name in classifier.classes) == pytest.approx(1, abs=1e-4)
