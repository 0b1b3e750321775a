"""The lens undone: what the source looks like without it, from the image and a lens that was fitted to it."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from lenslib import roulettes
from lenslib.errors import InputError
from lenslib.optics import macro_deflection, pixel_grid
from lenslib.recipe import Recipe
from lenslib.refine import GALAXY, SHAPE, check_images
from lenslib.roulette_images import axes, gaussian
from lenslib.roulette_recipe import missing
from lenslib.simulate import render
from lenslib.sources import sersic

# pixels a side of the windows in which two pictures are compared
_WINDOW = 11


def delens(recipe, images: Tensor, params: dict[str, Tensor], width: float, pixels: int = 64) -> Tensor:
    """Sources [n, 1, pixels, pixels] on squares of side `width` (pixels of a roulette recipe, else arcsec) about the
    sources' centres: brightness as in the image, for other recipes flux an arcsec^2.

    Every pixel of the image [n, 1, h, w] is followed back through the lens in `params` (of a `Fit` or `Batch`), which
    conserves its brightness, and shared among the four nearest pixels of the source; where none ends, the source is not
    seen and NaN. Of a recipe with lens light, that of `params` is taken off first. Noise and blurring stay. InputError
    for images of the wrong size, of one brightness or that are not finite, for a width or a number of pixels that is
    not positive or not whole, for params that are missing, not finite or of another number of images, and for lenses
    with companions.
    """
    check_images(recipe, images)
    if not width > 0 or not isinstance(pixels, int) or pixels < 2:
        raise InputError(f"a source needs a width above 0 and 2 pixels or more, not {width!r} and {pixels!r}")
    _check_params(recipe, params, len(images))
    x, y, seen = _rays(recipe, params)
    if isinstance(recipe, Recipe):
        images = (images - _lens_light(recipe, params)) / recipe.instrument.pixel_scale**2
    column, row = (part * (pixels / width) + (pixels - 1) / 2 for part in (x, y))
    total, weight = (images.new_zeros(len(images), pixels * pixels) for _ in range(2))
    left, below = torch.floor(column), torch.floor(row)
    for right in (0, 1):
        for up in (0, 1):
            at_column, at_row = left + right, below + up
            share = (1 - (column - at_column).abs()) * (1 - (row - at_row).abs()) * seen
            share = share * ((at_column >= 0) & (at_column < pixels) & (at_row >= 0) & (at_row < pixels))
            index = (at_row.clamp(0, pixels - 1) * pixels + at_column.clamp(0, pixels - 1)).long().flatten(1)
            weight.scatter_add_(1, index, share.flatten(1).to(weight))
            total.scatter_add_(1, index, (share * images[:, 0]).flatten(1).to(total))
    found = torch.where(weight > 1e-3, total / weight.clamp(min=1e-3), torch.nan)
    return found.view(-1, 1, pixels, pixels)


def likeness(found: Tensor, truth: Tensor, peak: float) -> tuple[Tensor, Tensor]:
    """Peak signal-to-noise ratio in dB and structural similarity (Wang et al. 2004, IEEE Trans. Image Process. 13, 600)
    of sources [n, 1, h, w] and the true ones, [n] each; `peak` is the largest brightness there can be.

    Pixels of `found` that are NaN, which no ray reaches, do not count; for the similarity, which compares windows
    of 11 pixels, neither do those beside them, nor the rim. NaN where nothing is left.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    seen = found.isfinite()
    filled = torch.where(seen, found, 0.0)
    square = torch.where(seen, (filled - truth) ** 2, 0.0).sum((1, 2, 3)) / seen.sum((1, 2, 3))
    _, local = structural_similarity_index_measure(
        filled, torch.where(seen, truth, 0.0), data_range=peak, reduction="none", return_full_image=True
    )
    edge = _WINDOW // 2
    whole = -max_pool2d(-seen.float(), _WINDOW, 1)
    local = local[..., edge:-edge, edge:-edge]
    similarity = (local * whole).sum((1, 2, 3)) / whole.sum((1, 2, 3))
    return 10 * torch.log10(peak**2 / square.clamp(min=1e-6)), similarity


def true_source(recipe, params: dict[str, Tensor], width: float, pixels: int = 64) -> Tensor:
    """Sources [n, 1, pixels, pixels] as the recipe draws them, on the squares of `delens`."""
    steps = (torch.arange(pixels) - (pixels - 1) / 2) * (width / pixels)
    x, y = (part.expand(len(next(iter(params.values()))), -1, -1) for part in (steps[None], steps[:, None]))
    planes = {name: value[:, None, None] for name, value in params.items() if value.ndim == 1}
    if not isinstance(recipe, Recipe):
        return gaussian(planes, x, y)[:, None]
    x, y = x + planes["source_center_x"], y + planes["source_center_y"]
    return sersic(params, x, y)[:, None]


def _check_params(recipe, params: dict[str, Tensor], count: int) -> None:
    """InputError for params of which the lens or the source's place is missing, not finite or not [count]."""
    if isinstance(recipe, Recipe):
        names = (*recipe.lens.parameters, "source_center_x", "source_center_y")
    else:
        names = ("x", "y", "einstein_radius", *(("axis_ratio", "orientation") if recipe.lens.profile == "sie" else ()))
    missing(params, names)
    for name in names:
        if params[name].shape != (count,):
            raise InputError(f"{name} has shape {tuple(params[name].shape)}: {count} images need [{count}]")
        if not params[name].isfinite().all():
            raise InputError(f"{name} is not a finite number in every image")


@torch.no_grad()
def _lens_light(recipe: Recipe, params: dict[str, Tensor]) -> Tensor | float:
    """What the lens galaxy shines into the images, [n, 1, h, w], through the telescope."""
    if recipe.lens_light is None:
        return 0.0
    missing(params, tuple(f"lens_light_{name}" for name in (*GALAXY, *SHAPE)))
    return render(recipe, params | {"amp": torch.zeros_like(params["amp"])})


def _rays(recipe, params: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rays of all pixels [n, h, w] meet the source plane, from the source's centre, and if they count."""
    planes = {name: value[:, None, None] for name, value in params.items()}
    if isinstance(recipe, Recipe):
        if recipe.companions:
            raise InputError(f"{recipe.name}: lenses with companions are not undone here")
        x, y = pixel_grid(recipe.instrument.pixels, recipe.instrument.pixel_scale)
        pull_x, pull_y = macro_deflection(params, x, y, recipe.lens.profile)
        away = x - pull_x - planes["source_center_x"], y - pull_y - planes["source_center_y"]
        return *away, torch.ones_like(away[0])
    planes.setdefault("chi", torch.full_like(planes["x"], float(recipe.sampling.chi[0])))
    x, y = axes(recipe.instrument.pixels, params["x"])
    x, y = x + planes.get("centre_x", 0), y + planes.get("centre_y", 0)
    pull_x, pull_y = roulettes.deflection(recipe.lens.profile, planes, x, y)
    seen = torch.ones_like(pull_x)
    if recipe.instrument.masked:
        nu = roulettes.image_position(recipe.lens.profile, planes)
        seen = roulettes.converges(recipe.lens.profile, planes, nu, x, y).to(seen)
    return x - pull_x - planes["x"], y - pull_y - planes["y"], seen
