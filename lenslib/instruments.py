"""What the telescope does to the light: point-spread function, exposure and noise.

Noise is drawn by a `NumpyNoise` on a processor (exact, fast Poisson draws) and by a `TorchNoise` on an accelerator, so
that the same formulas serve both.
"""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.functional import pad

from lenslib.priors import Strict, prior


class Gaussian(Strict):
    """One circular Gaussian of a point-spread function; `fwhm` in arcsec."""

    fwhm: float = Field(gt=0)
    fraction: float = Field(1.0, gt=0)


class PSF(Strict):
    """A sum of circular Gaussians, each cut at `truncation` standard deviations, or an Airy disc, in a square that
    reaches `truncation` times the radius `airy` (arcsec) of its first dark ring, or a `measured` kernel, square with an
    odd side, on the image's own pixels. Normalised to one.

    For Gaussians and what was measured, the edge of the image is repeated outwards, as lenstronomy's Gaussian
    convolution does; for an Airy disc, the sky beyond the edge is drawn (see `margin`).
    """

    gaussians: tuple[Gaussian, ...] | None = Field(None, min_length=1)
    airy: float | None = Field(None, gt=0)
    measured: tuple[tuple[float, ...], ...] | None = None
    truncation: float = Field(5.0, gt=0)

    @model_validator(mode="after")
    def _one_form(self):
        if [self.gaussians, self.airy, self.measured].count(None) != 2:
            raise ValueError("give exactly one of gaussians, airy and measured")
        if self.measured is not None:
            side = len(self.measured)
            if side % 2 == 0 or any(len(row) != side for row in self.measured):
                raise ValueError(f"measured must be a square kernel with an odd side, not of {side} rows")
            if sum(map(sum, self.measured)) <= 0:
                raise ValueError("measured must have a positive sum: it holds no light")
        return self

    def profiles(self, pixel_scale: float) -> list[tuple[float, list[float]]]:
        """Weights and kernels in one dimension, at pixel centres, of the Gaussians; their outer squares add up to the
        kernel."""
        total = sum(part.fraction for part in self.gaussians)
        kernels = []
        for part in self.gaussians:
            sigma = part.fwhm / np.sqrt(8 * np.log(2)) / pixel_scale
            radius = int(self.truncation * sigma + 0.5)
            kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
            kernels.append((part.fraction / total, (kernel / kernel.sum()).tolist()))
        return kernels

    def margin(self, pixel_scale: float) -> int:
        """Pixels beyond the edge of an image that must be drawn for its border to be right: those that an Airy disc
        reaches. Gaussians have little light out there, and the edge repeated serves."""
        return 0 if self.airy is None else int(self.truncation * self.airy / pixel_scale + 0.5)

    def kernel(self, pixel_scale: float) -> np.ndarray:
        """The whole kernel [k, k] (float64, sums to one)."""
        if self.measured is not None:
            return np.array(self.measured) / np.sum(self.measured)
        if self.airy is not None:
            return _airy_disc(self.airy / pixel_scale, self.margin(pixel_scale))
        profiles = self.profiles(pixel_scale)
        half = max(len(kernel) for _, kernel in profiles) // 2
        padded = [(fraction, np.pad(kernel, half - len(kernel) // 2)) for fraction, kernel in profiles]
        return sum(fraction * np.outer(kernel, kernel) for fraction, kernel in padded)


@lru_cache
def _airy_disc(first_zero: float, half: int) -> np.ndarray:
    """An Airy disc whose first dark ring has a radius of `first_zero` pixels, out to `half` pixels along the axes."""
    from scipy.special import j1, jn_zeros

    axis = np.arange(-half, half + 1) / first_zero * jn_zeros(1, 1)
    radius = np.hypot(axis[:, None], axis).clip(min=1e-9)
    disc = (2 * j1(radius) / radius) ** 2
    return disc / disc.sum()


def blur(images: Tensor, psf: PSF, pixel_scale: float, by=None) -> Tensor:
    """Images [n, h, w] as a point-spread function blurs them, their edge repeated outwards.

    Gaussians are separable: `convolve` and its equals `by` need them one dimension at a time. What is not goes through
    Fourier space.
    """
    if psf.gaussians is None:
        return convolve_fourier(images, psf.kernel(pixel_scale))
    return (by or convolve)(images, psf.profiles(pixel_scale))


def convolve(images: Tensor, profiles: list[tuple[float, list[float]]]) -> Tensor:
    """Images [n, h, w] blurred by the sum of separable kernels (see `PSF.profiles`).

    By shifting and adding, which compilers fuse: on a processor many times faster than a convolution of one channel.
    """
    blurred = torch.zeros_like(images)
    for fraction, kernel in profiles:
        half = len(kernel) // 2
        padded = pad(images[:, None], (half, half, half, half), mode="replicate")[:, 0]
        across = _shifted_sum(padded, kernel, -1)
        blurred = blurred + fraction * _shifted_sum(across, kernel, -2)
    return blurred


def convolve_dense(images: Tensor, profiles: list[tuple[float, list[float]]]) -> Tensor:
    """As `convolve`, of square images, by products of matrices: twice as quick and more for wide kernels, but for last
    digits that depend on how many images there are."""
    blurred = torch.zeros_like(images)
    for fraction, kernel in profiles:
        band = _band(kernel, images)
        blurred.baddbmm_((fraction * band).expand(len(images), -1, -1), images @ band.mT)
    return blurred


def convolve_fourier(images: Tensor, kernel: np.ndarray) -> Tensor:
    """Images [n, h, w] convolved with a kernel [k, k] of an odd side, their edge repeated outwards.

    In double precision, so that the digits kept depend neither on the processor nor on how many images there are.
    """
    half, (height, width) = len(kernel) // 2, images.shape[-2:]
    padded = pad(images[:, None].double(), (half,) * 4, mode="replicate")[:, 0]
    size = [next_fast_len(side, real=True) for side in padded.shape[-2:]]
    transfer = torch.fft.rfft2(torch.tensor(kernel, dtype=torch.float64, device=images.device), size)
    found = torch.fft.irfft2(torch.fft.rfft2(padded, size) * transfer, size)
    return found[:, 2 * half : 2 * half + height, 2 * half : 2 * half + width].to(images.dtype)


def _band(kernel: list[float], images: Tensor) -> Tensor:
    """The matrix [size, size] that blurs a column, its ends repeated outwards."""
    size, half = images.shape[-1], len(kernel) // 2
    steps = torch.arange(size, device=images.device)[:, None] + torch.arange(-half, half + 1, device=images.device)
    weights = torch.tensor(kernel, dtype=images.dtype, device=images.device).expand(size, -1)
    return images.new_zeros(size, size).scatter_add(1, steps.clamp(0, size - 1), weights)


def _shifted_sum(padded: Tensor, kernel: list[float], dim: int) -> Tensor:
    size = padded.shape[dim] - len(kernel) + 1
    return sum(weight * padded.narrow(dim, shift, size) for shift, weight in enumerate(kernel))


class Exposure(Strict):
    """Photons collected for `exposure_time` seconds over a background of deviation `background_rms` a pixel.

    Where `peak_snr` is given, the scene's amplitude is set so that its brightest pixel has this signal-to-noise:
    I^2 = peak_snr^2 (background_rms^2 + I / exposure_time), the last term twice where photons are drawn twice.
    """

    background_rms: prior(low=0)
    exposure_time: prior(low=1e-9)
    peak_snr: prior(low=1e-3) | None = None
    doubled: bool = False

    @property
    def photon_draws(self) -> int:
        """How often the noise of the photons is drawn."""
        return 1

    def draw(self, stream, n):
        names = ("background_rms", "exposure_time", "peak_snr")
        return {name: getattr(self, name).draw(stream(name), n) for name in names if getattr(self, name)}

    def scale(self, images: Tensor, params: dict[str, Tensor]) -> Tensor | None:
        """Factor [n] that brings noise-free images [n, c, h, w] to their peak signal-to-noise; None if none is set."""
        if self.peak_snr is None:
            return None
        background, snr = params["background_rms"], params["peak_snr"]
        time = params["exposure_time"] / self.photon_draws
        peak = (snr**2 / time + torch.sqrt(snr**4 / time**2 + 4 * snr**2 * background**2)) / 2
        return peak / images.flatten(1).amax(1)

    def deviation(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Standard deviations [n, c, h, w] of the noise on noise-free images of that shape, in their units."""
        background, time = (params[name][:, None, None, None] for name in ("background_rms", "exposure_time"))
        return torch.sqrt(images.clamp(min=0) / time * self.photon_draws + background**2)

    def add(self, images: Tensor, params: dict[str, Tensor], source) -> Tensor:
        """Images [n, c, h, w] with noise drawn from `source`."""
        whole = (-1,) + (1,) * (images.ndim - 1)
        background, time = (params[name].reshape(whole) for name in ("background_rms", "exposure_time"))
        return self.expose(images, background, time, source)


class NoNoise(Exposure):
    """No noise at all, as DeepLenseSim's Models II and III are coded (simple_sim_2 drops the noise it draws).

    It may state an exposure, so that one word, another `kind`, turns the noise on. `doubled`: they add the image to
    itself where the noise should be, so that every pixel counts twice; other kinds take no notice.
    """

    kind: Literal["none"]
    background_rms: prior(low=0) | None = None
    exposure_time: prior(low=1e-9) | None = None

    @model_validator(mode="after")
    def _no_signal_to_noise(self):
        if self.peak_snr is not None:
            raise ValueError("peak_snr needs noise: set the kind to photon, sky or deeplense")
        return self

    def draw(self, stream, n):
        return {}

    def add(self, images, params, source):
        return 2 * images if self.doubled else images


class DeepLenseNoise(Exposure):
    """Noise of DeepLenseSim's simple_sim: Gaussian photon and background noise, times the exposure time, clipped at
    zero, and then (`poisson_again`) Poisson noise on top of what is noisy already."""

    kind: Literal["deeplense"]
    poisson_again: bool = True

    @property
    def photon_draws(self) -> int:
        return 2 if self.poisson_again else 1

    def expose(self, images, background, time, source):
        # one draw of the summed variance is the same as one draw of each
        noisy = images + torch.sqrt(images.abs() / time + background**2) * source.normal(images.shape)
        counts = (noisy * time).clamp(min=0) if self.poisson_again else noisy * time
        return source.poisson(counts) if self.poisson_again else counts


class PhotonNoise(Exposure):
    """Poisson noise of the photons (electrons/s times seconds, gain 1) and Gaussian background, in electrons/s."""

    kind: Literal["photon"]

    def expose(self, images, background, time, source):
        photons = source.poisson(images.clamp(min=0) * time) / time
        return photons + background * source.normal(images.shape)


class SkyNoise(Exposure):
    """Poisson noise of scene and sky together, the mean sky then taken away (PyAutoLens' simulator): the sky of
    background_rms^2 exposure_time electrons/s a pixel has the deviation `background_rms`."""

    kind: Literal["sky"]

    def expose(self, images, background, time, source):
        sky = background**2 * time
        return source.poisson((images.clamp(min=0) + sky) * time) / time - sky


Noise = Annotated[NoNoise | DeepLenseNoise | PhotonNoise | SkyNoise, Field(discriminator="kind")]


class Instrument(Strict):
    """Pixels (of `pixel_scale` arcsec), point-spread function and noise. A source of magnitude `zero_point` sends one
    count a second. With `divide_by_peak`, an image is cut at zero and divided by its brightest pixel in any band."""

    name: str
    pixels: int = Field(ge=8, le=4096)
    pixel_scale: float = Field(gt=0)
    zero_point: float | None = None
    psf: PSF
    noise: Noise
    divide_by_peak: bool = False


class NumpyNoise:
    """Draws on the processor from one numpy generator (see `lenslib.draws`)."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def normal(self, shape) -> Tensor:
        from lenslib.draws import fill_normal

        numbers = torch.empty(tuple(shape))
        fill_normal(self.rng, numbers.view(-1).numpy())
        return numbers

    def poisson(self, rate: Tensor) -> Tensor:
        from lenslib.draws import fill_poisson

        counts = torch.empty(rate.shape)
        fill_poisson(self.rng, rate.float().reshape(-1).numpy(), counts.view(-1).numpy())
        return counts


class TorchNoise:
    """Draws on an accelerator from one torch generator."""

    def __init__(self, seed: int, device):
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, shape) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, device=self.generator.device)

    def poisson(self, rate: Tensor) -> Tensor:
        return torch.poisson(rate, generator=self.generator)
