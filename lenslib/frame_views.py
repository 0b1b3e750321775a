"""Frames on a recipe's pixels, and lenses that the recipe draws as these frames would show them.

views = [view_of(frame, light, recipe) for frame, light in ...]
images, params, which = draw_like(recipe, views, 1000, seed=1)

What is drawn goes through a frame's own point-spread function, and gets its noise: the photons of its sky and its lens
galaxy, what the galaxy's model misses, the grain that drizzling leaves, and the pixels that the frame lacks.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import binary_dilation, uniform_filter
from torch import Tensor

from lenslib.errors import InputError
from lenslib.fit_classify import with_psf
from lenslib.frames import Frame, to_recipe_grid
from lenslib.lens_light import LensLight
from lenslib.recipe import PER_CLASS, Recipe, load_recipe
from lenslib.refine import SLOTS
from lenslib.residuals import smoothed
from lenslib.ringfit import DRIZZLE, LIGHT_ERROR, OUTER, binned, binned_psf, intruders
from lenslib.simulate import brighten, render_quickly

# pixels as those on which rings are fitted: half the work of a row, a quarter of that of an image
PIXELS, PIXEL_SCALE = 50, 0.1
# arcsec: within it, what is left of a galaxy is mostly misfit; beyond the other, the sky is empty or nearly so
CORE, SKY = 0.25, 2.0
# of `matched_hst`, what is drawn otherwise: sources down to the small and the steep, with knots, and frames' own noise
_LIKE_FRAMES = {
    "name": "matched_frames",
    "title": "Mass-matched lenses through the Hubble frames' own kernels and noise",
    "instrument.pixels": PIXELS,
    "instrument.pixel_scale": PIXEL_SCALE,
    "instrument.noise.peak_snr": {"log_uniform": [8.0, 60.0]},
    "source.R_sersic": {"log_uniform": [0.04, 0.35]},
    "source.n_sersic": {"uniform": [0.6, 3.0]},
    "source.clumps": {
        "count": 3,
        "share": {"uniform": [0.0, 0.3]},
        "R_sersic": {"log_uniform": [0.02, 0.1]},
        "distance": {"uniform": [0.0, 2.0]},
    },
}
# offsets, in pixels, over which noise is correlated
_GRAIN = 3


@dataclass(frozen=True)
class View:
    """A frame without its galaxy on a recipe's pixels, centred on that galaxy to half a pixel of the frame.

    image, noise: float32 [1, h, w], counts/s a pixel; noise is the deviation where there are no arcs (see `deviation`).
    mask: bool [1, h, w], true where a pixel does not count. kernel: [k, k], the point-spread function between pixels.
    exposure_time: s. grain: [7, 7], the correlation of the noise of pixels up to 3 apart.
    """

    name: str
    image: Tensor
    noise: Tensor
    mask: Tensor
    kernel: np.ndarray
    exposure_time: float
    grain: np.ndarray

    def deviation(self, arcs: Tensor) -> Tensor:
        """Of the noise on arcs [n, 1, h, w] of that brightness, same shape."""
        return torch.sqrt(self.noise**2 + DRIZZLE * arcs.clamp(min=0) / self.exposure_time)

    @property
    def own_deviation(self) -> Tensor:
        """Of the frame's own arcs, [1, 1, h, w], judged from the smoothed image."""
        return self.deviation(smoothed(self.image[None]))

    @property
    def sky(self) -> float:
        """Deviation of a pixel of empty sky, counts/s."""
        return float(self.noise.median())


def like_frames() -> Recipe:
    """`matched_hst` on pixels of 0.1 arcsec with sources of more kinds; its instrument's kernel and noise give way to
    those of a `View`."""
    return load_recipe("matched_hst", _LIKE_FRAMES)


