"""CosmoSim's lenses and sources fitted to images: first as if light were read exactly, then through the bitmap.

templates = RouletteTemplates(recipe)             # scenes from the recipe's own sampling
fit = refine_roulettes(recipe, images, templates.starts(images))

A ray reads the source from the nearest pixel of a bitmap, so that an image jumps where its parameters move smoothly.
The first fit has the mean of those jumps for its model and their scatter for noise; the second takes its steps by the
slopes of the first, and its images from the bitmap, while that noise is lowered to nothing: once a fit is near, a jump
left over is a pixel that still reads its neighbour, and tells more than any smooth image could.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from lenslib.refine import SLOTS, Fit, best_of, check_images, conclude, fit_all, inverse, joined, take_over
from lenslib.roulette_images import axes
from lenslib.roulette_model import UNIFORM, UNIT, RouletteModel, nearest_place
from lenslib.roulette_recipe import RouletteRecipe

# shares of the bitmap's noise that are left, step by step
_COOLING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0, 0.0, 0.01, 0.001, 0.0, 0.0, 0.003, 0.0003, 0.0, 0.0)
_WARM = (1.0, 0.3, 0.3, 0.1, 0.1, 0.03, 0.01)
# pixels a side that a first fit needs: a small window, or a larger one with pixels left out
_VIEW = 134
# shares of it that a fit may leave for good, where it still reads some pixels' neighbours
_LEFT = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
# whole places of the camera that are tried at once; by how much chi-square must fall from the next best to the best,
# and how much of it, for each lit pixel, an image may keep
_PLACES, _DECIDED, _EXPLAINED = 16, 25.0, 1.6
# places along a fit's longest error at which a search begins, and how often it moves on to a neighbour
_STOPS, _WALK = 9, 2
# images from which on the half minute is worth it that compiling takes
_WORTH_COMPILING = 48
# pixels a side of a template
_TEMPLATE = 50


@torch.no_grad()
def refine_roulettes(
    recipe: RouletteRecipe, images: Tensor, starts: Tensor | dict[str, Tensor], steps: int = 30, progress: bool = False
) -> Fit:
    """Fit lens and source to images [n, 1, h, w] in grey levels, as the recipe's camera writes them.

    `starts`: parameters by name, each [n] (a network's estimate), or fitted numbers [n, s, k]
    (`RouletteTemplates.starts`), of which the next is tried where the one before led to no good fit. Where the camera
    was moved by whole pixels and an image without noise tells by how many, they are taken as known. Fits that explain
    the image through the bitmap have the deviations of rounding alone, the others those of the bitmap as well.
    A fit that has not converged is flagged, not hidden.
    Raises InputError for images that are not finite, all zero, or not of the recipe's size, and recipes that vary chi.
    """
    check_images(recipe, images)
    quick = len(images) >= _WORTH_COMPILING
    full = RouletteModel(recipe, compiled=quick)
    starts = full.pack(starts)[:, None] if isinstance(starts, dict) else starts
    windows, parts = _windows(recipe, images), []
    for window in windows.unique().tolist():
        rows = (windows == window).nonzero()[:, 0]
        view = RouletteModel(recipe, window, -(-window // _VIEW), quick)
        parts.append((rows, _fit_view(full, view, images[rows], starts[rows], steps, progress)))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return joined([fit for _, fit in parts], order)


def _windows(recipe: RouletteRecipe, images: Tensor) -> Tensor:
    """Sides [n] of the central windows, multiples of `_VIEW`, that hold the light of each image."""
    pixels = recipe.instrument.pixels
    if recipe.instrument.noise_sd:
        return torch.full((len(images),), pixels)
    x, y = axes(pixels, images)
    reach = torch.maximum(x.abs(), y.abs()) + 2
    farthest = (reach * (images[:, 0] > 0)).amax((1, 2))
    return ((2 * farthest / _VIEW).ceil().long() * _VIEW).clamp(max=pixels)


def _fit_view(full: RouletteModel, view: RouletteModel, images: Tensor, starts: Tensor, steps: int, progress) -> Fit:
    part = view.view(images)

    def smooth(rows, start):
        guess = fit_all(view, part[rows], _first_noise(view, part[rows], start), start, steps, progress)
        numbers = view.pack(guess.params)
        return fit_all(view, part[rows], _noise(view, part[rows], numbers), numbers, steps, progress)

    found = best_of(starts, smooth)
    numbers = full.pack(found.params)
    noise = _noise(full, images, numbers)
    if full.recipe.instrument.noise_sd:
        fine = fit_all(full, images, noise, numbers, steps, progress)
        numbers = full.pack(fine.params)
    else:
        drawn = torch.cat([full.images(numbers[rows]) for rows in _parts(len(images))]).view_as(images)
        curvature = _curvature(full, numbers)
        fine = conclude(full, images, noise, numbers, curvature, found.converged, found.steps, drawn)
    fine = replace(fine, converged=fine.converged & found.converged)
    camera = full.recipe.instrument
    # noise hides which pixel of the bitmap was read; a picture that was turned has none
    if camera.noise_sd or camera.lookup == "turned":
        return fine
    return _through_the_bitmap(full, view, images, numbers, fine)


def _first_noise(model: RouletteModel, images: Tensor, numbers: Tensor) -> Tensor:
    """Deviations [n, 1, h, w] before the lens is known: the bitmap's scatter of a round source of the size at the
    start, whose slope at a brightness is known."""
    camera, size = model.recipe.instrument, torch.exp(numbers[:, -3])[:, None, None, None]
    scatter = UNIFORM * images**2 * 2 * torch.log(255 / images.clamp(0.1, 255)) / size**2
    if camera.lookup == "exact":
        scatter = torch.zeros_like(images)
    return (UNIFORM + camera.noise_sd**2 + scatter).sqrt()


def _noise(model: RouletteModel, images: Tensor, numbers: Tensor, share: float = 1.0) -> Tensor:
    """Deviations [n, 1, h, w] of rounding, noise and a share of the bitmap's scatter; infinite where an image without
    noise is dark, and should be."""
    parts = []
    for rows in _parts(len(images)):
        shown, scatter, _ = model.with_noise(numbers[rows])
        deviation = (model.variance(shown) + share * scatter).sqrt()
        if not model.recipe.instrument.noise_sd:
            deviation[(shown < 0.5) & (images[rows].flatten(1) < 0.5)] = torch.inf
        parts.append(deviation)
    return torch.cat(parts).view_as(images)


def _through_the_bitmap(full: RouletteModel, view: RouletteModel, images, numbers: Tensor, smooth: Fit) -> Fit:
    """The fits with their images read from the bitmap, where such a fit explains the image; as they were elsewhere."""
    if "centre_x" not in full.lens_names:
        return take_over(smooth, _read_fit(full, view, images, numbers, smooth.steps), torch.arange(len(images)))
    numbers, decided = _places(full, view, images, numbers)
    # where there is doubt, the place stays as free as the rest
    for known, models in ((True, (full.freeze_centre(), view.freeze_centre())), (False, (full, view))):
        rows = (decided == known).nonzero()[:, 0]
        if len(rows):
            found = _read_fit(*models, images[rows], numbers[rows], smooth.steps[rows])
            smooth = take_over(smooth, found, rows)
    return smooth


def _read_fit(full: RouletteModel, view: RouletteModel, images: Tensor, numbers: Tensor, steps: Tensor) -> Fit:
    """Fits of images read from the bitmap: good ones are those that leave little of its scatter."""
    if len(view.x) < len(full.x):
        numbers = _polish(view, view.view(images), numbers, _COOLING[3:])[0]
    numbers = _polish(full, images, numbers, _COOLING[5:10])[0]
    drawn = torch.cat([full.bitmap(numbers[part]) for part in _parts(len(images))]).view_as(images)
    done, steps = torch.ones(len(images), dtype=bool), steps + len(_COOLING)
    best, rest = None, torch.arange(len(images))
    for share in _LEFT:
        noise, curvature = _noise(full, images[rest], numbers[rest], share), _curvature(full, numbers[rest], share)
        found = conclude(full, images[rest], noise, numbers[rest], curvature, done[rest], steps[rest], drawn[rest])
        best = found if best is None else take_over(best, found, rest)
        rest = (~best.good).nonzero()[:, 0]
        if not len(rest):
            break
    return best


def _polish(model: RouletteModel, images: Tensor, numbers: Tensor, cooling) -> tuple[Tensor, Tensor]:
    """Steps of Gauss and Newton to images read from the bitmap: the best numbers [n, k], and their chi-square [n]
    against noise and rounding alone."""
    found = []
    for rows in _parts(len(images)):
        data, here = images[rows].flatten(1), numbers[rows]
        best, lowest = here, torch.full((len(rows),), torch.inf)
        for share in (*cooling, None):
            shown, scatter, slopes = model.with_noise(here)
            left, variance = data - model.bitmap(here), model.variance(shown)
            chi = (left**2 / variance).sum(1)
            lower = chi < lowest
            best, lowest = torch.where(lower[:, None], here, best), torch.where(lower, chi, lowest)
            if share is None:
                break
            weighted = slopes / (variance + share * scatter)[:, None]
            step = inverse(weighted @ slopes.mT) @ (weighted @ left[..., None]).double()
            here = model.bounded(here + step[..., 0].float())
        found.append((best, lowest))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _places(full: RouletteModel, view: RouletteModel, images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [n, k] with the camera at the whole place where the image is explained best, and bool [n]: whether it is
    explained, and the next best is so much worse that there is no doubt.

    In rounds, while there is doubt: with the place as free as the rest, from ever farther along what the smooth fit
    knows least, and then at whole places about it; at last from the best of these to its neighbours.
    """
    found, decided = numbers.clone(), torch.zeros(len(numbers), dtype=bool)
    lowest = torch.full((len(numbers),), torch.inf)
    for model, reach in ((view, 0), (view, 3), (full, 3), *[(view, None)] * _WALK):
        rows = (~decided).nonzero()[:, 0]
        if not len(rows):
            break
        seen, held = model.view(images[rows]), model.freeze_centre()
        around = found[rows]
        if reach is not None:
            owner, tried = _along(model, numbers[rows], reach)
            around = _best_tried(owner, *_polish(model, seen[owner], tried, _WARM), 1)[1]
            # mostly the nearest whole place explains all, and nothing else could
            near, chi = _polish(held, seen, nearest_place(model, around), _COOLING[3:10])
            done = chi < _EXPLAINED * (seen >= 1).flatten(1).sum(1)
            found[rows[done]], decided[rows[done]] = near[done], True
            rows, seen, around = rows[~done], seen[~done], around[~done]
            if not len(rows):
                break
        owner, tried = _whole_places(model, around)
        owner, tried = _best_tried(owner, *_polish(held, seen[owner], tried, _COOLING[:3]), 3)
        tried, chi = _polish(held, seen[owner], tried, _COOLING[3:])
        best, sure, left = _decision(seen, owner, tried, chi)
        better = left < lowest[rows]
        found[rows[better]], lowest[rows[better]], decided[rows] = best[better], left[better], sure
    return found, decided


def _along(model: RouletteModel, numbers: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Numbers [m, k] along the longest axis of the covariances, up to `reach` deviations away, and whose [m]."""
    owner = torch.arange(len(numbers))
    if not reach:
        return owner, numbers
    values, vectors = torch.linalg.eigh(inverse(_curvature(model, numbers)))
    axis = (vectors[:, :, -1] * values[:, -1:].sqrt()).float()
    steps = torch.linspace(-reach, reach, _STOPS)
    tried = numbers[:, None] + steps[:, None] * axis[:, None]
    return owner.repeat_interleave(_STOPS), model.bounded(tried.flatten(0, 1))


def _best_tried(owner: Tensor, tried: Tensor, chi: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of what was tried for each image, the `count` of least chi-square: owners [m] and numbers [m, k]."""
    kept = [mine[chi[mine].argsort()[:count]] for mine in ((owner == i).nonzero()[:, 0] for i in owner.unique())]
    kept = torch.cat(kept)
    return owner[kept], tried[kept]


def _decision(images: Tensor, owner, tried, chi) -> tuple[Tensor, Tensor, Tensor]:
    """The best numbers [n, k] of those tried for each image, whether there is no doubt [n], and what is left of
    chi-square for each lit pixel [n]."""
    lit = (images >= 1).flatten(1).sum(1)
    best, decided, left = [], [], []
    for i in range(len(images)):
        mine = (owner == i).nonzero()[:, 0]
        order = mine[chi[mine].argsort()]
        best.append(tried[order[0]])
        alone = len(order) == 1 or bool(chi[order[1]] - chi[order[0]] > _DECIDED)
        decided.append(alone and bool(chi[order[0]] < _EXPLAINED * lit[i]))
        left.append(chi[order[0]] / lit[i])
    return torch.stack(best), torch.tensor(decided), torch.stack(left)


def _whole_places(model: RouletteModel, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [m, k] at the likeliest whole places of the camera, and whose they are [m]: an index into `numbers`."""
    at = [model.lens_names.index(name) for name in ("centre_x", "centre_y")]
    owner, tried = [], []
    for i, covariance in enumerate(inverse(_curvature(model, numbers, 0.1))):
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
    return torch.tensor(owner), model.bounded(torch.cat(tried))


def _curvature(model: RouletteModel, numbers: Tensor, share: float = 1.0) -> Tensor:
    """[n, k, k] of chi-square over two by the fitted numbers, with a share of the bitmap's scatter for noise."""
    found = []
    for rows in _parts(len(numbers)):
        shown, scatter, slopes = model.with_noise(numbers[rows])
        found.append((slopes / (model.variance(shown) + share * scatter)[:, None]) @ slopes.mT)
    return torch.cat(found)


def _parts(count: int) -> list[Tensor]:
    """Indices of so many images, `SLOTS` at a time."""
    return list(torch.arange(count).split(SLOTS))


class RouletteTemplates:
    """Scenes drawn from a recipe's own sampling and seen coarsely, to start fits from without the truth."""

    def __init__(self, recipe: RouletteRecipe, count: int = 4096, seed: int = 1, progress: bool = False):
        self.model = RouletteModel(recipe)
        chunk = recipe.chunk_size
        firsts = tqdm(range(0, count, chunk), desc="templates", disable=None if progress else True)
        drawn = [recipe.draw(seed, k) for k, _ in enumerate(firsts)]
        params = {name: torch.cat([torch.from_numpy(part[name]) for part in drawn])[:count] for name in drawn[0]}
        self.numbers = self.model.pack(params)
        pixels = recipe.instrument.pixels
        self.step = pixels / _TEMPLATE
        steps = (torch.arange(_TEMPLATE) + 0.5) * self.step - pixels / 2
        x, y = (part.flatten() for part in torch.meshgrid(steps, steps, indexing="xy"))
        self.images = torch.cat([self.model.images_at(rows, x, y) for rows in self.numbers.split(64)])
        self.squares = self.images.square().sum(1)

    def starts(self, images: Tensor, count: int = 4) -> Tensor:
        """The fitted numbers [n, count, k] of the templates least different from each image [n, 1, h, w]."""
        small = interpolate(images, (_TEMPLATE, _TEMPLATE), mode="area").flatten(1)
        return self.numbers[(self.squares - 2 * small @ self.images.T).topk(count, largest=False).indices]
