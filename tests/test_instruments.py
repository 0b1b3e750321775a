"""Point-spread functions and noise sources."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from lenslib.instruments import PSF, NumpyNoise, convolve
from lenslib.recipe import load_recipe


@pytest.mark.parametrize("rate", [0.02, 1.0, 9.99, 10.0, 17.3, 150.0, 4000.0])
def test_poisson_numbers_are_poisson(rate):
    counts = NumpyNoise(np.random.default_rng(5)).poisson(torch.full((40, 10_000), rate)).numpy().ravel()
    law = stats.poisson(float(np.float32(rate)))
    # bins of at least 20 expected counts, the outermost open
    edges = np.unique(law.ppf(np.linspace(20 / counts.size, 1 - 20 / counts.size, 200)))
    expected = counts.size * np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    found = np.bincount(np.searchsorted(edges, counts), minlength=len(expected))
    kept = expected > 5
    assert found[~kept].sum() <= 40
    chance = stats.chi2(kept.sum() - 1).sf(((found - expected)[kept] ** 2 / expected[kept]).sum())
    assert chance > 1e-4
    assert (counts == np.round(counts)).all()


def test_the_ends_of_the_uniform_draws_are_sound():
    class Ends:
        """Uniform numbers of 0, the only end that a generator reaches, and the generator's own Poisson numbers."""

        poisson = staticmethod(np.random.default_rng(1).poisson)

        def random(self, shape, dtype):
            return np.zeros(shape, dtype)

    with np.errstate(all="raise"):
        counts = NumpyNoise(Ends()).poisson(torch.full((1, 5000), 40.0)).numpy()
    assert np.isfinite(counts).all()
    assert counts.mean() == pytest.approx(40, abs=5 * np.sqrt(40 / 5000))


def test_no_light_is_no_photon():
    assert not NumpyNoise(np.random.default_rng(0)).poisson(torch.zeros(3, 5, 5)).any()


def test_an_airy_disc_is_dark_at_its_first_zero():
    psf, scale = PSF(airy=1.0, truncation=2.0), 0.05
    kernel = psf.kernel(scale)
    middle = len(kernel) // 2
    assert len(kernel) == 81
    assert kernel[middle, middle + 20] < 1e-6 * kernel.max()
    # half its height at 0.4218 of the radius of the first zero (Born & Wolf, Principles of Optics, section 8.5.2)
    half = np.interp(0.5, kernel[middle, middle : middle + 20][::-1] / kernel.max(), np.arange(19, -1, -1) * scale)
    assert half == pytest.approx(0.4218, abs=0.003)


def test_a_point_spread_function_has_one_form():
    with pytest.raises(ValidationError, match="exactly one of gaussians and airy"):
        PSF(gaussians=[{"fwhm": 0.1}], airy=1.0)


@pytest.mark.parametrize("name", ["deeplense_1", "matched_hst", "model_a"])
def test_the_point_spread_function_conserves_flux(name):
    instrument = load_recipe(name).instrument
    kernel = instrument.psf.kernel(instrument.pixel_scale)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-15)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-15)
    images = torch.zeros(2, 121, 121, dtype=torch.float64)
    images[:, 50:71, 50:71] = torch.rand(2, 21, 21, generator=torch.Generator().manual_seed(0))
    blurred = convolve(images, instrument.psf.profiles(instrument.pixel_scale))
    torch.testing.assert_close(blurred.sum((1, 2)), images.sum((1, 2)))
    star = torch.zeros(1, 121, 121, dtype=torch.float64)
    star[0, 60, 60] = 1
    half = len(kernel) // 2
    blurred = convolve(star, instrument.psf.profiles(instrument.pixel_scale))[0]
    np.testing.assert_allclose(blurred[60 - half : 61 + half, 60 - half : 61 + half], kernel, atol=1e-12)


def test_a_gaussian_has_its_width():
    kernel = PSF(gaussians=[{"fwhm": 0.5}], truncation=6.0).kernel(0.05)
    middle = len(kernel) // 2
    # five pixels from the middle is half the full width, where it is half as high
    assert kernel[middle, middle + 5] / kernel[middle, middle] == pytest.approx(0.5, rel=1e-6)
