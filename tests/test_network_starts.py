"""A network that gives fits their start: taught by lenses, it is nearer to others than their mean, and fits go on."""

import numpy as np
import pytest
import torch

from lenslib.errors import InputError
from lenslib.network_starts import train_starter
from lenslib.refine import SmoothModel, smooth
from lenslib.residuals import fit_and_subtract
from lenslib.settings import Settings

SETTINGS = Settings(epochs=6, batch_size=32, learning_rate=3e-3)


@pytest.fixture(scope="module")
def taught(small_matched):
    recipe = smooth(small_matched({}))
    batch = recipe.sample(600, seed=8)
    return recipe, train_starter(recipe, batch.images, _numpy(batch.params), 40, SETTINGS), batch.params


def _numpy(params):
    return {name: value.numpy() for name, value in params.items()}


def test_estimates_of_new_lenses_are_nearer_than_the_mean(taught):
    recipe, network, known = taught
    batch = recipe.sample(100, seed=9)
    starts = network.starts(recipe, batch.images)
    assert set(SmoothModel(recipe).names) <= set(starts)
    truth = batch.params["lens_theta_E"]
    assert (starts["lens_theta_E"] - truth).square().mean() < 0.5 * (
        known["lens_theta_E"].mean() - truth
    ).square().mean()
    # a brightness that fits best leaves no more than no light at all
    model = SmoothModel(recipe)
    left = batch.images.flatten(1) - model.images(model.pack(starts))
    assert (left.square().sum(1) <= batch.images.flatten(1).square().sum(1) * (1 + 1e-4)).all()


def test_fits_begin_at_estimates(taught):
    recipe, network, _ = taught
    batch = recipe.sample(12, seed=10)
    facts = {name: batch.params[name] for name in ("background_rms", "exposure_time")}
    _, fit = fit_and_subtract(recipe, batch.images, facts, network.starts(recipe, batch.images), steps=2)
    assert fit.chi_square.isfinite().all()


def test_brightness_follows_the_image(taught):
    recipe, network, _ = taught
    images = recipe.sample(4, seed=11).images
    one, twice = (network.starts(recipe, factor * images)["amp"] for factor in (1, 2))
    torch.testing.assert_close(twice, 2 * one, rtol=1e-3, atol=1e-6)


def test_too_few_images_are_refused(taught):
    recipe = taught[0]
    batch = recipe.sample(12, seed=1)
    with pytest.raises(InputError, match="twenty"):
        train_starter(recipe, batch.images, {name: np.asarray(v) for name, v in batch.params.items()}, 40, SETTINGS)
