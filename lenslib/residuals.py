"""Fit and subtract: an image, what a smooth lens leaves of it, and where that could be mass, for networks to look at.

write_residuals(open_dataset("data/train"), "data/train_residual")    # images [n, 4, h, w]
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from lenslib.dataset import CHANNELS, DataSet, write_batches
from lenslib.errors import InputError, unknown
from lenslib.mass_maps import mass_maps
from lenslib.recipe import Recipe
from lenslib.refine import Fit, SmoothModel, Templates, noise_map, refine

# arcsec^2, of the mass whose significance is the sensitivity: an Einstein radius of 0.1 arcsec
UNIT_MASS = 0.01
# images that are fitted before their residuals are written: many, so that the slowest of them share their slots
_AT_ONCE = 480
# of a search: the best few templates are tried in turn
STARTS = 2
# what the fits of a data set begin with
BEGINNINGS = ("search", "truth")
# what the names of a recipe of residuals end in
SUFFIX = "_residual"


def fit_and_subtract(
    recipe: Recipe,
    images: Tensor,
    noise: Mapping[str, Tensor] | Tensor,
    starts: Templates | Mapping[str, Tensor],
    mask: Tensor | None = None,
    steps: int = 30,
) -> tuple[Tensor, Fit]:
    """Images [n, 1, h, w] as `CHANNELS` [n, 4, h, w], and the fits of smooth lenses and sources behind them.

    `noise` is the standard deviation of every pixel, as images, or what an observer knows of photon noise:
    background_rms and exposure_time, each [n]. Then a fit is weighted by noise that is judged from the smoothed image,
    and its residual by that of the fitted model. `starts`: where fits begin, by a search among templates or with
    parameters by name, each [n]. Pixels where `mask` is true, bool [n, 1, h, w], do not count: their noise is infinite.
    Raises InputError for images that cannot be fitted (see `lenslib.refine.refine`) and noise that is not of photons.
    """
    mask = torch.zeros_like(images, dtype=bool) if mask is None else mask
    images = images.masked_fill(mask, 0)
    known = isinstance(noise, Tensor)
    first = (noise if known else noise_map(recipe, noise, smoothed(images))).masked_fill(mask, torch.inf)
    begun = starts.starts(images, STARTS) if isinstance(starts, Templates) else dict(starts)
    fit = refine(recipe, images, begun, first, steps)
    last = first if known else noise_map(recipe, noise, fit.model).masked_fill(mask, torch.inf)
    return seen(SmoothModel(recipe), images, last, fit), fit


def seen(model: SmoothModel, images: Tensor, noise: Tensor, fit: Fit) -> Tensor:
    """`CHANNELS` [n, 4, h, w] of images [n, 1, h, w] with deviations `noise`, from fits of a model to them."""
    residual = (images - fit.model) / noise
    maps = mass_maps(model, fit, residual, noise)
    found = [images / noise, residual, maps.significance[:, None], UNIT_MASS * maps.sensitivity[:, None]]
    return torch.cat(found, 1)


def smoothed(images: Tensor) -> Tensor:
    """Means of 3 x 3 pixels, from which the noise of photons is judged before there is a fit."""
    return avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def write_residuals(
    data: DataSet, folder, templates: int = 16384, progress: bool = True, start: str = "search"
) -> DataSet:
    """Fit every image of a data set and write a new one of `CHANNELS`, at constant memory.

    With `start` "search", fits begin at the most alike of so many `templates`, as they must for images whose lenses are
    not known; with "truth", at the parameters that the images were drawn with: the same minimum in fewer steps, for
    images to train on.
    Its recipe is that of `data` with `SUFFIX` to its name, and its parameters gain fit_chi_square (for each degree of
    freedom), fit_good, fit_converged, fit_steps and what was fitted, as fit_<name>. A fit that failed is marked there,
    not left out.
    Raises what `fit_and_subtract` and `lenslib.dataset.write_dataset` raise.
    """
    if data.channels != 1 or not isinstance(data.recipe, Recipe):
        raise InputError(f"'{data.folder}' does not hold images of one lens in one band: simulate a set to fit")
    recipe = data.recipe.model_copy(update={"name": data.recipe.name + SUFFIX})
    if start not in BEGINNINGS:
        raise unknown("start of a fit", start, BEGINNINGS)
    index = int(data.params["index"].iloc[0])
    library = Templates(data.recipe, templates, progress=progress) if start == "search" else None
    batches = _fitted(data, library, progress)
    return write_batches(recipe, len(data), len(CHANNELS), batches, data.seed, folder, index, units="deviations")


def _fitted(data: DataSet, library: Templates | None, progress: bool) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    columns = {
        name: torch.from_numpy(data.params[name].to_numpy().copy()) for name in data.params.columns if name != "index"
    }
    with tqdm(total=len(data), desc=f"fit {data.recipe.name}", unit="image", disable=None if progress else True) as bar:
        for first in range(0, len(data), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            known = {name: value[rows] for name, value in columns.items()}
            images = torch.from_numpy(np.array(data.images[rows]))
            images, fit = fit_and_subtract(data.recipe, images, known, library or known)
            found = {"chi_square": fit.chi_square / fit.freedom, "good": fit.good, "converged": fit.converged}
            found |= {"steps": fit.steps} | fit.params
            yield images, known | {f"fit_{name}": value for name, value in found.items()}
            bar.update(len(images))
