"""The camera of roulette recipes: images by the thousand, computed where there can be light, centred, cropped, in whole
grey levels. Its light is that of `lenslib.roulette_images`.
"""

import zlib
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lenslib import roulettes
from lenslib.compilation import compiled
from lenslib.errors import InputError
from lenslib.roulette_images import light
from lenslib.roulette_recipe import REACH, RouletteRecipe

# a window's sides are multiples of this: no loop over a row has a rest, which would be rounded differently
_BLOCK = 32
# pixels beyond the light's reach that a lookup may take it
_MARGIN = 3


def centre_of_light(image: Tensor) -> tuple[float, float]:
    """Column and row of the centre of light of an image [h, w]; InputError for an image without light or with NaN."""
    if image.ndim != 2:
        raise InputError(f"an image must have the shape [h, w], not {list(image.shape)}")
    if not torch.isfinite(image).all():
        raise InputError("an image with pixels that are not finite numbers has no centre of light")
    return _centre(image.double().sum(0), image.double().sum(1))


def _centre(columns: Tensor, rows: Tensor) -> tuple[float, float]:
    columns, rows = columns.double(), rows.double()
    total = float(columns.sum())
    if total == 0:
        raise InputError("an image that is all zero has no centre of light")
    steps = torch.arange(max(len(columns), len(rows)), dtype=torch.float64, device=rows.device)
    return float(columns @ steps[: len(columns)]) / total, float(rows @ steps[: len(rows)]) / total


def crop(image: Tensor, left: int, bottom: int, pixels: int) -> Tensor:
    """The square [pixels, pixels] of an image [h, w] that begins at column `left` and row `bottom`, which may lie
    outside; there is no light there. InputError for a square of no pixels or larger than the image."""
    height, width = image.shape[-2:]
    if not 0 < pixels <= min(height, width):
        raise InputError(f"cannot crop {pixels} x {pixels} pixels out of {width} x {height}")
    return _paste(image, left, bottom, pixels)


def _paste(image: Tensor, left: int, bottom: int, pixels: int) -> Tensor:
    height, width = image.shape[-2:]
    cut = image.new_zeros(pixels, pixels)
    rows, columns = range(max(bottom, 0), min(bottom + pixels, height)), range(max(left, 0), min(left + pixels, width))
    if rows and columns:
        part = image[rows.start : rows.stop, columns.start : columns.stop]
        cut[rows.start - bottom : rows.stop - bottom, columns.start - left : columns.stop - left] = part
    return cut


