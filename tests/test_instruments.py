"""Point-spread functions and noise sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage, stats

import lenslib
from lenslib.draws import _chances, _corrected
from lenslib.instruments import PSF, NumpyNoise, blur, convolve, convolve_dense
from lenslib.recipe import load_recipe

# a right generator fails a test of this significance once in ten thousand; the seeds are fixed, so it fails never
SIGNIFICANCE = 1e-4


@pytest.mark.parametrize("rate", [0.02, 0.3, 1.0, 3.0, 9.99, 10.0, 17.3, 30.0, 150.0, 1000.0, 1e5, 1e6])
def test_poisson_numbers_are_poisson(rate):
    counts = NumpyNoise(np.random.default_rng(5)).poisson(torch.full((40, 25_000), rate)).numpy().ravel()
    law = stats.poisson(float(np.float32(rate)))
    # bins of at least 20 expected counts, the outermost open
    edges = np.unique(law.ppf(np.linspace(20 / counts.size, 1 - 20 / counts.size, 400)))
    expected = counts.size * np.diff(np.concatenate([[0], law.cdf(edges), [1]]))
    found = np.bincount(np.searchsorted(edges, counts), minlength=len(expected))
    kept = expected > 5
    assert found[~kept].sum() <= 40
    chance = stats.chi2(kept.sum() - 1).sf(((found - expected)[kept] ** 2 / expected[kept]).sum())
    assert chance > SIGNIFICANCE
    assert (counts == np.round(counts)).all()


@pytest.mark.parametrize("rate", [3.0, 30.0, 1e6])
def test_poisson_numbers_do_not_remember_each_other(rate):
    counts = NumpyNoise(np.random.default_rng(6)).poisson(torch.full((1_000_000,), rate)).double().numpy()
    correlations = [np.corrcoef(counts[lag:], counts[:-lag])[0, 1] for lag in (1, 2, 3)]
    assert np.abs(correlations).max() < stats.norm.isf(SIGNIFICANCE / 2) / np.sqrt(counts.size)


@pytest.mark.parametrize("rate", [10.0, 10.4, 12.0, 17.3, 30.0, 99.5, 1000.0, 1e4, 1e5, 1e6])
def test_the_bounds_that_make_the_corrected_normal_law_exact_hold(rate):
    """What `fill_poisson` takes for granted of every count that occurs once in 10^12 numbers."""
    root = np.sqrt(rate)
    counts = np.unique(np.floor(rate + root * np.linspace(-7, 7.5, 4000)).clip(min=0))
    wanted, had = np.array([_chances(rate, root, count) for count in counts]).T
    np.testing.assert_allclose(wanted, stats.poisson(rate).pmf(counts), rtol=1e-7)
    lack, low, high = rate - counts, (counts - rate) / root, (counts + 1 - rate) / root
    expected = np.where(low > 0, stats.norm.sf(low) - stats.norm.sf(high), stats.norm.cdf(high) - stats.norm.cdf(low))
    np.testing.assert_allclose(had, expected, rtol=1e-7)
    # what passes the quick test would have passed the full one
    assert (lack.clip(min=0) ** 3 / (6 * rate**2) >= 1 - wanted / had).all()
    # the double exponential law is nowhere too low, and its missing end is of counts of which there are too many
    bound = np.exp(-np.maximum(np.abs(low - 1.8), np.abs(high - 1.8))) * 0.1069 / rate
    assert (wanted - had <= bound)[low > -0.6744].all()
    assert (wanted <= had)[low <= -0.6744].all()


def test_the_counts_of_the_double_exponential_law_have_the_right_chances():
    rate, n = 12.0, 400_000
    rng = np.random.default_rng(7)
    counts = np.array([_corrected(rng, rate, np.sqrt(rate), -1.0, 0.5) for _ in range(n)])
    every = np.arange(60)
    wanted, had = np.array([_chances(rate, np.sqrt(rate), float(count)) for count in every]).T
    lacking = (wanted - had).clip(min=0)
    expected = n * lacking / lacking.sum()
    kept = expected > 5
    found = np.bincount(counts.astype(int), minlength=60)
    assert found[~kept].sum() <= 40
    chance = stats.chi2(kept.sum() - 1).sf(((found - expected)[kept] ** 2 / expected[kept]).sum())
    assert chance > SIGNIFICANCE


def test_normal_numbers_are_normal():
    numbers = NumpyNoise(np.random.default_rng(8)).normal((500, 1000)).double().numpy().ravel()
    assert stats.kstest(numbers, "norm").pvalue > SIGNIFICANCE


def test_one_seed_is_one_draw():
    rates = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) * 40
    one, other, differs = (NumpyNoise(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.poisson(rates), other.poisson(rates))
    assert torch.equal(one.normal((4, 5)), other.normal((4, 5)))
    assert not torch.equal(one.normal((4, 5)), differs.normal((4, 5)))


def test_rates_without_light_or_without_end():
    rates = torch.tensor([[0.0, -0.0, -3.0, 1e-30], [1e8, 1e12, 1e20, 3e38], [np.nan, np.inf, -np.inf, 0.0]])
    none, many, strange = NumpyNoise(np.random.default_rng(0)).poisson(rates)
    assert not none.any()
    assert ((many - rates[1]).abs() < 6 * rates[1].sqrt() + rates[1] * 2**-23).all()
    assert np.array_equal(strange, [np.nan, np.inf, 0, 0], equal_nan=True)


def test_rates_may_be_a_cut_through_other_numbers():
    rates = torch.full((6, 8), 1e6)
    rates[:, ::2] = 0
    counts = NumpyNoise(np.random.default_rng(0)).poisson(rates.T[:, 1:5])
    assert counts.shape == (8, 4)
    assert not counts[::2].any()
    assert ((counts[1::2] - 1e6).abs() < 6e3).all()


def test_compiled_draws_are_kept_or_made_anew(tmp_path):
    """Where the library's folder cannot be written, this user's cache serves; where nothing can, memory does."""
    code = (
        "import numpy as np; from lenslib.draws import fill_poisson; counts = np.zeros(9, np.float32);"
        "fill_poisson(np.random.default_rng(0), np.full(9, 30, np.float32), counts); print(int(counts.sum()))"
    )
    package = tmp_path / "lenslib"
    package.mkdir()
    for path in Path(lenslib.__file__).parent.glob("*.py"):
        (package / path.name).write_text(path.read_text())
    # a file where the folder would be made keeps even an administrator from writing
    (package / "__pycache__").write_text("")
    home = tmp_path / "home"
    home.mkdir()
    given = os.environ | {"PYTHONPATH": str(tmp_path), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    given |= {"XDG_CACHE_HOME": str(home / "cache")}

    def drawn():
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=given, capture_output=True, text=True)
        assert not done.stderr
        return int(done.stdout)

    expected = int(NumpyNoise(np.random.default_rng(0)).poisson(torch.full((9,), 30.0)).sum())
    assert drawn() == expected
    assert list(home.rglob("*.nbi"))
    shutil.rmtree(home)
    home.write_text("")
    assert drawn() == expected


def test_numba_is_not_needed_until_noise_is_drawn():
    code = "import sys, lenslib.simulate, lenslib.stream; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    with pytest.raises(ValidationError, match="exactly one of gaussians, airy and measured"):
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
    blurred = blur(images, instrument.psf, instrument.pixel_scale)
    torch.testing.assert_close(blurred.sum((1, 2)), images.sum((1, 2)))
    star = torch.zeros(1, 121, 121, dtype=torch.float64)
    star[0, 60, 60] = 1
    half = len(kernel) // 2
    blurred = blur(star, instrument.psf, instrument.pixel_scale)[0]
    np.testing.assert_allclose(blurred[60 - half : 61 + half, 60 - half : 61 + half], kernel, atol=1e-12)


def test_shifts_products_of_matrices_and_fourier_space_blur_alike():
    psf = PSF(gaussians=[{"fwhm": 0.1, "fraction": 0.7}, {"fwhm": 0.9, "fraction": 0.3}], truncation=3.0)
    # brightest at the edge, which all repeat outwards
    images = torch.rand(3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[:, 0] += 5
    by_shifts = blur(images, psf, 0.05, convolve)
    torch.testing.assert_close(blur(images, psf, 0.05, convolve_dense), by_shifts)
    as_measured = PSF(measured=tuple(map(tuple, psf.kernel(0.05).tolist())))
    torch.testing.assert_close(blur(images, as_measured, 0.05), by_shifts)


def test_a_measured_kernel_blurs_as_a_convolution_does():
    rng = np.random.default_rng(0)
    kernel, images = rng.random((5, 5)), torch.from_numpy(rng.random((2, 12, 14)))
    expected = [ndimage.convolve(image, kernel / kernel.sum(), mode="nearest") for image in images.numpy()]
    found = blur(images, PSF(measured=tuple(map(tuple, kernel.tolist()))), 0.1)
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-12)


@pytest.mark.parametrize("psf", ["model_a", "measured"])
def test_in_fourier_space_an_image_does_not_depend_on_its_neighbours(psf):
    instrument = load_recipe("model_a").instrument
    measured = PSF(measured=tuple(map(tuple, np.random.default_rng(1).random((21, 21)).tolist())))
    psf = measured if psf == "measured" else instrument.psf
    images = torch.rand(32, 60, 60, generator=torch.Generator().manual_seed(0))
    together = blur(images, psf, instrument.pixel_scale)
    assert torch.equal(torch.cat([blur(one[None], psf, instrument.pixel_scale) for one in images]), together)


def test_a_gaussian_has_its_width():
    kernel = PSF(gaussians=[{"fwhm": 0.5}], truncation=6.0).kernel(0.05)
    middle = len(kernel) // 2
    # five pixels from the middle is half the full width, where it is half as high
    assert kernel[middle, middle + 5] / kernel[middle, middle] == pytest.approx(0.5, rel=1e-6)
