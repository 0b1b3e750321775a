"""From a recipe to images: draw, shoot rays, add light, blur, expose.

A data set is cut into chunks of one fixed size, and each class of a chunk is rendered as one batch of fixed shape,
because vectorised kernels round differently for other shapes. So image i depends on the recipe, the seed and i alone.
"""

import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lenslib.errors import InputError
from lenslib.instruments import NumpyNoise, TorchNoise, convolve
from lenslib.optics import macro_deflection, pixel_grid, point_mass_deflection
from lenslib.recipe import Recipe
from lenslib.sources import sersic

# compiling for a processor mentions, at length, that there is no accelerator
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@dataclass
class Batch:
    """Simulated lenses.

    images: float32 [n, c, h, w], rows along +y and columns along +x; flux a pixel, where `amp` is
        flux an arcsec^2; with noise, in the units of the recipe's instrument.
    labels: int64 [n], an index into `recipe.classes`.
    params: name to float32 [n], in lenstronomy's names; theta_E is that of all mass, lens_theta_E of the smooth lens.
    substructure: x, y, theta_E in arcsec, each float32 [n, k]; theta_E = 0 is an empty place.
    """

    images: Tensor
    labels: Tensor
    params: dict[str, Tensor]
    substructure: dict[str, Tensor]
    recipe: Recipe = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def to_lenstronomy(self, i: int):
        """Lens and light model lists and keyword lists of image i for lenstronomy (see `lenslib.interop.Scene`)."""
        from lenslib.interop import lenstronomy_scene

        return lenstronomy_scene(self, i)

    def to_autolens(self, i: int):
        """Image i's lens and source as a PyAutoLens `Tracer` (see `lenslib.interop.autolens_tracer`)."""
        from lenslib.interop import autolens_scene

        return autolens_scene(self, i)


def render(recipe: Recipe, params: dict[str, Tensor], points: dict[str, Tensor] | None = None) -> Tensor:
    """Noise-free images [n, h, w] of scenes: differentiable, on the device and in the precision of `params`.

    `params` as in `Batch.params`, `points` as in `Batch.substructure`; the point-spread function is applied.
    """
    return _render(recipe, params, points, *EAGER)


def _render(recipe, params, points, scene, deflection, blur) -> Tensor:
    some, instrument = params["lens_theta_E"], recipe.instrument
    x, y = _grid(instrument.pixels, instrument.pixel_scale, some.device, some.dtype)
    alpha = (
        deflection(points["x"], points["y"], points["theta_E"], x, y) if points else torch.zeros(2, 1, 1, 1).to(some)
    )
    light = scene(params, *alpha, x, y, recipe.lens.profile) * instrument.pixel_scale**2
    return blur(light, instrument.psf.profiles(instrument.pixel_scale))


def _scene(params, extra_x, extra_y, x, y, profile) -> Tensor:
    alpha_x, alpha_y = macro_deflection(params, x, y, profile)
    light = sersic(params, x - alpha_x - extra_x, y - alpha_y - extra_y)
    return light + sersic(params, x, y, "lens_light") if "lens_light_amp" in params else light


# of the images of one class in a chunk, each part with noise of its own seed
NOISE_PARTS = 4
_AMPLITUDES = {"amp", "lens_light_amp"}
EAGER = _scene, point_mass_deflection, convolve
_grid = lru_cache(pixel_grid)


@lru_cache
def _kernels(device: str):
    """The costly functions, compiled where a compiler is at hand."""
    if device.startswith("cuda") or shutil.which("g++") or shutil.which("clang++"):
        return tuple(torch.compile(function, dynamic=False) for function in EAGER)
    return EAGER