def _levels(recipe: RouletteRecipe, params: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Light at x [1, side] and y [side, 1], none beyond the frame, and sums of its whole grey levels down columns and
    along rows: whole numbers small enough to be exact in whatever order."""
    lookup, half = recipe.instrument.lookup, recipe.instrument.frame // 2
    if lookup == "turned":
        found = _turned(recipe, params, x, y)
    else:
        found = light(recipe, params, x, y, lookup).reshape(y.shape[0], x.shape[1])
    # where an unmasked series is larger than any number there is no light
    found = torch.where((x < half) & (y <= half) & torch.isfinite(found), found, 0.0)
    levels = torch.round(found)
    return found, levels.sum(0), levels.sum(1)


def _turned(recipe: RouletteRecipe, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The image drawn with the source on the x axis, in whole grey levels, and turned into place by interpolation."""
    radius = torch.sqrt(params["x"] ** 2 + params["y"] ** 2)
    cos, sin = params["x"] / radius, params["y"] / radius
    flat = {"x": radius, "y": 0 * radius, "theta": params["theta"] - torch.rad2deg(torch.atan2(sin, cos))}
    nu, nu_flat = (roulettes.image_position(recipe.lens.profile, part) for part in (params, params | flat))
    side = x.shape[1]
    # the same window about where the image is on the axis
    left, bottom = torch.floor(nu_flat[0]) - side // 2, -(side // 2)
    steps = torch.arange(side, dtype=x.dtype, device=x.device)
    there = light(recipe, params | flat, (steps + left)[None, :], (steps + bottom)[:, None], "turned")
    there = torch.round(there.reshape(side, side))
    column, row = x * cos + y * sin - left, y * cos - x * sin - bottom
    first_column, first_row = torch.floor(column), torch.floor(row)
    right, up = column - first_column, row - first_row
    columns = first_column.long().clamp(0, side - 2)
    rows = first_row.long().clamp(0, side - 2)
    inside = (column >= 0) & (column < side - 1) & (row >= 0) & (row < side - 1)
    below = (1 - right) * there[rows, columns] + right * there[rows, columns + 1]
    above = (1 - right) * there[rows + 1, columns] + right * there[rows + 1, columns + 1]
    return ((1 - up) * below + up * above) * inside


@lru_cache
def _kernel(device: str, eager: bool):
    """`_levels`, compiled for windows of any size where a compiler is at hand, unless it has complex numbers.

    For one core: a window is done in a millisecond, and cores that meet that often mostly wait for each other.
    """
    if eager:
        return _levels
    return compiled(_levels, device, dynamic=True, **({"cpp.threads": 1} if device == "cpu" else {}))


@contextmanager
def _one_thread():
    """Torch's own loops on one core: see `_kernel`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@_one_thread()
def draw_images(recipe: RouletteRecipe, drawn: dict[str, np.ndarray], key: list[int], device: str, noise: bool):
    """Images [n, 1, pixels, pixels] (float32) of drawn parameters, and params with the places of their middles.

    Every image is computed on a window of its own, whose size depends on its parameters alone; light below half a grey
    level may be left out. Without `noise`, images are neither noisy nor rounded.
    InputError for a scene that has no image (see `RouletteRecipe.check`), such as a source that reaches the mask.
    """
    recipe.check({name: torch.from_numpy(value) for name, value in drawn.items()})
    params = {name: torch.as_tensor(value, dtype=torch.float32, device=device) for name, value in drawn.items()}
    count, pixels = len(params["x"]), recipe.instrument.pixels
    params |= {name: torch.zeros(count, device=device) for name in ("centre_x", "centre_y")}
    images = torch.empty(count, 1, pixels, pixels, device=device)
    kernel = _kernel(device, recipe.lens.model == "roulette" and recipe.lens.profile == "sie")
    for i, (left, bottom, side) in enumerate(_windows(recipe, params)):
        steps = torch.arange(side, dtype=torch.float32, device=device)
        one = {name: value[i] for name, value in params.items()}
        window, columns, rows = kernel(recipe, one, (steps + left)[None, :], (steps + bottom)[:, None])
        middle_x = middle_y = 0
        if recipe.instrument.centring == "whole":
            column, row = _centre(columns, rows)
            middle_x, middle_y = round(column + left), round(row + bottom)
            params["centre_x"][i], params["centre_y"][i] = middle_x, middle_y
        images[i, 0] = _paste(window, middle_x - pixels // 2 - left, middle_y - pixels // 2 + 1 - bottom, pixels)
    if not noise:
        return images, params
    if recipe.instrument.noise_sd:
        rng = np.random.default_rng([*key, zlib.crc32(b"noise")])
        grain = rng.standard_normal(images.shape, dtype=np.float32)
        images += recipe.instrument.noise_sd * torch.from_numpy(grain).to(device)
    return images.round_().clamp_(0, 255), params


def _windows(recipe: RouletteRecipe, params: dict[str, Tensor]) -> list[tuple[int, int, int]]:
    """First column and row (from the lens) and side of the square where each image can have light."""
    b, half = roulettes.ring_radius(params).abs(), recipe.instrument.frame // 2
    middle = torch.zeros_like(b), torch.zeros_like(b)
    if recipe.instrument.masked:
        middle = roulettes.image_position(recipe.lens.profile, params)
        reach = torch.hypot(*middle)
    elif recipe.lens.model == "raytrace":
        source = torch.hypot(params["x"], params["y"]) + REACH * torch.maximum(params["sigma1"], params["sigma2"])
        # no ellipsoid deflects by more than 1.1 b
        reach = source / 2 + torch.sqrt(source**2 / 4 + b**2) if recipe.lens.profile == "pm" else source + 1.1 * b
    else:
        # a series that is not masked has ghosts anywhere
        reach = torch.full_like(b, 2 * half)
    found = []
    for x, y, r in zip(*(value.tolist() for value in (*middle, reach)), strict=True):
        left, bottom = (max(int(np.floor(place - r)) - _MARGIN, edge) for place, edge in ((x, -half), (y, 1 - half)))
        right, top = (min(int(np.ceil(place + r)) + _MARGIN, edge) for place, edge in ((x, half - 1), (y, half)))
        found.append((left, bottom, -(-(max(right - left, top - bottom) + 1) // _BLOCK) * _BLOCK))
    return found
