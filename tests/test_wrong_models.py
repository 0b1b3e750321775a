"""Models that are not what was drawn: too simple a source leaves more, too free a one leaves less than it should."""

import pytest
import torch

from lenslib.errors import InputError
from lenslib.refine import SmoothModel, noise_map, smooth
from lenslib.residuals import fit_and_subtract
from lenslib.wrong_models import ClumpedSource, HeldSource, blurred_by, fit_and_subtract_by

FACTS = ("background_rms", "exposure_time")


@pytest.fixture(scope="module")
def lenses(small_matched):
    """Smooth lenses, what is known of their noise, the truth as fitted numbers, and what the right model leaves."""
    recipe = smooth(small_matched({}))
    batch = recipe.sample(16, seed=4)
    facts, truth = {name: batch.params[name] for name in FACTS}, SmoothModel(recipe).pack(batch.params)[:, None]
    return recipe, batch.images, facts, truth, fit_and_subtract(recipe, batch.images, facts, dict(batch.params))


def test_a_model_that_holds_nothing_is_the_right_one(lenses):
    recipe, images, facts, truth, (channels, fit) = lenses
    found, same = fit_and_subtract_by(HeldSource(recipe, {}), images, facts, truth)
    torch.testing.assert_close(found, channels)
    torch.testing.assert_close(same.chi_square, fit.chi_square)


def test_what_is_held_stays_and_leaves_more(lenses):
    recipe, images, facts, truth, (_, right) = lenses
    _, fit = fit_and_subtract_by(HeldSource(recipe, {"n_sersic": 1.5, "source_e1": 0.0}), images, facts, truth)
    torch.testing.assert_close(fit.params["n_sersic"], torch.full((16,), 1.5))
    assert not fit.params["source_e1"].any()
    both = fit.converged & right.converged
    assert (fit.chi_square - right.chi_square)[both].min() > -1
    assert (fit.chi_square - right.chi_square)[both].median() > 50


def test_a_clump_that_is_not_there_takes_up_noise_alone(lenses):
    recipe, images, facts, truth, (_, right) = lenses
    _, fit = fit_and_subtract_by(ClumpedSource(recipe), images, facts, truth)
    gain = (right.chi_square - fit.chi_square)[fit.converged & right.converged]
    # four more numbers take up about four; that noise is weighted anew by the fit moves chi-square by a few
    assert gain.median() > -1
    assert gain.median() < 12


def test_a_clump_that_is_there_is_fitted(lenses):
    recipe, _, facts, truth, _ = lenses
    model = ClumpedSource(recipe)
    start = model.begun(truth[:, 0])
    clumped = start.clone()
    clumped[:, -4] = 1.0
    clean = model.images(clumped).view(16, 1, *[recipe.instrument.pixels] * 2)
    torch.testing.assert_close(model.unpack(clumped)["clump0_amp"], torch.ones(16))
    noise = noise_map(recipe, facts, clean)
    images = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    plain = fit_and_subtract_by(HeldSource(recipe, {}), images, facts, truth)[1]
    fit = fit_and_subtract_by(model, images, facts, truth)[1]
    assert fit.chi_square.median() < plain.chi_square.median() - 20


def test_another_point_spread_function_leaves_more(lenses):
    recipe, images, facts, truth, (_, right) = lenses
    wide = blurred_by(recipe, 1.5)
    assert wide.instrument.psf.gaussians[0].fwhm == pytest.approx(1.5 * recipe.instrument.psf.gaussians[0].fwhm)
    params = SmoothModel(recipe).unpack(truth[:, 0])
    assert fit_and_subtract(wide, images, facts, params)[1].chi_square.median() > right.chi_square.median() + 20


def test_what_no_fit_moves_cannot_be_held(lenses):
    with pytest.raises(InputError, match="mass"):
        HeldSource(lenses[0], {"mass": 1.0})
