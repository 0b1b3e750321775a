"""Where CosmoSim's camera was, and through which lens it looked: the search for what explains an image pixel by pixel.

The camera moves by whole pixels, and a bitmap's pixels are read or not: what is left of chi-square has countless
valleys about the truth, and falls steeply only near it.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.optimize import differential_evolution
from torch import Tensor
from tqdm import tqdm

from lenslib.refine import inverse
from lenslib.roulette_model import UNIFORM, UNIT, nearest_place
from lenslib.roulette_pixels import COOLING, Seen, curvature, drawn_scenes, explained, noise_of, polish, smooth_fit

# shares of the bitmap's noise that are left, step by step, from far and from nearer by
_WARM = (1.0, 0.3, 0.3, 0.1, 0.1, 0.03, 0.01)
_LUKEWARM = (0.1, 0.1, 0.03, 0.01, 0.003, 0.001)
# whole places of the camera that are tried at once, and by how much chi-square must fall from the next best to the best
_PLACES, _DECIDED = 16, 25.0
# Einstein radii, or places along a fit's longest error, from which a search begins; the share on either side of the
# best radius that is searched again, deviations to either end of that error, and steps of each smooth fit
_STOPS, _NEAR, _REACH, _VALLEY = 24, 0.15, 6, 40
# how often a search moves on to a neighbour, after lenses have evolved
_WALK = 2
# lenses about one that evolve, generations at most, and what is left of chi-square a pixel, its logarithm, where a lens
# is almost found, and where it is
_CLOUD, _GENERATIONS, _ALMOST, _FOUND = 128, 120, 1.2, 0.15
# steps of a fit of the source alone, and pixels a side of the image that tells its centre of light
_SHAPED, _ROUGH = 8, 20


def places(full: Seen, few: Seen, numbers: Tensor, evolutions: int, progress: bool = False) -> tuple[Tensor, Tensor]:
    """Numbers [n, k] with the camera at the whole place where the image is explained best, and bool [n]: whether it is
    explained, and the next best is so much worse that there is no doubt.

    In rounds, while there is doubt: from what the smooth fit found; from lenses of all Einstein radii, because one that
    hardly bends is read from a bitmap whose errors agree over many pixels and lead the smooth fit astray; from radii
    about the best; along what is known least; from lenses that evolve, and then from the best place to its neighbours.
    """
    found, decided = numbers.clone(), torch.zeros(len(numbers), dtype=bool)
    lowest, stuck = torch.full((len(numbers),), torch.inf), torch.zeros(len(numbers), dtype=bool)
    looks = [(few, _here), (few, _all_radii), (few, _near_radii), (full, _along)]
    for k in range(evolutions):
        looks += [(few, partial(_evolved, seed=k, progress=progress)), *[(few, None)] * _WALK]
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
            near = polish(seen.held(), nearest_place(seen.model, around), COOLING[3:10])[0]
            done = explained(seen, near)
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


def _here(seen: Seen, numbers: Tensor) -> Tensor:
    return polish(seen, numbers, _WARM)[0]


def _along(seen: Seen, numbers: Tensor) -> Tensor:
    """The best numbers [n, k] that steps find from along the longest axis of the covariances."""
    owner = torch.arange(len(numbers)).repeat_interleave(_STOPS)
    values, vectors = torch.linalg.eigh(inverse(curvature(seen, numbers)))
    axis = (vectors[:, :, -1] * values[:, -1:].sqrt()).float()
    tried = numbers[:, None] + torch.linspace(-_REACH, _REACH, _STOPS)[:, None] * axis[:, None]
    return _best_tried(owner, *polish(seen.rows(owner), seen.model.bounded(tried.flatten(0, 1)), _WARM), 1)[1]


def _all_radii(seen: Seen, numbers: Tensor) -> Tensor:
    low, high = map(math.log10, seen.model.recipe.sampling.einstein_radius)
    return _best_radius(seen, numbers, torch.logspace(low, high, _STOPS).expand(len(numbers), -1))


def _near_radii(seen: Seen, numbers: Tensor) -> Tensor:
    now = seen.model.unpack(numbers)["einstein_radius"]
    return _best_radius(seen, numbers, now[:, None] * torch.linspace(1 - _NEAR, 1 + _NEAR, _STOPS))


def _best_radius(seen: Seen, numbers: Tensor, radii: Tensor) -> Tensor:
    """The best numbers [n, k] found from smooth fits whose Einstein radius is held at one of `radii` [n, s]."""
    owner = torch.arange(len(numbers)).repeat_interleave(radii.shape[1])
    part, tried = seen.rows(owner), seen.model.scaled(numbers[owner], radii.flatten())
    held = replace(part, model=part.model.freeze("einstein_radius"))
    valley = smooth_fit(held, tried, noise_of(part, tried), _VALLEY, False)
    return _best_tried(owner, *polish(part, part.model.pack(valley.params), _LUKEWARM), 1)[1]


def _evolved(seen: Seen, numbers: Tensor, seed: int, progress: bool = False) -> Tensor:
    """The best numbers [n, k] that differential evolution finds through the bitmap, at a few pixels: from about the
    given lenses at first (seed 0) and where they are near, else from about what it finds from any of the recipe's."""
    found, quiet = [], None if progress else True
    for i, here in enumerate(tqdm(numbers.split(1), desc=f"evolve, round {seed + 1}", unit="image", disable=quiet)):
        part = seen.rows(torch.tensor([i]))
        glance = part.glance()
        if seed and _log_left(glance, here) > _ALMOST:
            here = _evolve(glance, _any_lens(glance, here, seed), seed)
        found.append(_evolve(glance, _cloud(part, here, seed), seed))
    return torch.cat(found)


