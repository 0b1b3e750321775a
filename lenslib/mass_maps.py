"""Where a little more mass would explain an image better: the likelihood's slope by the convergence, as a map.

A small mass m at place p (in arcsec^2: the square of its Einstein radius) bends light by m (theta - p) / |theta - p|^2,
and changes an image by m T_p: the derivatives of the fitted image by the source's place, times the bending. With r the
residual and W its inverse variances, b(p) = T_p W r is the slope of the log-likelihood by m, and F(p) = T_p W T_p, less
what the smooth lens and source can take up, its information. So b / sqrt(F) is the significance of a mass at p, and
b / F the mass that fits best there: the first step of gravitational imaging (Koopmans 2005, MNRAS 363, 1136; Vegetti &
Koopmans 2009, MNRAS 392, 945).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lenslib.optics import pixel_grid
from lenslib.refine import SLOTS, Fit, SmoothModel, inverse

# a mass spread over so many pixels: sharper ones cannot be told apart
SOFTENING = 2.0
# of information, below this share of what a mass would give without the smooth lens, only rounding is left
_LEAST = 1e-3


@dataclass(frozen=True)
class MassMaps:
    """Maps [n, h, w] on the image's own pixels: `significance`, in standard deviations, positive where mass is missing,
    and `sensitivity` = sqrt(F) in 1 / arcsec^2, the significance of a unit mass."""

    significance: Tensor
    sensitivity: Tensor


@torch.no_grad()
def mass_maps(model: SmoothModel, fit: Fit, residual: Tensor, noise: Tensor) -> MassMaps:
    """Maps of fits of a model to images with deviations `noise` [n, 1, h, w].

    `residual` is what they leave, in these deviations.
    """
    numbers, parts = model.pack(fit.params), torch.arange(len(residual)).split(SLOTS)
    found = [_maps(model, numbers[rows], residual[rows], noise[rows]) for rows in parts]
    return MassMaps(*(torch.cat(maps) for maps in zip(*found, strict=True)))


def _maps(model: SmoothModel, numbers: Tensor, residual: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    recipe = model.recipe
    slopes = model.slopes(numbers).unflatten(2, noise.shape[-2:]) / noise
    x_and_y = [model.names.index(name) for name in ("source_center_x", "source_center_y")]
    moved, flat = slopes[:, x_and_y], slopes.flatten(2)
    maps = _Deflections(recipe.instrument.pixels, recipe.instrument.pixel_scale)
    # what each number of the smooth fit has in common with a mass at each place
    shared = torch.stack([maps.gather(slope[:, None] * moved) for slope in slopes.unbind(1)], 1)
    known = inverse(flat @ flat.mT).float()
    left = known @ (flat @ residual.flatten(1)[..., None])
    slope = maps.gather(residual * moved) - torch.einsum("nkhw,nk->nhw", shared, left[..., 0])
    alone = maps.gather_squares(moved[:, :1] ** 2, moved[:, 1:] ** 2, moved.prod(1, keepdim=True))
    taken = torch.einsum("njhw,njk,nkhw->nhw", shared, known, shared)
    information = torch.maximum(alone - taken, _LEAST * alone).clamp(min=1e-12)
    return slope / information.sqrt(), information.sqrt()


class _Deflections:
    """Sums over all pixels of what a unit mass at each pixel does to light there, by Fourier transforms."""

    def __init__(self, pixels: int, pixel_scale: float):
        self.pixels, size = pixels, 2 * pixels
        x, y = pixel_grid(size + 1, pixel_scale)
        squared = x**2 + y**2 + (SOFTENING * pixel_scale) ** 2
        pulls = torch.stack([x / squared, y / squared])
        # offsets from -pixels to pixels - 1, the first of them at no offset; turned, because sums run over image pixels
        kernels = torch.cat([pulls, pulls**2, pulls.prod(0, keepdim=True)])[:, :-1, :-1]
        kernels = torch.fft.ifftshift(kernels, dim=(-2, -1))
        self.kernels, self.size = torch.fft.rfft2(kernels).conj(), size

    def _correlate(self, fields: Tensor, kernels: Tensor) -> Tensor:
        """Sum over the fields [n, k, h, w], each correlated with its own kernel: [n, h, w]."""
        spectra = (torch.fft.rfft2(fields, s=(self.size, self.size)) * kernels).sum(1)
        return torch.fft.irfft2(spectra, s=(self.size, self.size))[..., : self.pixels, : self.pixels]

    def gather(self, fields: Tensor) -> Tensor:
        return self._correlate(fields, self.kernels[:2])

    def gather_squares(self, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
        return self._correlate(torch.cat([xx, yy, 2 * xy], 1), self.kernels[2:])
