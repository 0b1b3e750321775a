"""CosmoSim's lenses and sources fitted to images: first as if light were read exactly, then through the bitmap.

templates = RouletteTemplates(recipe)             # scenes from the recipe's own sampling
fit = refine_roulettes(recipe, images, templates.starts(images))

A ray reads the source from the nearest pixel of a bitmap, so that an image jumps where its parameters move smoothly.
The first fit has the mean of those jumps for its model and their scatter for noise; the second takes its steps by the
slopes of the first, and its images from the bitmap, while that noise is lowered to nothing: once a fit is near, a jump
left over is a pixel that still reads its neighbour, and tells more than any smooth image could.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from scipy.optimize import differential_evolution
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from tqdm import tqdm

from lenslib.refine import (
    CENTRE,
    SLOTS,
    TEMPLATE_SEED,
    Fit,
    best_of,
    check_images,
    conclude,
    fit_all,
    inverse,
    joined,
    packed,
    take_over,
)
from lenslib.roulette_model import FINE, UNIFORM, UNIT, RouletteModel, nearest_place
from lenslib.roulette_recipe import RouletteRecipe

# shares of the bitmap's noise that are left, step by step
_COOLING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0, 0.0, 0.01, 0.001, 0.0, 0.0, 0.003, 0.0003, 0.0, 0.0)
_WARM = (1.0, 0.3, 0.3, 0.1, 0.1, 0.03, 0.01)
_LUKEWARM = (0.1, 0.1, 0.03, 0.01, 0.003, 0.001)
# pixels that a search looks at, or evolution does, and how rarely a dark one is among them
_ENOUGH, _GLANCE, _DARK = 4096, 512, 0.005
# pixels a side about light that count as lit
_BESIDE = 9
# shares of it that a fit may leave for good, where it still reads some pixels' neighbours
_LEFT = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
# whole places of the camera that are tried at once, and by how much chi-square must fall from the next best to the best
_PLACES, _DECIDED = 16, 25.0
# grey levels that rounding may move a pixel, and the share of lit pixels that may be off by more in a fit that explains
# its image
_ROUNDED, _OFF = 0.6, 0.005
# Einstein radii, or places along a fit's longest error, from which a search begins; the share on either side of the
# best radius that is searched again, deviations to either end of that error, and steps of each smooth fit
_STOPS, _NEAR, _REACH, _VALLEY = 24, 0.15, 6, 40
# how often lenses evolve, and how many times a search then moves on to a neighbour
_GENESES, _WALK = 5, 2
# lenses about one that evolve, generations at most, and what is left of chi-square a pixel, its logarithm, where a lens
# is almost found, and where it is
_CLOUD, _GENERATIONS, _ALMOST, _FOUND = 128, 120, 1.2, 0.15
# steps of a fit of the source alone, and pixels a side of the image that tells its centre of light
_SHAPED, _ROUGH = 8, 20
# lenses whose jumps are drawn, at most `SLOTS`, and how often, each time as far about the fit as the last time told
_DRAWS, _ROUNDS = 16, 2
# images from which on the half minute is worth it that compiling takes
_WORTH_COMPILING = 48
# pixels a side of a template; where an estimate led to no good fit, how many are searched, and the best tried
_TEMPLATE, _SEARCHED, _TRIED = 50, 2048, 4


@torch.no_grad()
def refine_roulettes(
    recipe: RouletteRecipe, images: Tensor, starts: Tensor | dict[str, Tensor], steps: int = 100, progress: bool = False
) -> Fit:
    """Fit lens and source to images [n, 1, h, w] in grey levels, as the recipe's camera writes them.

    `starts`: parameters by name, each [n] (a network's estimate), or fitted numbers [n, s, k]
    (`RouletteTemplates.starts`), of which the next is tried where the one before led to no good fit of light read
    exactly; where an estimate did not, a search begins. Where the camera was moved by whole pixels and an image without
    noise tells by how many, they are taken as known. Fits that explain the image through the bitmap have the deviations
    of rounding alone. Those of noisy images, which hide the bitmap, hold its jumps as well; those of other images, and
    of images turned after they were read, take its jumps for independent: too narrow where a lens hardly bends.
    A fit that has not converged is flagged, not hidden.
    Raises InputError for images that are not finite, of one brightness, or not of the recipe's size, for starts that do
    not fit the images, and recipes that vary chi.
    """
    check_images(recipe, images)
    whole = RouletteModel(recipe, compiled=len(images) >= _WORTH_COMPILING)
    numbers, search = packed(whole, starts, len(images)), None
    if isinstance(starts, dict):
        search = cache(lambda: RouletteTemplates(recipe, _SEARCHED))
        if "centre_x" in whole.lens_names and "centre_x" not in starts:
            numbers = _met(whole, images, numbers)
    order = torch.cat([_worth(recipe, part) for part in images.split(SLOTS)])
    lit = (order < 1).sum(1)
    # images with about as much light go together
    groups, parts = (lit / _ENOUGH).log2().ceil().clamp(min=0), []
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        few, full = (_seen(whole, images[rows], order[rows], most) for most in (_ENOUGH, int(lit[rows].max())))
        parts.append((rows, _fit(whole, full, few, images[rows], numbers[rows], search, steps, progress)))
    return joined([fit for _, fit in parts], torch.cat([rows for rows, _ in parts]).argsort())


def _met(whole: RouletteModel, images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers [n, 1, k] with the camera where light has its centre in the images: beside theirs, where a part of the
    light fell out of the frame. Of images in which no light stands above the noise, in the middle."""
    seen = images.flatten(1) * (images.flatten(1) > 3 * whole.recipe.instrument.noise_sd)
    beside = torch.stack([seen @ whole.x, seen @ whole.y], 1) / seen.sum(1, keepdim=True).clamp(min=1e-30)
    numbers = whole.centred(numbers[:, 0], FINE)
    numbers[:, [whole.lens_names.index(name) for name in CENTRE]] -= beside / UNIT
    return numbers[:, None]


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


def _smooth_fit(seen: "_Seen", numbers: Tensor, noise: Tensor, steps: int, progress: bool) -> Fit:
    """Fits of light read exactly, which are drawn back to the lenses of the recipe."""
    drawn = torch.zeros(len(numbers), 2)
    data, noise = torch.cat([seen.data, drawn], 1), torch.cat([noise, drawn + 1], 1)
    return fit_all(_Drawn(seen.model), data, noise, numbers, steps, progress)


@dataclass(frozen=True)
class _Seen:
    """Some pixels of images: their grey levels `data` [n, p], and the model there."""

    model: RouletteModel
    data: Tensor

    def rows(self, rows: Tensor) -> "_Seen":
        return _Seen(self.model.rows(rows), self.data[rows])

    def held(self) -> "_Seen":
        """With the camera's place held."""
        return replace(self, model=self.model.freeze(*CENTRE))

    def glance(self) -> "_Seen":
        """At fewer pixels."""
        first = slice(0, _GLANCE)
        return _Seen(self.model.at(first), self.data[:, first])

    @property
    def lit(self) -> Tensor:
        return (self.data >= 1).sum(1)


def _worth(recipe: RouletteRecipe, images: Tensor) -> Tensor:
    """The order in which pixels are looked at, [n, pixels]: below 1 in and beside light, drawn at random, and seldom
    elsewhere."""
    # noise that is cut off at zero has a mean of 0.4 deviations
    dark = 0.75 * recipe.instrument.noise_sd
    near = avg_pool2d(images, _BESIDE, 1, _BESIDE // 2).flatten(1) > dark
    drawn = torch.rand(near.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.where(near, drawn, 1 + drawn / _DARK)


def _seen(model: RouletteModel, images: Tensor, order: Tensor, most: int) -> _Seen:
    pixels = order.topk(min(most, order.shape[1]), largest=False).indices
    return _Seen(model.at(pixels), images.flatten(1).gather(1, pixels))


def _fit(whole: RouletteModel, full: _Seen, few: _Seen, images: Tensor, starts: Tensor, search, steps, progress) -> Fit:
    def smooth(rows, start):
        part = few.rows(rows)
        guess = _smooth_fit(part, start, _first_noise(part, start), steps, progress)
        numbers = whole.pack(guess.params)
        return _smooth_fit(part, numbers, _noise(part, numbers), steps, progress)

    found = best_of(starts, smooth)
    if search is not None and not found.good.all():
        found = best_of(search().starts(images, _TRIED), smooth, found)
    numbers, every, camera = whole.pack(found.params), _Seen(whole, images.flatten(1)), whole.recipe.instrument
    if camera.noise_sd:
        # noise is beaten down by numbers: all lit pixels have their say
        near = found
        found = _smooth_fit(full, numbers, _noise(full, numbers), steps, progress)
        numbers, found = whole.pack(found.params), replace(found, converged=near.converged & found.converged)
    noise = _noise(every, numbers).view_as(images)
    drawn = torch.cat([whole.images(numbers[rows]) for rows in _parts(len(images))]).view_as(images)
    fine = conclude(whole, images, noise, numbers, _curvature(full, numbers), found.converged, found.steps, drawn)
    # a picture that was turned after it was read has lost the bitmap's pixels
    if camera.lookup == "turned":
        return fine
    if camera.noise_sd:  # which hides what pixel of the bitmap was read
        return fine if camera.lookup == "exact" else replace(fine, covariance=_with_jumps(full, numbers))
    return _through_the_bitmap(every, full, few, numbers, fine)


def _with_jumps(seen: _Seen, numbers: Tensor) -> Tensor:
    """Covariances [n, k, k] of smooth fits to images read from a bitmap, whose jumps agree over many pixels: from how
    far those of lenses like the fitted one, drawn from the covariance so far, lead a fit astray. So few draws tell a
    deviation to a fifth."""
    found = []
    for i, here in enumerate(numbers.split(1)):
        draw = torch.Generator().manual_seed(0)
        one, many = (seen.model.rows(torch.full((count,), i)) for count in (1, _DRAWS))
        _, variance, scatter, slopes = one.with_noise(here)
        weighted = slopes / (variance + scatter)[:, None]
        covariance = inverse(weighted @ slopes.mT)[0]
        gain = covariance @ weighted[0].double()
        noise = (gain * variance[0]) @ gain.T
        for _ in range(_ROUNDS):
            values, vectors = torch.linalg.eigh(covariance)
            away = torch.randn(_DRAWS, len(values), generator=draw, dtype=torch.float64) * values.clamp(min=0).sqrt()
            drawn = seen.model.bounded(here + (away @ vectors.T).float())
            if "centre_x" in seen.model.lens_names:
                drawn = nearest_place(seen.model, drawn)
            shown, variance, scatter, slopes = many.with_noise(drawn)
            weighted, jumps = slopes / (variance + scatter)[:, None], many.bitmap(drawn) - shown
            astray = (inverse(weighted @ slopes.mT) @ (weighted @ jumps[..., None]).double())[..., 0]
            covariance = noise + astray.T @ astray / _DRAWS
        units = seen.model.units(here)[0].double()
        found.append(units @ covariance @ units.T)
    return torch.stack(found).float()


def _first_noise(seen: _Seen, numbers: Tensor) -> Tensor:
    """Deviations [n, p] before the lens is known: the bitmap's scatter of a round source of the size at the start,
    whose slope at a brightness is known."""
    camera, size, data = seen.model.recipe.instrument, torch.exp(numbers[:, -3:-2]), seen.data
    scatter = UNIFORM * data**2 * 2 * torch.log(255 / data.clamp(0.1, 255)) / size**2
    if camera.lookup == "exact":
        scatter = torch.zeros_like(data)
    return (UNIFORM + camera.noise_sd**2 + scatter).sqrt()


def _noise(seen: _Seen, numbers: Tensor, share: float = 1.0) -> Tensor:
    """Deviations [n, p] of rounding, noise and a share of the bitmap's scatter; infinite where an image without noise
    is dark, and should be."""
    model, parts = seen.model, []
    for rows in _parts(len(numbers)):
        shown, variance, scatter = model.rows(rows).images_and_variances(numbers[rows])
        deviation = (variance + share * scatter).sqrt()
        if not model.recipe.instrument.noise_sd:
            deviation[(shown < 0.5) & (seen.data[rows] < 0.5)] = torch.inf
        parts.append(deviation)
    return torch.cat(parts)


def _through_the_bitmap(every: _Seen, full: _Seen, few: _Seen, numbers: Tensor, smooth: Fit) -> Fit:
    """The fits with their images read from the bitmap, where such a fit explains the image; as they were elsewhere."""
    if "centre_x" not in smooth.names:
        found = _read_fit(every, full, few, numbers, smooth.converged, smooth.steps)
        return take_over(smooth, found, torch.arange(len(numbers)))
    numbers, decided = _places(full, few, numbers)
    # where there is doubt, the place stays as free as the rest
    for rows in ((decided == known).nonzero()[:, 0] for known in (True, False)):
        if len(rows):
            views = [view.rows(rows) for view in (every, full, few)]
            views = [view.held() for view in views] if decided[rows[0]] else views
            found = _read_fit(*views, numbers[rows], smooth.converged[rows], smooth.steps[rows])
            smooth = take_over(smooth, found, rows)
    return smooth


def _read_fit(every: _Seen, full: _Seen, few: _Seen, numbers: Tensor, converged: Tensor, steps: Tensor) -> Fit:
    """Fits of images read from the bitmap. Where one gives back the image pixel by pixel, its noise is the least of the
    bitmap's scatter that leaves a good fit; elsewhere all of that scatter is in doubt, as for the smooth fit before,
    which then must have `converged` [n]."""
    numbers = _polish(few, numbers, _COOLING[3:])[0]
    numbers = _polish(full, numbers, _COOLING[5:10])[0]
    count, pixels = len(numbers), every.model.recipe.instrument.pixels
    shape = (-1, 1, pixels, pixels)
    drawn = torch.cat([every.model.bitmap(numbers[part]) for part in _parts(count)]).view(shape)
    explained, steps = _explained(full, numbers), steps + len(_COOLING)

    def concluded(rows: Tensor, share: float) -> Fit:
        part, here = every.rows(rows), numbers[rows]
        noise, curvature = _noise(part, here, share).view(shape), _curvature(full.rows(rows), here, share)
        facts = (converged | explained)[rows], steps[rows], drawn[rows]
        return conclude(every.model, part.data.view(shape), noise, here, curvature, *facts)

    best, rest = concluded(torch.arange(count), 1.0), explained.nonzero()[:, 0]
    for share in _LEFT:
        if not len(rest):
            break
        found = concluded(rest, share)
        best, rest = take_over(best, found, rest), rest[~found.good]
    return best


def _explained(seen: _Seen, numbers: Tensor) -> Tensor:
    """Bool [n]: whether images read from the bitmap are those seen, but for rounding and a few pixels. At the truth
    none is off; where the source is off by a fiftieth of a pixel, one in a hundred is."""
    shares = []
    for rows in _parts(len(numbers)):
        part = seen.rows(rows)
        off = ((part.data - part.model.bitmap(numbers[rows])).abs() > _ROUNDED) & (part.data >= 1)
        shares.append(off.sum(1) / part.lit)
    return torch.cat(shares) < _OFF


def _polish(seen: _Seen, numbers: Tensor, cooling) -> tuple[Tensor, Tensor]:
    """Steps of Gauss and Newton to images read from the bitmap: the best numbers [n, k], and their chi-square [n]
    against noise and rounding alone."""
    found = []
    for rows in _parts(len(numbers)):
        model, data, here = seen.model.rows(rows), seen.data[rows], numbers[rows]
        best, lowest = here, torch.full((len(rows),), torch.inf)
        for share in (*cooling, None):
            _, variance, scatter, slopes = model.with_noise(here)
            left = data - model.bitmap(here)
            chi = (left**2 / variance).sum(1)
            chi = chi + model.beyond(here)[0].square().sum(1)
            lower = chi < lowest
            best, lowest = torch.where(lower[:, None], here, best), torch.where(lower, chi, lowest)
            if share is None:
                break
            weighted = slopes / (variance + share * scatter)[:, None]
            step = inverse(weighted @ slopes.mT) @ (weighted @ left[..., None]).double()
            here = model.bounded(here + step[..., 0].float())
        found.append((best, lowest))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _places(full: _Seen, few: _Seen, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [n, k] with the camera at the whole place where the image is explained best, and bool [n]: whether it is
    explained, and the next best is so much worse that there is no doubt.

    In rounds, while there is doubt: from what the smooth fit found; from lenses of all Einstein radii, because one that
    hardly bends is read from a bitmap whose errors agree over many pixels and lead the smooth fit astray; from radii
    about the best; along what is known least; from lenses that evolve, and then from the best place to its neighbours.
    """
    found, decided = numbers.clone(), torch.zeros(len(numbers), dtype=bool)
    lowest, stuck = torch.full((len(numbers),), torch.inf), torch.zeros(len(numbers), dtype=bool)
    looks = [(few, _here), (few, _all_radii), (few, _near_radii), (full, _along)]
    for k in range(_GENESES):
        looks += [(few, partial(_evolved, seed=k)), *[(few, None)] * _WALK]
    for view, look in looks:
        if look is not None:
            stuck[:] = False
        rows = (~decided & ~stuck).nonzero()[:, 0]
        if not len(rows):
            continue
        seen, around = view.rows(rows), found[rows]
        if look is not None:
            around = look(seen, around)
            # mostly the nearest whole place explains all, and nothing else could
            near = _polish(seen.held(), nearest_place(seen.model, around), _COOLING[3:10])[0]
            done = _explained(seen, near)
            found[rows[done]], decided[rows[done]] = near[done], True
            rows, seen, around = rows[~done], seen.rows(~done), around[~done]
            if not len(rows):
                continue
        best, sure, left = _whole_places(seen, around)
        better = left < lowest[rows]
        found[rows[better]], lowest[rows[better]], decided[rows] = best[better], left[better], sure & better
        if look is None:
            stuck[rows] = ~better
    return found, decided


def _here(seen: _Seen, numbers: Tensor) -> Tensor:
    return _polish(seen, numbers, _WARM)[0]


def _along(seen: _Seen, numbers: Tensor) -> Tensor:
    """The best numbers [n, k] that steps find from along the longest axis of the covariances."""
    owner = torch.arange(len(numbers)).repeat_interleave(_STOPS)
    values, vectors = torch.linalg.eigh(inverse(_curvature(seen, numbers)))
    axis = (vectors[:, :, -1] * values[:, -1:].sqrt()).float()
    tried = numbers[:, None] + torch.linspace(-_REACH, _REACH, _STOPS)[:, None] * axis[:, None]
    return _best_tried(owner, *_polish(seen.rows(owner), seen.model.bounded(tried.flatten(0, 1)), _WARM), 1)[1]


def _all_radii(seen: _Seen, numbers: Tensor) -> Tensor:
    low, high = map(math.log10, seen.model.recipe.sampling.einstein_radius)
    return _best_radius(seen, numbers, torch.logspace(low, high, _STOPS).expand(len(numbers), -1))


def _near_radii(seen: _Seen, numbers: Tensor) -> Tensor:
    now = seen.model.unpack(numbers)["einstein_radius"]
    return _best_radius(seen, numbers, now[:, None] * torch.linspace(1 - _NEAR, 1 + _NEAR, _STOPS))


def _best_radius(seen: _Seen, numbers: Tensor, radii: Tensor) -> Tensor:
    """The best numbers [n, k] found from smooth fits whose Einstein radius is held at one of `radii` [n, s]."""
    owner = torch.arange(len(numbers)).repeat_interleave(radii.shape[1])
    part, tried = seen.rows(owner), seen.model.scaled(numbers[owner], radii.flatten())
    held = replace(part, model=part.model.freeze("einstein_radius"))
    valley = _smooth_fit(held, tried, _noise(part, tried), _VALLEY, False)
    return _best_tried(owner, *_polish(part, part.model.pack(valley.params), _LUKEWARM), 1)[1]


def _evolved(seen: _Seen, numbers: Tensor, seed: int) -> Tensor:
    """The best numbers [n, k] that differential evolution finds through the bitmap, at a few pixels: from about the
    given lenses at first (seed 0) and where they are near, else from about what it finds from any of the recipe's."""
    found = []
    for i, here in enumerate(numbers.split(1)):
        part = seen.rows(torch.tensor([i]))
        if seed and _log_left(part.glance(), here) > _ALMOST:
            here = _evolve(part.glance(), _any_lens(part.glance(), here, seed), seed)
        found.append(_evolve(part.glance(), _cloud(part, here, seed), seed))
    return torch.cat(found)


def _log_left(seen: _Seen, numbers: Tensor) -> Tensor:
    """Logarithms [p] of what numbers [p, k] leave of chi-square for each pixel of one image, read from the bitmap."""
    model = seen.model.rows(torch.zeros(len(numbers), dtype=int))
    left = (seen.data - model.bitmap(numbers)).square().mean(1) / UNIFORM
    return (left + model.beyond(numbers)[0].square().sum(1)).log()


def _evolve(seen: _Seen, numbers: Tensor, seed: int) -> Tensor:
    """The best numbers [1, k] for one image, from the population [p, k]."""
    bounds = torch.stack([seen.model.low, seen.model.high], 1).double().numpy()

    def left(tried: np.ndarray) -> np.ndarray:
        return _log_left(seen, torch.from_numpy(tried.T.astype(np.float32))).double().numpy()

    found = differential_evolution(
        left,
        bounds,
        init=np.clip(numbers.double().numpy(), *bounds.T),
        maxiter=_GENERATIONS,
        mutation=(0.3, 0.9),
        recombination=0.9,
        tol=0,
        rng=seed,
        polish=False,
        vectorized=True,
        updating="deferred",
        callback=lambda intermediate_result: intermediate_result.fun < _FOUND,
    )
    return torch.from_numpy(found.x.astype(np.float32))[None]


def _cloud(seen: _Seen, numbers: Tensor, seed: int) -> Tensor:
    """Numbers [_CLOUD, k] about one lens's, ever farther."""
    draw = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(inverse(_curvature(seen, numbers))[0])
    spread = torch.linspace(0, _REACH, _CLOUD, dtype=torch.float64)[:, None] * values.clamp(min=0).sqrt()
    return numbers + ((spread * torch.randn(spread.shape, generator=draw, dtype=torch.float64)) @ vectors.T).float()


def _any_lens(seen: _Seen, numbers: Tensor, seed: int) -> Tensor:
    """Numbers [2 _CLOUD, k] of lenses of the recipe, with the source that makes each look like the image."""
    count = 2 * _CLOUD
    seen = seen.rows(torch.zeros(count, dtype=int))
    model, lens = seen.model, ("x", "y", "einstein_radius")
    at, tried = [model.lens_names.index(name) for name in lens], numbers.repeat(count, 1)
    tried[:, at] = model.pack(_drawn(model.recipe, count, seed))[:, at]
    held, tried = replace(seen, model=model.freeze(*lens)), model.centred(tried, _ROUGH)
    return model.pack(_smooth_fit(held, tried, _noise(seen, tried), _SHAPED, False).params)


def _best_tried(owner: Tensor, tried: Tensor, chi: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of what was tried for each image, the `count` of least chi-square: owners [m] and numbers [m, k]."""
    kept = [mine[chi[mine].argsort()[:count]] for mine in ((owner == i).nonzero()[:, 0] for i in owner.unique())]
    kept = torch.cat(kept)
    return owner[kept], tried[kept]


def _whole_places(seen: _Seen, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of whole places of the camera about numbers [n, k], the numbers [n, k] at the best, whether there is no doubt
    [n], and what is left of chi-square for each lit pixel [n]."""
    held, (owner, tried) = seen.held(), _likeliest_places(seen, numbers)
    owner, tried = _best_tried(owner, *_polish(held.rows(owner), tried, _COOLING[:3]), 3)
    tried, chi = _polish(held.rows(owner), tried, _COOLING[3:])
    best, alone, left = [], [], []
    for i, lit in enumerate(seen.lit):
        mine = (owner == i).nonzero()[:, 0]
        order = mine[chi[mine].argsort()]
        best.append(tried[order[0]])
        alone.append(len(order) == 1 or bool(chi[order[1]] - chi[order[0]] > _DECIDED))
        left.append(chi[order[0]] / lit)
    best = torch.stack(best)
    return best, torch.tensor(alone) & _explained(held, best), torch.stack(left)


def _likeliest_places(seen: _Seen, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Whose they are [m], an index into `numbers`, and numbers [m, k] at the likeliest whole places of the camera."""
    at = [seen.model.lens_names.index(name) for name in ("centre_x", "centre_y")]
    owner, tried = [], []
    for i, covariance in enumerate(inverse(_curvature(seen, numbers, 0.1))):
        place, spread = numbers[i, at].double() * UNIT, covariance[at][:, at] * UNIT**2 + 1e-4 * torch.eye(2)
        reach = (3.5 * spread.diagonal().sqrt()).clamp(1, 40)
        low, high = (place - reach).floor().tolist(), (place + reach).ceil().tolist()
        grid = torch.cartesian_prod(*(torch.arange(a, b + 1) for a, b in zip(low, high, strict=True))).double()
        tight, away = torch.linalg.inv(spread), grid - place
        away = away[((away @ tight) * away).sum(1).argsort()[:_PLACES]]
        # the other numbers go along, as they are correlated
        moved = numbers[i].double() + away @ tight @ covariance[at] * UNIT
        moved[:, at] = (place + away) / UNIT
        tried.append(moved.float())
        owner += [i] * len(away)
    return torch.tensor(owner), seen.model.bounded(torch.cat(tried))


def _curvature(seen: _Seen, numbers: Tensor, share: float = 1.0) -> Tensor:
    """[n, k, k] of chi-square over two by the fitted numbers, with a share of the bitmap's scatter for noise."""
    found = []
    for rows in _parts(len(numbers)):
        model = seen.model.rows(rows)
        _, variance, scatter, slopes = model.with_noise(numbers[rows])
        found.append((slopes / (variance + share * scatter)[:, None]) @ slopes.mT)
    return torch.cat(found)


def _parts(count: int) -> list[Tensor]:
    """Indices of so many images, `SLOTS` at a time."""
    return list(torch.arange(count).split(SLOTS))


def _drawn(recipe: RouletteRecipe, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Parameters of so many scenes, each [count], which are in no data set."""
    parts = [recipe.draw(TEMPLATE_SEED + seed, k) for k in range(math.ceil(count / recipe.chunk_size))]
    return {name: torch.cat([torch.from_numpy(part[name]) for part in parts])[:count] for name in parts[0]}


class RouletteTemplates:
    """Scenes drawn from a recipe's own sampling and seen coarsely, to start fits from without the truth."""

    def __init__(self, recipe: RouletteRecipe, count: int = 4096, progress: bool = False):
        self.model = RouletteModel(recipe)
        self.numbers = self.model.pack(_drawn(recipe, count))
        pixels = recipe.instrument.pixels
        self.step = pixels / _TEMPLATE
        steps = (torch.arange(_TEMPLATE) + 0.5) * self.step - pixels / 2
        x, y = (part.flatten() for part in torch.meshgrid(steps, steps, indexing="xy"))
        self.images = torch.cat([self.model.images_at(rows, x, y) for rows in self.numbers.split(64)])
        self.squares = self.images.square().sum(1)

    def starts(self, images: Tensor, count: int = 8) -> Tensor:
        """The fitted numbers [n, count, k] of the templates least different from each image [n, 1, h, w]."""
        small = interpolate(images, (_TEMPLATE, _TEMPLATE), mode="area").flatten(1)
        return self.numbers[(self.squares - 2 * small @ self.images.T).topk(count, largest=False).indices]
