"""Some pixels of roulette images: what is seen there, its noise, and the fits and steps that use no other pixels."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lenslib.refine import CENTRE, SLOTS, TEMPLATE_SEED, Fit, fit_all, inverse
from lenslib.roulette_model import UNIFORM, RouletteModel
from lenslib.roulette_recipe import RouletteRecipe

# shares of the bitmap's noise that are left, step by step
COOLING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0, 0.0, 0.01, 0.001, 0.0, 0.0, 0.003, 0.0003, 0.0, 0.0)
# pixels of a glance, and pixels a side about light that count as lit
_GLANCE, _BESIDE = 512, 9
# grey levels that rounding may move a pixel, and the share of lit pixels that may be off by more in a fit that explains
# its image
_ROUNDED, _OFF = 0.6, 0.005


@dataclass(frozen=True)
class Seen:
    """Some pixels of images: their grey levels `data` [n, p], and the model there."""

    model: RouletteModel
    data: Tensor

    def rows(self, rows: Tensor) -> "Seen":
        return Seen(self.model.rows(rows), self.data[rows])

    def held(self) -> "Seen":
        """With the camera's place held."""
        return replace(self, model=self.model.freeze(*CENTRE))

    def glance(self) -> "Seen":
        """At fewer pixels."""
        first = slice(0, _GLANCE)
        return Seen(self.model.at(first), self.data[:, first])

    @property
    def lit(self) -> Tensor:
        return (self.data >= 1).sum(1)


def worth(recipe: RouletteRecipe, images: Tensor) -> Tensor:
    """The order in which pixels are looked at, [n, pixels]: at random those in and beside light, below 1, and then
    others."""
    # noise that is cut off at zero has a mean of 0.4 deviations
    dark = 0.75 * recipe.instrument.noise_sd
    near = avg_pool2d(images, _BESIDE, 1, _BESIDE // 2).flatten(1) > dark
    drawn = torch.rand(near.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.where(near, drawn, 1 + drawn)


def seen_at(model: RouletteModel, images: Tensor, order: Tensor, most: int) -> Seen:
    pixels = order.topk(min(most, order.shape[1]), largest=False).indices
    return Seen(model.at(pixels), images.flatten(1).gather(1, pixels))


class _Drawn:
    """A model that a recipe's own lenses fit: its images end with two pixels, which are 0 of lenses that it draws."""

    def __init__(self, model: RouletteModel):
        self.model = model

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def rows(self, rows: Tensor) -> "_Drawn":
        return _Drawn(self.model.rows(rows))

    def images(self, numbers: Tensor) -> Tensor:
        return torch.cat([self.model.images(numbers), self.model.beyond(numbers)[0]], 1)

    def images_and_slopes(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        (shown, _, _, slopes), (beyond, away) = self.model.with_noise(numbers), self.model.beyond(numbers)
        away[:, list(self.model.frozen)] = 0
        return torch.cat([shown, beyond], 1), torch.cat([slopes, away], 2)


def smooth_fit(seen: Seen, numbers: Tensor, noise: Tensor, steps: int, progress: bool) -> Fit:
    """Fits of light read exactly, which are drawn back to the lenses of the recipe."""
    drawn = torch.zeros(len(numbers), 2)
    data, noise = torch.cat([seen.data, drawn], 1), torch.cat([noise, drawn + 1], 1)
    return fit_all(_Drawn(seen.model), data, noise, numbers, steps, progress)


def first_noise(seen: Seen, numbers: Tensor) -> Tensor:
    """Deviations [n, p] before the lens is known: the bitmap's scatter of a round source of the size at the start,
    whose slope at a brightness is known."""
    camera, size, data = seen.model.recipe.instrument, torch.exp(numbers[:, -3:-2]), seen.data
    scatter = UNIFORM * data**2 * 2 * torch.log(255 / data.clamp(0.1, 255)) / size**2
    if camera.lookup == "exact":
        scatter = torch.zeros_like(data)
    return (UNIFORM + camera.noise_sd**2 + scatter).sqrt()


def noise_of(seen: Seen, numbers: Tensor, share: float = 1.0) -> Tensor:
    """Deviations [n, p] of rounding, noise and a share of the bitmap's scatter; infinite where an image without noise
    is dark, and should be."""
    model, parts = seen.model, []
    for rows in parts_of(len(numbers)):
        shown, variance, scatter = model.rows(rows).images_and_variances(numbers[rows])
        deviation = (variance + share * scatter).sqrt()
        if not model.recipe.instrument.noise_sd:
            deviation[(shown < 0.5) & (seen.data[rows] < 0.5)] = torch.inf
        parts.append(deviation)
    return torch.cat(parts)


def curvature(seen: Seen, numbers: Tensor, share: float = 1.0) -> Tensor:
    """[n, k, k] of chi-square over two by the fitted numbers, with a share of the bitmap's scatter for noise."""
    found = []
    for rows in parts_of(len(numbers)):
        model = seen.model.rows(rows)
        _, variance, scatter, slopes = model.with_noise(numbers[rows])
        found.append((slopes / (variance + share * scatter)[:, None]) @ slopes.mT)
    return torch.cat(found)


def polish(seen: Seen, numbers: Tensor, cooling) -> tuple[Tensor, Tensor]:
    """Steps of Gauss and Newton to images read from the bitmap, with shares of its noise left as in `cooling`: the best
    numbers [n, k], and their chi-square [n] against noise and rounding alone and how far they are beyond the recipe."""
    found = []
    for rows in parts_of(len(numbers)):
        model, data, here = seen.model.rows(rows), seen.data[rows], numbers[rows]
        best, lowest = here, torch.full((len(rows),), torch.inf)
        for share in (*cooling, None):
            _, variance, scatter, slopes = model.with_noise(here)
            left = data - model.bitmap(here)
            chi = (left**2 / variance).sum(1) + model.beyond(here)[0].square().sum(1)
            lower = chi < lowest
            best, lowest = torch.where(lower[:, None], here, best), torch.where(lower, chi, lowest)
            if share is None:
                break
            weighted = slopes / (variance + share * scatter)[:, None]
            step = inverse(weighted @ slopes.mT) @ (weighted @ left[..., None]).double()
            here = model.bounded(here + step[..., 0].float())
        found.append((best, lowest))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def explained(seen: Seen, numbers: Tensor) -> Tensor:
    """Bool [n]: whether images read from the bitmap are those seen, but for rounding and a few pixels. At the truth
    none is off; where the source is off by a fiftieth of a pixel, one in a hundred is."""
    shares = []
    for rows in parts_of(len(numbers)):
        part = seen.rows(rows)
        off = ((part.data - part.model.bitmap(numbers[rows])).abs() > _ROUNDED) & (part.data >= 1)
        shares.append(off.sum(1) / part.lit)
    return torch.cat(shares) < _OFF


def parts_of(count: int) -> list[Tensor]:
    """Indices of so many images, `SLOTS` at a time."""
    return list(torch.arange(count).split(SLOTS))


def drawn_scenes(recipe: RouletteRecipe, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Parameters of so many scenes, each [count], which are in no data set."""
    parts = [recipe.draw(TEMPLATE_SEED + seed, k) for k in range(math.ceil(count / recipe.chunk_size))]
    return {name: torch.cat([torch.from_numpy(part[name]) for part in parts])[:count] for name in parts[0]}