def _log_left(seen: Seen, numbers: Tensor) -> Tensor:
    """Logarithms [p] of what numbers [p, k] leave of chi-square for each pixel of one image, read from the bitmap."""
    model = seen.model.rows(torch.zeros(len(numbers), dtype=int))
    left = (seen.data - model.bitmap(numbers)).square().mean(1) / UNIFORM
    return (left + model.beyond(numbers)[0].square().sum(1)).log()


def _evolve(seen: Seen, numbers: Tensor, seed: int) -> Tensor:
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


def _cloud(seen: Seen, numbers: Tensor, seed: int) -> Tensor:
    """Numbers [_CLOUD, k] about one lens's, ever farther."""
    draw = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(inverse(curvature(seen, numbers))[0])
    spread = torch.linspace(0, _REACH, _CLOUD, dtype=torch.float64)[:, None] * values.clamp(min=0).sqrt()
    return numbers + ((spread * torch.randn(spread.shape, generator=draw, dtype=torch.float64)) @ vectors.T).float()


def _any_lens(seen: Seen, numbers: Tensor, seed: int) -> Tensor:
    """Numbers [2 _CLOUD, k] of lenses of the recipe, with the source that makes each look like the image."""
    count = 2 * _CLOUD
    seen = seen.rows(torch.zeros(count, dtype=int))
    model, lens = seen.model, ("x", "y", "einstein_radius")
    at, tried = [model.lens_names.index(name) for name in lens], numbers.repeat(count, 1)
    tried[:, at] = model.pack(drawn_scenes(model.recipe, count, seed))[:, at]
    held, tried = replace(seen, model=model.freeze(*lens)), model.centred(tried, _ROUGH)
    return model.pack(smooth_fit(held, tried, noise_of(seen, tried), _SHAPED, False).params)


def _best_tried(owner: Tensor, tried: Tensor, chi: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of what was tried for each image, the `count` of least chi-square: owners [m] and numbers [m, k]."""
    kept = [mine[chi[mine].argsort()[:count]] for mine in ((owner == i).nonzero()[:, 0] for i in owner.unique())]
    kept = torch.cat(kept)
    return owner[kept], tried[kept]


def _whole_places(seen: Seen, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of whole places of the camera about numbers [n, k], the numbers [n, k] at the best, whether there is no doubt
    [n], and what is left of chi-square for each lit pixel [n]."""
    held, (owner, tried) = seen.held(), _likeliest_places(seen, numbers)
    owner, tried = _best_tried(owner, *polish(held.rows(owner), tried, COOLING[:3]), 3)
    tried, chi = polish(held.rows(owner), tried, COOLING[3:])
    best, alone, left = [], [], []
    for i, lit in enumerate(seen.lit):
        mine = (owner == i).nonzero()[:, 0]
        order = mine[chi[mine].argsort()]
        best.append(tried[order[0]])
        alone.append(len(order) == 1 or bool(chi[order[1]] - chi[order[0]] > _DECIDED))
        left.append(chi[order[0]] / lit)
    best = torch.stack(best)
    return best, torch.tensor(alone) & explained(held, best), torch.stack(left)


def _likeliest_places(seen: Seen, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Whose they are [m], an index into `numbers`, and numbers [m, k] at the likeliest whole places of the camera."""
    at = [seen.model.lens_names.index(name) for name in ("centre_x", "centre_y")]
    owner, tried = [], []
    for i, covariance in enumerate(inverse(curvature(seen, numbers, 0.1))):
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