def sample(recipe, count, seed=0, start=0, device="cpu", noise=True, progress=False) -> Batch:
    """See `Recipe.sample`."""
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}")
    batches = list(sample_chunks(recipe, count, seed, start, device, noise, progress))
    return Batch(
        images=torch.cat([batch.images for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        params={name: torch.cat([batch.params[name] for batch in batches]) for name in batches[0].params},
        substructure={
            name: torch.cat([batch.substructure[name] for batch in batches]) for name in batches[0].substructure
        },
        recipe=recipe,
    )


def sample_chunks(recipe, count, seed=0, start=0, device="cpu", noise=True, progress=False) -> Iterator[Batch]:
    """The same images as `sample`, a chunk at a time, at constant memory."""
    for name, value in (("count", count), ("seed", seed), ("start", start)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name} must be a whole number of at least 0, not {value!r}")
    size = recipe.chunk_size
    with tqdm(total=count, desc=f"simulate {recipe.name}", unit="image", disable=None if progress else True) as bar:
        for chunk in range(start // size, -(-(start + count) // size)):
            first, last = max(start - chunk * size, 0), min(start + count - chunk * size, size)
            yield _slice(_chunk(recipe, seed, chunk, str(device), noise), first, last)
            bar.update(last - first)


def _slice(batch: Batch, first: int, last: int) -> Batch:
    cut = slice(first, last)
    return Batch(
        images=batch.images[cut],
        labels=batch.labels[cut],
        params={name: value[cut] for name, value in batch.params.items()},
        substructure={name: value[cut] for name, value in batch.substructure.items()},
        recipe=batch.recipe,
    )


@torch.no_grad()
def _chunk(recipe: Recipe, seed: int, chunk: int, device: str, noise: bool) -> Batch:
    labels, drawn, populations = recipe.draw(seed, chunk)
    tensor = partial(torch.as_tensor, dtype=torch.float32, device=device)
    params = {name: tensor(value) for name, value in drawn.items()}
    most = max((part["x"].shape[1] for part in populations.values()), default=0)
    substructure = {name: torch.zeros(len(labels), most, device=device) for name in ("x", "y", "theta_E")}
    pixels = recipe.instrument.pixels
    images = torch.empty(len(labels), 1, pixels, pixels, device=device)
    classes = [torch.from_numpy(np.flatnonzero(labels == label)).to(device) for label in range(len(recipe.classes))]
    for mine, name in zip(classes, recipe.classes, strict=True):
        scenes, points = {key: value[mine] for key, value in params.items()}, None
        if name in populations:
            part = populations[name]
            points = {"x": tensor(part["x"]), "y": tensor(part["y"]), "theta_E": tensor(part["mass"]).sqrt()}
            for key, value in points.items():
                substructure[key][mine, : value.shape[1]] = value
        images[mine, 0] = _expose_to_scale(recipe, scenes, points, device)
        for key in _AMPLITUDES & params.keys():
            params[key][mine] = scenes[key]
    if noise:
        _add_noise(recipe, images, params, classes, [seed, chunk], device)
    return Batch(images, torch.as_tensor(labels, device=device), params, substructure, recipe)


def _expose_to_scale(recipe, scenes, points, device) -> Tensor:
    """Noise-free images of one class; its amplitudes are set where the instrument fixes the signal-to-noise."""
    images = _render(recipe, scenes, points, *_kernels(device))
    factor = recipe.instrument.noise.scale(images, scenes)
    if factor is None:
        return images
    brighten(scenes, factor)
    return images * factor[:, None, None]


def brighten(params: dict[str, Tensor], factor: Tensor) -> None:
    """Multiply every amplitude in `params` by `factor` [n]."""
    for key in _AMPLITUDES & params.keys():
        params[key] = params[key] * factor


def _add_noise(recipe, images, params, classes, key, device) -> None:
    def expose(label: int, part: int, mine: Tensor) -> None:
        seeds = np.random.SeedSequence([*key, label, part, zlib.crc32(b"noise")])
        if device == "cpu":
            source = NumpyNoise(np.random.default_rng(seeds))
        else:
            source = TorchNoise(int(seeds.generate_state(1, np.uint64)[0] >> 1), device)
        scenes = {name: value[mine] for name, value in params.items()}
        images[mine, 0] = recipe.instrument.noise.add(images[mine, 0], scenes, source)

    # numpy draws with the interpreter's lock released: parts of a chunk are exposed side by side, cores kept busy
    parts = [(label, k, mine) for label, rows in enumerate(classes) for k, mine in enumerate(rows.chunk(NOISE_PARTS))]
    list(_threads().map(lambda part: expose(*part), parts))


@lru_cache
def _threads() -> ThreadPoolExecutor:
    """Kept, because every new thread takes memory that it does not give back."""
    return ThreadPoolExecutor(os.cpu_count())
