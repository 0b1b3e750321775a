"""From a recipe to images: draw, shoot rays, add light, blur, expose.

A data set is cut into chunks of one fixed size, and each class of a chunk is rendered as one batch of fixed shape,
because vectorised kernels round differently for other shapes. So image i depends on the recipe, the seed and i alone.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lenslib.compilation import compiled
from lenslib.errors import InputError
from lenslib.instruments import NumpyNoise, TorchNoise, blur, convolve, convolve_dense
from lenslib.optics import companion_deflection, macro_deflection, pixel_grid, substructure_deflection
from lenslib.pictures import interpolated
from lenslib.recipe import Recipe
from lenslib.roulette_recipe import RouletteRecipe
from lenslib.sources import sersic, with_clumps


@dataclass
class Batch:
    """Simulated lenses.

    images: float32 [n, c, h, w], rows along +y and columns along +x, one channel a band of the recipe; flux a pixel,
        where `amp` is flux an arcsec^2; with noise, in the units of the recipe's instrument.
    labels: int64 [n], an index into `recipe.classes`.
    params: name to float32 [n], in lenstronomy's names; theta_E is that of all mass, lens_theta_E of the smooth lens.
    substructure: x, y, theta_E in arcsec, each float32 [n, k]; theta_E = 0 is an empty place. Where a population is not
        of point masses, what its profile needs besides (see `substructure_deflection`; 0 for the other classes).
    """

    images: Tensor
    labels: Tensor
    params: dict[str, Tensor]
    substructure: dict[str, Tensor]
    recipe: Recipe | RouletteRecipe = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def to_lenstronomy(self, i: int, channel: int = 0):
        """Lens and light model lists and keyword lists of image i for lenstronomy (see `lenslib.interop.Scene`)."""
        from lenslib.interop import lenstronomy_scene

        return lenstronomy_scene(self, i, channel)

    def to_autolens(self, i: int):
        """Image i's lens and source as a PyAutoLens `Tracer` (see `lenslib.interop.autolens_tracer`)."""
        from lenslib.interop import autolens_scene

        return autolens_scene(self, i)


def render(recipe: Recipe, params: dict[str, Tensor], points: dict[str, Tensor] | None = None) -> Tensor:
    """Noise-free images [n, c, h, w] of scenes: differentiable, on the device and in the precision of `params`.

    `params` as in `Batch.params`, `points` as for `substructure_deflection`; the point-spread function is applied.
    """
    return render_by(EAGER, recipe, params, points)


@torch.no_grad()
def render_compiled(recipe: Recipe, params: dict[str, Tensor], points: dict[str, Tensor] | None = None) -> Tensor:
    """As `render`, by the compiled kernels that draw data sets: quick for many calls of one shape, no gradients."""
    return render_by(_kernels(str(params["lens_theta_E"].device)), recipe, params, points)


@torch.no_grad()
def render_quickly(recipe: Recipe, params: dict[str, Tensor]) -> Tensor:
    """As `render_compiled`, but for last digits that depend on how many images there are."""
    kernels = _kernels(str(params["lens_theta_E"].device))
    return _expose(kernels._replace(blur=_dense), recipe, params, *_trace(kernels, recipe, params))


@torch.no_grad()
def render_moved(recipe: Recipe, params: dict[str, Tensor], count: int, bends: int) -> Tensor:
    """As `render_quickly`, of `count` scenes and of the same with one parameter after another moved, each
    [(1 + k) count]: the first `bends` of these move the lens or the shear, the others the light alone."""
    kernels = _kernels(str(params["lens_theta_E"].device))
    bent = {name: value[: (1 + bends) * count] for name, value in params.items()}
    straight = len(params["lens_theta_E"]) // count - 1 - bends
    # a source that moves leaves the rays where they are
    rays = [torch.cat([ray, ray[:count].repeat(straight, 1, 1)]) for ray in _trace(kernels, recipe, bent)]
    return _expose(kernels._replace(blur=_dense), recipe, params, *rays)


def is_compiled(device: str = "cpu") -> bool:
    """Whether images are drawn by compiled kernels, each for one number of images."""
    return _kernels(device).rays is not _rays


class Kernels(NamedTuple):
    """The costly functions, each compiled on its own: one that holds two of them would compute the rays anew for every
    use of them, or the light for every pixel of a point-spread function."""

    deflection: Callable
    rays: Callable
    light: Callable
    blur: Callable


def render_by(kernels: Kernels, recipe: Recipe, params: dict[str, Tensor], points=None) -> Tensor:
    """See `render`."""
    return _expose(kernels, recipe, params, *_trace(kernels, recipe, params, points))


