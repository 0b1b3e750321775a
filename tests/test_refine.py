"""Fits of smooth lenses: back to the truth, with deviations that are true, from starts that do not know it."""

import numpy as np
import pytest
import torch

from lenslib.errors import InputError
from lenslib.recipe import load_recipe
from lenslib.refine import SmoothModel, Templates, noise_map, refine

COUNT = 48


@pytest.fixture(scope="module")
def recipe(small_matched):
    nothing = {"substructure.mass_fraction": 0.0, "classes": ["no_sub"], "substructure.populations": {}}
    return small_matched(nothing)


@pytest.fixture(scope="module")
def scenes(recipe):
    """Noisy images, their noise, and the truth."""
    noisy, clean = recipe.sample(COUNT, seed=3), recipe.sample(COUNT, seed=3, noise=False)
    return noisy.images, noise_map(recipe, clean.params, clean.images), clean.params


@pytest.fixture(scope="module")
def fit(recipe, scenes):
    images, noise, _ = scenes
    return refine(recipe, images, Templates(recipe, count=4096).starts(images), noise)


def test_fits_reach_the_noise_from_a_search(fit):
    assert fit.good.float().mean() >= 0.95
    # of 48 chi-squares with 1585 degrees of freedom, the mean is known to 8
    spread = np.sqrt(2 * 1585 / COUNT)
    assert fit.freedom.tolist() == [1600 - 15] * COUNT
    assert abs(float(fit.chi_square[fit.good].mean()) - 1585) < 5 * spread


def test_the_stated_deviations_are_true(fit, scenes):
    """Of 48 lenses and the parameters that the image fixes alone, two thirds lie within one deviation."""
    truth, pulls = scenes[2], []
    for name in ("lens_theta_E", "source_center_x", "source_center_y", "lens_center_x", "lens_center_y"):
        pulls.append((fit.params[name] - truth[name])[fit.good] / fit.uncertainty(name)[fit.good])
    within = (torch.cat(pulls).abs() < 1).float().mean()
    # 240 draws, of which those of one lens are not independent: five deviations of 48 draws each
    assert within == pytest.approx(0.683, abs=0.2)
    assert fit.uncertainty("lens_theta_E").median() < 0.02


def test_residuals_are_the_image_less_the_model_in_deviations(fit, scenes):
    images, noise, _ = scenes
    torch.testing.assert_close(fit.residual, (images - fit.model) / noise)
    torch.testing.assert_close(fit.residual.square().sum((1, 2, 3)), fit.chi_square)


def test_a_fit_does_not_depend_on_its_neighbours(recipe, fit, scenes):
    images, noise, truth = scenes
    start = {name: value[5:6] for name, value in truth.items()}
    alone = refine(recipe, images[5:6], start, noise[5:6])
    together = refine(recipe, images, truth, noise)
    assert float(alone.chi_square) == pytest.approx(float(together.chi_square[5]), rel=1e-4)


def test_pixels_of_infinite_noise_do_not_count(recipe, scenes):
    images, noise, truth = (value if isinstance(value, dict) else value[:4].clone() for value in scenes)
    start = {name: value[:4] for name, value in truth.items()}
    images[:, :, 3:9, 3:9], noise[:, :, 3:9, 3:9] = 1e3, torch.inf
    fit = refine(recipe, images, start, noise)
    assert fit.freedom.tolist() == [1600 - 36 - 15] * 4
    assert fit.good.all()


def test_a_fit_that_does_not_converge_is_flagged(recipe, scenes):
    images, noise, truth = scenes
    far = {name: value[:4].flip(0) for name, value in truth.items()}
    fit = refine(recipe, images[:4], far, noise[:4], steps=1)
    assert not fit.converged.any()
    assert not fit.good.any()


def _nan(images, noise):
    images[2, 0, 3, 3] = torch.nan


def _zero(images, noise):
    images[1] = 0


def _constant(images, noise):
    images[1] = 7.5


def _no_noise(images, noise):
    noise[0, 0, 0, 0] = 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_nan, "image 2 is NaN"),
        (_zero, "image 1 has pixels that are all equal"),
        (_constant, "image 1 has pixels that are all equal"),
        (_no_noise, "image 0 has noise that is not positive"),
    ],
)
def test_images_that_will_not_do_are_named(recipe, scenes, spoil, said):
    images, noise, truth = scenes[0][:3].clone(), scenes[1][:3].clone(), {k: v[:3] for k, v in scenes[2].items()}
    spoil(images, noise)
    with pytest.raises(InputError, match=said):
        refine(recipe, images, truth, noise)


def _at(tensor, row, value):
    tensor = tensor.clone()
    tensor[row] = value
    return tensor


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda start: {k: v for k, v in start.items() if k not in ("gamma", "amp")}, "starts lack gamma, amp"),
        (lambda start: {k: v[:2] for k, v in start.items()}, r"have shape \(2,\): 3 images need \[3\]"),
        (lambda start: start | {"amp": start["amp"][0]}, "starts of amp have shape"),
        (lambda start: start | {"gamma": _at(start["gamma"], 1, torch.nan)}, "image 1 starts at a gamma that is NaN"),
        (lambda start: start | {"amp": _at(start["amp"], 2, torch.inf)}, "image 2 starts at a amp that is NaN or inf"),
    ],
)
def test_starts_by_name_that_will_not_do_are_refused(recipe, scenes, spoil, said):
    images, noise, truth = scenes[0][:3], scenes[1][:3], {k: v[:3] for k, v in scenes[2].items()}
    with pytest.raises(InputError, match=said) as error:
        refine(recipe, images, spoil(truth), noise)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda numbers: numbers[:2], r"shape \(2, 2, 15\): 3 images need \[3, starts, 15\]"),
        (lambda numbers: numbers[:, :0], r"shape \(3, 0, 15\)"),
        (lambda numbers: numbers[:, 0], r"shape \(3, 15\)"),
        (lambda numbers: numbers[..., 1:], r"shape \(3, 2, 14\)"),
        (lambda numbers: _at(numbers, 1, torch.nan), "image 1 has a start that is NaN"),
    ],
)
def test_fitted_numbers_that_will_not_do_are_refused(recipe, scenes, spoil, said):
    images, noise = scenes[0][:3], scenes[1][:3]
    numbers = SmoothModel(recipe).pack({k: v[:3] for k, v in scenes[2].items()})[:, None].expand(3, 2, -1)
    with pytest.raises(InputError, match=said) as error:
        refine(recipe, images, spoil(numbers), noise)
    assert "\n" not in str(error.value)


def test_images_of_another_size_and_recipes_that_cannot_be_fitted_are_refused(recipe, scenes):
    images, noise, truth = scenes
    with pytest.raises(InputError, match=r"\[n, 1, 40, 40\]"):
        refine(recipe, images[..., :32], truth, noise[..., :32])
    with pytest.raises(InputError, match="noise has shape"):
        refine(recipe, images, truth, noise[:1])
    with pytest.raises(InputError, match="example_cluster: only one lens"):
        Templates(load_recipe("example_cluster"), count=32)
    with pytest.raises(InputError, match="pass a noise map"):
        noise_map(load_recipe("deeplense_1"), truth, images)
