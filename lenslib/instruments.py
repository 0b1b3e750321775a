"""What the telescope does to the light: point-spread function, exposure and noise.

Noise is drawn by a `NoiseSource`, so that the same formulas serve numpy on a processor (exact, fast Poisson draws) and
torch on an accelerator.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from lenslib.priors import Strict, prior


class Gaussian(Strict):
    """One circular Gaussian of a point-spread function; `fwhm` in arcsec."""

    fwhm: float = Field(gt=0)
    fraction: float = Field(1.0, gt=0)


class PSF(Strict):
    """A sum of circular Gaussians, each cut at `truncation` standard deviations and normalised to one.

    The edge of the image is repeated outwards, as lenstronomy's Gaussian convolution does.
    """

    gaussians: tuple[Gaussian, ...] = Field(min_length=1)
    truncation: float = Field(5.0, gt=0)

    def profiles(self, pixel_scale: float) -> list[tuple[float, list[float]]]:
        """Fraction and one-dimensional kernel of each Gaussian, sampled at pixel centres."""
        total = sum(part.fraction for part in self.gaussians)
        kernels = []
        for part in self.gaussians:
            sigma = part.fwhm / np.sqrt(8 * np.log(2)) / pixel_scale
            radius = int(self.truncation * sigma + 0.5)
            kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
            kernels.append((part.fraction / total, (kernel / kernel.sum()).tolist()))
        return kernels

    def kernel(self, pixel_scale: float) -> np.ndarray:
        """The whole kernel [k, k] (float64, sums to one)."""
        profiles = self.profiles(pixel_scale)
        half = max(len(kernel) for _, kernel in profiles) // 2
        padded = [(fraction, np.pad(kernel, half - len(kernel) // 2)) for fraction, kernel in profiles]
        return sum(fraction * np.outer(kernel, kernel) for fraction, kernel in padded)


def convolve(images: Tensor, profiles: list[tuple[float, list[float]]]) -> Tensor:
    """Images [n, h, w] blurred by the sum of separable kernels (see `PSF.profiles`).

    By shifting and adding, which compilers fuse: on a processor many times faster than a convolution of one channel.
    """
    blurred = torch.zeros_like(images)
    for fraction, kernel in profiles:
        half = len(kernel) // 2
        padded = pad(images[:, None], (half, half, half, half), mode="replicate")[:, 0]
        across = _blur(padded, kernel, -1)
        blurred = blurred + fraction * _blur(across, kernel, -2)
    return blurred


def _blur(padded: Tensor, kernel: list[float], dim: int) -> Tensor:
    size = padded.shape[dim] - len(kernel) + 1
    return sum(weight * padded.narrow(dim, shift, size) for shift, weight in enumerate(kernel))


class NoNoise(Strict):
    """No noise at all, as DeepLenseSim's Models II and III are coded (simple_sim_2 drops the noise it draws)."""

    kind: Literal["none"]

    def draw(self, stream, n):
        return {}

    def scale(self, images: Tensor, params: dict[str, Tensor]) -> Tensor | None:
        return None

    def add(self, images, params, source):
        return images


class DeepLenseNoise(Strict):
    """Noise of DeepLenseSim's simple_sim: Gaussian photon and background noise, times the exposure time, clipped at
    zero, and then (`poisson_again`) Poisson noise on top of what is noisy already."""

    kind: Literal["deeplense"]
    background_rms: prior(low=0)
    exposure_time: prior(low=1e-9)
    poisson_again: bool = True

    def draw(self, stream, n):
        return {name: getattr(self, name).draw(stream(name), n) for name in ("background_rms", "exposure_time")}

    def scale(self, images, params):
        return None

    def add(self, images, params, source):
        background, time = (params[name][:, None, None] for name in ("background_rms", "exposure_time"))
        # one draw of the summed variance is the same as one draw of each
        noisy = images + torch.sqrt(images.abs() / time + background**2) * source.normal(images.shape)
        counts = (noisy * time).clamp(min=0) if self.poisson_again else noisy * time
        return source.poisson(counts) if self.poisson_again else counts


class PhotonNoise(Strict):
    """Poisson noise of the photons (electrons/s times seconds, gain 1) and Gaussian background, in electrons/s.

    The scene's amplitude is set so that its brightest pixel has signal-to-noise `peak_snr`:
    I^2 = peak_snr^2 (background_rms^2 + I / exposure_time).
    """

    kind: Literal["photon"]
    background_rms: prior(low=0)
    exposure_time: prior(low=1e-9)
    peak_snr: prior(low=1e-3)

    def draw(self, stream, n):
        names = ("background_rms", "exposure_time", "peak_snr")
        return {name: getattr(self, name).draw(stream(name), n) for name in names}

    def scale(self, images, params):
        """Factor [n] that brings noise-free images [n, h, w] to their peak signal-to-noise."""
        background, time, snr = params["background_rms"], params["exposure_time"], params["peak_snr"]
        peak = (snr**2 / time + torch.sqrt(snr**4 / time**2 + 4 * snr**2 * background**2)) / 2
        return peak / images.amax((1, 2))

    def add(self, images, params, source):
        background, time = (params[name][:, None, None] for name in ("background_rms", "exposure_time"))
        photons = source.poisson(images.clamp(min=0) * time) / time
        return photons + background * source.normal(images.shape)


Noise = Annotated[NoNoise | DeepLenseNoise | PhotonNoise, Field(discriminator="kind")]


class Instrument(Strict):
    """Pixels, point-spread function and noise."""

    name: str
    pixels: int = Field(ge=8, le=4096)
    pixel_scale: float = Field(gt=0)
    psf: PSF
    noise: Noise


class NumpyNoise:
    """Draws on the processor from one numpy generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def normal(self, shape) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(tuple(shape), dtype=np.float32))

    def poisson(self, rate: Tensor) -> Tensor:
        return torch.from_numpy(self.rng.poisson(rate.numpy()).astype(np.float32))


class TorchNoise:
    """Draws on an accelerator from one torch generator."""

    def __init__(self, seed: int, device):
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, shape) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, device=self.generator.device)

    def poisson(self, rate: Tensor) -> Tensor:
        return torch.poisson(rate, generator=self.generator)
