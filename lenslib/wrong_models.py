"""Fits with a model that is not what the images were drawn with: a source too simple or too free, another blurring.

model = HeldSource(recipe, {"n_sersic": 1.0})              # every source taken for an exponential disc
model = ClumpedSource(recipe)                              # a clump besides, which nothing calls for
channels, fit = fit_and_subtract_by(model, images, facts, templates.starts(images, 2))
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lenslib.errors import unknown
from lenslib.recipe import Recipe
from lenslib.refine import Fit, SmoothModel, best_of, fit_all, noise_map
from lenslib.residuals import seen, smoothed

# of a clump: its brightness over the source's, and place and size in arcsec; as a fit begins, and its bounds
_CLUMP = {
    "clump0_amp": (0.05, (0.0, 20.0)),
    "clump0_R_sersic": (0.05, (0.01, 0.3)),
    "clump0_center_x": (0.05, (-1.0, 1.0)),
    "clump0_center_y": (0.0, (-1.0, 1.0)),
}


class HeldSource(SmoothModel):
    """A smooth lens of which some numbers are `held`, such as {"source_e1": 0.0, "source_e2": 0.0}: a round source.
    InputError for a number that a fit does not move."""

    def __init__(self, recipe: Recipe, held: Mapping[str, float]):
        super().__init__(recipe)
        if wrong := [name for name in held if name not in self.names]:
            raise unknown("parameter", wrong[0], self.names)
        self.held = [self.names.index(name) for name in held]
        values = torch.tensor(list(held.values()))
        values = torch.where(self.logarithmic[self.held], values.log(), values)
        self.low[self.held] = self.high[self.held] = values

    def begun(self, starts: Tensor) -> Tensor:
        """Fitted numbers [..., k] of a `SmoothModel` as those of this one."""
        return self.bounded(starts)

    def images_and_slopes(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        images, slopes = super().images_and_slopes(numbers)
        slopes[:, self.held] = 0
        return images, slopes


class ClumpedSource(SmoothModel):
    """A smooth lens whose Sersic source has one round exponential clump besides, free in place, size and brightness."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.names += tuple(_CLUMP)
        low, high = torch.tensor([bounds for _, bounds in _CLUMP.values()]).unbind(1)
        self.low, self.high = torch.cat([self.low, low]), torch.cat([self.high, high])
        self.logarithmic = torch.cat([self.logarithmic, torch.zeros(len(_CLUMP), dtype=bool)])

    def begun(self, starts: Tensor) -> Tensor:
        """Fitted numbers [..., k] of a `SmoothModel` as those of this one: a faint clump beside the source's centre."""
        clump = torch.tensor([start for start, _ in _CLUMP.values()]).repeat(*starts.shape[:-1], 1)
        clump[..., 2:] += starts[..., [self.names.index(f"source_center_{axis}") for axis in "xy"]]
        return self.bounded(torch.cat([starts, clump], -1))


def fit_and_subtract_by(
    model: HeldSource | ClumpedSource, images: Tensor, noise: Mapping[str, Tensor], starts: Tensor, steps: int = 30
) -> tuple[Tensor, Fit]:
    """As `lenslib.residuals.fit_and_subtract` of images with photon noise, by another model of what is smooth.

    `starts`: fitted numbers of a `SmoothModel`, [n, starts, k].
    """
    first = noise_map(model.recipe, noise, smoothed(images))
    fit = best_of(
        model.begun(starts), lambda rows, start: fit_all(model, images[rows], first[rows], start, steps, progress=False)
    )
    return seen(model, images, noise_map(model.recipe, noise, fit.model), fit), fit


def blurred_by(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with Gaussians of its point-spread function that are wider by a factor."""
    psf = recipe.instrument.psf
    parts = tuple(part.model_copy(update={"fwhm": factor * part.fwhm}) for part in psf.gaussians)
    psf = psf.model_copy(update={"gaussians": parts})
    return recipe.model_copy(update={"instrument": recipe.instrument.model_copy(update={"psf": psf})})
