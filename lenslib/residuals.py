"""What a smooth lens leaves of an image, beside the image: what a network that looks for substructure should see.

write_residuals(open_dataset("data/train"), "data/train_residual")    # images [n, 2, h, w]
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from lenslib.dataset import DataSet, write_batches
from lenslib.errors import InputError
from lenslib.recipe import Recipe
from lenslib.refine import Fit, Templates, noise_map, refine

# images that are fitted before their residuals are written
_AT_ONCE = 96
# of a search: the best few templates are tried in turn
STARTS = 2
# what the names of a recipe of residuals end in
SUFFIX = "_residual"


def image_and_residual(
    recipe: Recipe, images: Tensor, exposures: Mapping[str, Tensor], templates: Templates, starts: int = STARTS
) -> tuple[Tensor, Fit]:
    """Images [n, 1, h, w] and their residuals in standard deviations of the noise, [n, 2, h, w], and the fits.

    `exposures` are what an observer knows: background_rms and exposure_time, each [n]. The fit is weighted by noise
    that is judged from the smoothed image, the residual by that of the fitted model.
    Raises InputError for images that cannot be fitted (see `lenslib.refine.refine`) and noise that is not of photons.
    """
    smoothed = avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    fit = refine(recipe, images, noise_map(recipe, exposures, smoothed), templates.starts(images, starts))
    noise = noise_map(recipe, exposures, fit.model)
    return torch.cat([images, images - fit.model], 1) / noise, fit


def write_residuals(data: DataSet, folder, templates: int = 16384, progress: bool = True) -> DataSet:
    """Fit every image of a data set and write a new one of images and residuals, at constant memory.

    Its recipe is that of `data` with `SUFFIX` to its name, and its parameters gain fit_chi_square (for each degree of
    freedom), fit_good, fit_steps and what was fitted, as fit_<name>. A fit that failed is marked there, not left out.
    Raises what `image_and_residual` and `lenslib.dataset.write_dataset` raise.
    """
    if data.channels != 1 or not isinstance(data.recipe, Recipe):
        raise InputError(f"'{data.folder}' does not hold images of one lens in one band: simulate a set to fit")
    recipe = data.recipe.model_copy(update={"name": data.recipe.name + SUFFIX})
    start = int(data.params["index"].iloc[0])
    batches = _fitted(data, templates, progress)
    return write_batches(recipe, len(data), 2, batches, data.seed, folder, start)


def _fitted(data: DataSet, templates: int, progress: bool) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    library = Templates(data.recipe, templates, progress=progress)
    columns = {
        name: torch.from_numpy(data.params[name].to_numpy().copy()) for name in data.params.columns if name != "index"
    }
    with tqdm(total=len(data), desc=f"fit {data.recipe.name}", unit="image", disable=None if progress else True) as bar:
        for first in range(0, len(data), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            known = {name: value[rows] for name, value in columns.items()}
            images, fit = image_and_residual(data.recipe, torch.from_numpy(np.array(data.images[rows])), known, library)
            found = {"chi_square": fit.chi_square / fit.freedom, "good": fit.good, "steps": fit.steps} | fit.params
            yield images, known | {f"fit_{name}": value for name, value in found.items()}
            bar.update(len(images))