def _trace(kernels: Kernels, recipe: Recipe, params, points=None) -> tuple[Tensor, Tensor]:
    return trace(recipe, params, *_drawn_grid(recipe, params), points, kernels)


def trace(recipe: Recipe, params, x: Tensor, y: Tensor, points=None, kernels=None) -> tuple[Tensor, Tensor]:
    """Where rays from (x, y) [h, w] end in the source plane, each [n, h, w]; all in arcsec. `params` and `points` as
    for `render`."""
    kernels, some = kernels or EAGER, params["lens_theta_E"]
    extra = kernels.deflection(points, x, y) if points else some.new_zeros(2, len(some), *x.shape)
    companions = tuple((name, group.count) for name, group in recipe.companions.items())
    return kernels.rays(params, *extra, x, y, recipe.lens.profile, companions)


def _expose(kernels: Kernels, recipe: Recipe, params, ray_x: Tensor, ray_y: Tensor) -> Tensor:
    """The light that rays find, blurred: [n, c, h, w]."""
    x, y = _drawn_grid(recipe, params)
    light = _shine(kernels, recipe, params, ray_x, ray_y, x, y)
    psfs, scale, pixels = recipe.psfs(), recipe.instrument.pixel_scale, recipe.instrument.pixels
    light = light * scale**2
    if len(set(psfs)) == 1:
        blurred = kernels.blur(light.flatten(0, 1), psfs[0], scale).view_as(light)
    else:
        channels = zip(light.unbind(1), psfs, strict=True)
        blurred = torch.stack([kernels.blur(channel, psf, scale) for channel, psf in channels], 1)
    margin = (len(x) - pixels) // 2
    return blurred[..., margin : margin + pixels, margin : margin + pixels]


def _shine(kernels: Kernels, recipe: Recipe, params, ray_x: Tensor, ray_y: Tensor, x: Tensor, y: Tensor) -> Tensor:
    pictures, pixel_scale = None, 0.0
    if recipe.source.profile == "picture":
        pictures, pixel_scale = recipe.source.in_bands(recipe.channels).to(ray_x), recipe.source.pixel_scale
    return kernels.light(params, ray_x, ray_y, x, y, tuple(recipe.bands or ()), pictures, pixel_scale)