def view_of(frame: Frame, light: LensLight, recipe: Recipe) -> View:
    """A frame as the recipe's pixels show it. InputError where these are finer than the frame's."""
    pixels, scale = recipe.instrument.pixels, recipe.instrument.pixel_scale
    block = round(scale / frame.pixel_scale)
    if not block or abs(scale / frame.pixel_scale / block - 1) > 0.01:
        raise InputError(
            f"{frame.name}: its pixels of {frame.pixel_scale:.4g} arcsec do not make up those of {scale:.4g}"
        )
    light = replace(light, good=light.good & ~intruders(frame, light))
    size, fine = pixels * block, frame.pixel_scale
    grid = to_recipe_grid(frame, light, size, fine, core=CORE)
    galaxy = to_recipe_grid(frame, replace(light, residual=light.model, good=np.ones_like(light.good)), size, fine)
    galaxy = np.where(galaxy.covered, galaxy.image, 0).clip(min=0)
    exposure = float(np.median(frame.exposure_time))
    variance = DRIZZLE * binned(frame.background_rms**2 + galaxy / exposure, block)
    noise = np.sqrt(variance + (LIGHT_ERROR * binned(galaxy, block)) ** 2)
    y, x = (np.indices((pixels, pixels)) - (pixels - 1) / 2) * scale
    radius, image = np.hypot(x, y), binned(grid.image, block)
    covered = binned(grid.covered.astype(float), block) > block**2 - 0.5
    return View(
        name=frame.name,
        image=_tensor(image)[None],
        noise=_tensor(noise)[None],
        mask=torch.from_numpy(~covered | (radius > OUTER))[None],
        kernel=binned_psf(frame.psf, block),
        exposure_time=exposure,
        grain=correlation(image / noise, covered & (radius > SKY)),
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


def correlation(z: np.ndarray, quiet: np.ndarray, reach: int = _GRAIN) -> np.ndarray:
    """Of noise z [h, w] at places up to `reach` pixels apart, [2 reach + 1, 2 reach + 1], 1 in the middle; from the
    pixels that are `quiet` and within three deviations of their median."""
    values = z[quiet] if quiet.any() else np.zeros(1)
    middle, spread = np.median(values), max(1.4826 * np.median(np.abs(values - np.median(values))), 1e-12)
    used = quiet & (np.abs(z - middle) < 3 * spread)
    filled = np.where(used, z - z[used].mean() if used.any() else 0.0, 0.0)
    size = [2 * n for n in z.shape]
    spectra = (np.fft.rfft2(one, size) for one in (filled, used.astype(float)))
    sums, pairs = (np.fft.irfft2(np.abs(one) ** 2, size) for one in spectra)
    lags = np.arange(-reach, reach + 1)
    found = (sums / np.maximum(pairs, 1))[np.ix_(lags, lags)]
    plain = np.zeros_like(found)
    plain[reach, reach] = 1
    return found / found[reach, reach] if found[reach, reach] > 0 else plain


def correlated_noise(grain: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [count, size, size] of deviation one whose neighbours are correlated as `grain` says (see
    `correlation`), over the edges as well. Where that is the correlation of no noise, the nearest that is."""
    reach, wrapped = len(grain) // 2, np.zeros((size, size))
    lags = np.arange(-reach, reach + 1)
    wrapped[np.ix_(lags, lags)] = grain
    power = np.fft.fft2(wrapped).real.clip(min=0)
    power /= power.mean()
    white = np.fft.fft2(rng.standard_normal((count, size, size)))
    return np.fft.ifft2(white * np.sqrt(power)).real


def through(view: View, recipe: Recipe) -> Recipe:
    """The recipe with the frame's point-spread function."""
    return with_psf(recipe, view.kernel)


def draw_like(
    recipe: Recipe, views: list[View], count: int, seed: int, lensed: bool = True
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Smooth lenses from the recipe's priors as the frames would show them, in turn: images [n, 1, h, w] in counts/s,
    their params, and the index of each one's frame [n].

    Not `lensed`: what the sources look like without a lens, beside the galaxy instead of behind it.
    """
    if count < 1 or not views:
        raise InputError("nothing to draw: give a count of at least 1 and at least one frame")
    bare = recipe.model_copy(
        update={"classes": ("smooth",), "substructure": recipe.substructure.model_copy(update={"populations": {}})}
    )
    # frame by frame, then put in turn
    images, params, turn = [], [], []
    for k in range(min(len(views), count)):
        mine = torch.arange(k, count, len(views))
        for chunk, rows in enumerate(mine.split(PER_CLASS)):
            number = k + chunk * len(views)
            found, drawn = _drawn(bare, views[k], seed, number, len(rows), lensed)
            images.append(found)
            params.append(drawn)
        turn.append(mine)
    order = torch.cat(turn).argsort()
    params = {name: torch.cat([part[name] for part in params])[order] for name in params[0]}
    return torch.cat(images)[order], params, torch.arange(count) % len(views)


def _drawn(
    bare: Recipe, view: View, seed: int, chunk: int, count: int, lensed: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The first `count` lenses of a chunk, through one frame."""
    rng, wanted = np.random.default_rng([seed, chunk, lensed, 7]), -(-count // SLOTS) * SLOTS
    _, drawn, _ = bare.draw(seed, chunk)
    params = {name: torch.as_tensor(value, dtype=torch.float32)[:wanted] for name, value in drawn.items()}
    if not lensed:
        _set_beside(params, rng)
    params["background_rms"] = torch.full_like(params["peak_snr"], view.sky)
    params["exposure_time"] = torch.full_like(params["peak_snr"], view.exposure_time)
    # in parts as large as those of fits, for which the renderer is compiled anyway
    parts = [{name: value[rows] for name, value in params.items()} for rows in torch.arange(wanted).split(SLOTS)]
    clean = torch.cat([render_quickly(through(view, bare), part) for part in parts])
    factor = bare.instrument.noise.scale(clean, params)
    brighten(params, factor)
    clean = clean * factor[:, None, None, None]
    noise = correlated_noise(view.grain, len(clean), clean.shape[-1], rng)
    images = clean + view.deviation(clean) * _tensor(noise)[:, None]
    return images[:count], {name: value[:count] for name, value in params.items()}


def _set_beside(params: dict[str, Tensor], rng) -> None:
    """No lens, and the source anywhere that arcs could be."""
    count = len(params["gamma1"])
    radius, angle = np.sqrt(rng.uniform(0.5**2, 2.0**2, count)), rng.uniform(0, 2 * np.pi, count)
    for name, to in (("x", radius * np.cos(angle)), ("y", radius * np.sin(angle))):
        moved = _tensor(to) - params[f"source_center_{name}"]
        for key in params:
            if key == f"source_center_{name}" or (key.startswith("clump") and key.endswith(f"center_{name}")):
                params[key] = params[key] + moved
    for name in ("gamma1", "gamma2"):
        params[name] = torch.zeros(count)
    for name in ("lens_theta_E", "theta_E"):
        params[name] = torch.full((count,), 1e-4)


def shown(views: list[View], images: Tensor, which: Tensor) -> Tensor:
    """Images [n, 1, h, w] as networks see them: deviations from empty sky, those that do not count set to zero, and
    compressed by arsinh, so that a bright arc does not outshout a faint one."""
    noise = torch.stack([view.noise for view in views])[which]
    mask = torch.stack([view.mask for view in views])[which]
    return torch.asinh(images / noise).masked_fill(mask, 0)


def frames_shown(views: list[View]) -> Tensor:
    """The frames themselves, as `shown`."""
    return shown(views, torch.stack([view.image for view in views]), torch.arange(len(views)))


def stand_ins(recipe: Recipe, count: int, seed: int) -> tuple[list[View], list[dict[str, Tensor]]]:
    """Simulated frames of smooth lenses for where the real ones are absent: the kernel of `matched_hst`, its exposures
    and the grain of drizzled noise. With each one's params [1]."""
    fine = load_recipe("matched_hst").instrument
    kernel = fine.psf.kernel(fine.pixel_scale)
    axis = (np.arange(recipe.instrument.pixels) - (recipe.instrument.pixels - 1) / 2) * recipe.instrument.pixel_scale
    radius = np.hypot(axis, axis[:, None])
    grain = np.zeros((2 * _GRAIN + 1,) * 2)
    grain[_GRAIN, _GRAIN - 1 : _GRAIN + 2] = grain[_GRAIN - 1 : _GRAIN + 2, _GRAIN] = 0.2
    grain[_GRAIN, _GRAIN] = 1
    blank = View(
        name="",
        image=torch.zeros(1, *radius.shape),
        noise=torch.full((1, *radius.shape), 2 * DRIZZLE**0.5 * 0.006),
        mask=torch.from_numpy((radius < CORE) | (radius > OUTER))[None],
        kernel=binned_psf(kernel, round(recipe.instrument.pixel_scale / fine.pixel_scale)),
        exposure_time=2200.0,
        grain=grain,
    )
    return twins(recipe, [replace(blank, name=f"simulated {k}") for k in range(count)], seed)


def twins(recipe: Recipe, views: list[View], seed: int) -> tuple[list[View], list[dict[str, Tensor]]]:
    """The frames with a simulated smooth lens each in the place of what they show, and its params [1]."""
    made, truths = [], []
    for k, view in enumerate(views):
        images, params, _ = draw_like(recipe, [view], 1, seed + k)
        made.append(replace(view, image=images[0]))
        truths.append(params)
    return made, truths


def without_arcs(view: View, rng: np.random.Generator) -> View:
    """The frame with all that stands out of its noise, and what is around it, replaced by noise of the same grain."""
    significance = uniform_filter((view.image / view.noise)[0].numpy(), 3) * 3
    bright = binary_dilation(significance > 3, iterations=2)
    noise = view.noise * _tensor(correlated_noise(view.grain, 1, len(bright), rng))
    return replace(view, image=torch.where(torch.from_numpy(bright)[None], noise, view.image))