def source_light(recipe: Recipe, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Brightness [n, c, h, w] of the source without a lens, at (x, y) [h, w] arcsec of the source plane: flux an
    arcsec^2."""
    alone = {name: value for name, value in params.items() if not name.startswith("lens_light_")}
    rays = (value.expand(len(params["lens_theta_E"]), *x.shape) for value in (x, y))
    return _shine(EAGER, recipe, alone, *rays, x, y)


def _drawn_grid(recipe: Recipe, params) -> tuple[Tensor, Tensor]:
    """Coordinates of an image, and of what wide wings of a point-spread function bring in from beyond its edge."""
    some, instrument = params["lens_theta_E"], recipe.instrument
    margin = instrument.psf.margin(instrument.pixel_scale)
    return _grid(instrument.pixels + 2 * margin, instrument.pixel_scale, some.device, some.dtype)


def _rays(params, extra_x, extra_y, x, y, profile, companions) -> tuple[Tensor, Tensor]:
    alpha_x, alpha_y = macro_deflection(params, x, y, profile)
    alpha_x, alpha_y = alpha_x + extra_x, alpha_y + extra_y
    for name, count in companions:
        more_x, more_y = companion_deflection(params, name, count, x, y)
        alpha_x, alpha_y = alpha_x + more_x, alpha_y + more_y
    return x - alpha_x, y - alpha_y


def _light(params, ray_x, ray_y, x, y, bands, pictures, pixel_scale) -> Tensor:
    if pictures is None:
        light = with_clumps(sersic(params, ray_x, ray_y), params, ray_x, ray_y)[:, None]
    else:
        light = interpolated(params, ray_x, ray_y, pictures, pixel_scale)
    light = _coloured(light, params, "source", bands)
    if "lens_light_amp" in params:
        light = light + _coloured(sersic(params, x, y, "lens_light")[:, None], params, "lens_light", bands)
    return light


def _coloured(light: Tensor, params, galaxy: str, bands) -> Tensor:
    """Light [n, 1 or c, h, w] in each band [n, c, h, w]."""
    if not bands:
        return light
    magnitudes = torch.stack([params[f"{galaxy}_colour_{band}"] for band in bands], 1)
    return light * (10 ** (-0.4 * magnitudes))[:, :, None, None]


# of the images of one class in a chunk, each part with noise of its own seed
NOISE_PARTS = 4
_AMPLITUDES = {"amp", "lens_light_amp"}
EAGER = Kernels(substructure_deflection, _rays, _light, blur)
_dense = partial(blur, by=convolve_dense)
_grid = lru_cache(pixel_grid)


@lru_cache
def _kernels(device: str) -> Kernels:
    """The costly functions, compiled where a compiler is at hand."""
    costly = (compiled(function, device) for function in (*EAGER[:-1], convolve))
    kernels = Kernels(*costly)
    kernels = kernels._replace(blur=partial(blur, by=kernels.blur))
    if device.startswith("cuda") or kernels.deflection is substructure_deflection:
        return kernels

    def any_number(points, x, y):
        # one kernel for populations of any size
        for value in points.values():
            torch._dynamo.maybe_mark_dynamic(value, 1)
        return kernels.deflection(points, x, y)

    return kernels._replace(deflection=any_number)


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
def _chunk(recipe: Recipe | RouletteRecipe, seed: int, chunk: int, device: str, noise: bool) -> Batch:
    if recipe.kind == "roulette":
        images, params = recipe.chunk(seed, chunk, device, noise)
        return Batch(images, torch.zeros(len(images), dtype=torch.int64, device=device), params, {}, recipe)
    labels, drawn, populations = recipe.draw(seed, chunk)
    tensor = partial(torch.as_tensor, dtype=torch.float32, device=device)
    params = {name: tensor(value) for name, value in drawn.items()}
    most = max((part["x"].shape[1] for part in populations.values()), default=0)
    names = {"x", "y", "theta_E"}.union(*populations.values()) - {"mass"}
    substructure = {name: torch.zeros(len(labels), most, device=device) for name in sorted(names)}
    pixels = recipe.instrument.pixels
    images = torch.empty(len(labels), recipe.channels, pixels, pixels, device=device)
    classes = [torch.from_numpy(np.flatnonzero(labels == label)).to(device) for label in range(len(recipe.classes))]
    for mine, name in zip(classes, recipe.classes, strict=True):
        scenes, points = {key: value[mine] for key, value in params.items()}, None
        if name in populations:
            points = as_points(populations[name], tensor)
            for key, value in points.items():
                substructure[key][mine, : value.shape[1]] = value
        images[mine] = _expose_to_scale(recipe, scenes, points, device)
        if noise and device == "cpu":
            _compile_draws()
        for key in _AMPLITUDES & params.keys():
            params[key][mine] = scenes[key]
    if noise:
        _add_noise(recipe, images, params, classes, [seed, chunk], device)
        if recipe.instrument.divide_by_peak:
            images = images.clamp(min=0)
            images /= images.amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
    return Batch(images, torch.as_tensor(labels, device=device), params, substructure, recipe)


def as_points(pieces: dict[str, np.ndarray], tensor=None) -> dict[str, Tensor]:
    """What `Recipe.draw` says of a population, as `substructure_deflection` takes it (float32, but for `tensor`)."""
    tensor = tensor or partial(torch.as_tensor, dtype=torch.float32)
    points = {name: tensor(value) for name, value in pieces.items() if name != "mass"}
    return points | {"theta_E": tensor(pieces["mass"]).sqrt()}


def _expose_to_scale(recipe, scenes, points, device) -> Tensor:
    """Noise-free images of one class; its amplitudes are set where the instrument fixes the signal-to-noise."""
    images = render_by(_kernels(device), recipe, scenes, points)
    factor = recipe.instrument.noise.scale(images, scenes)
    if factor is None:
        return images
    brighten(scenes, factor)
    return images * factor[:, None, None, None]


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
        images[mine] = recipe.instrument.noise.add(images[mine], scenes, source)

    # numpy draws with the interpreter's lock released: parts of a chunk are exposed side by side, cores kept busy
    parts = [(label, k, mine) for label, rows in enumerate(classes) for k, mine in enumerate(rows.chunk(NOISE_PARTS))]
    list(_threads().map(lambda part: expose(*part), parts))


@lru_cache
def _compile_draws() -> None:
    """Begin to make `lenslib.draws` ready, on a core that is idle while the next of the kernels is compiled."""

    def draw() -> None:
        from lenslib.draws import fill_normal, fill_poisson

        rng, numbers = np.random.default_rng(), np.ones(1, np.float32)
        fill_normal(rng, numbers)
        fill_poisson(rng, np.ones(1, np.float32), numbers)

    _threads().submit(draw)


@lru_cache
def _threads() -> ThreadPoolExecutor:
    """Kept, because every new thread takes memory that it does not give back."""
    return ThreadPoolExecutor(os.cpu_count())
