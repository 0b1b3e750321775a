"""Smooth fits of frames, dark mass put into frames, and whether it is found again.

fit = fit_view(view, recipe, starts)                            # the best of several
images = inject(view, recipe, fit.params, points)               # what a dark mass there would have changed
again = search(view, recipe, images, fit.params)                # fitted anew, with a map of missing mass each

A mass changes the frame by (smooth model with it) - (smooth model), through the frame's own point-spread function: the
rest of the frame, its noise, its galaxy's misfit and the source's knots, stays as the telescope saw it. The noise of
the photons that the mass brings or takes is left out: they are few beside those that stay.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenslib.frame_views import View, through
from lenslib.mass_maps import mass_maps
from lenslib.optics import pixel_grid
from lenslib.recipe import Recipe
from lenslib.refine import Fit, SmoothModel, refine
from lenslib.ringfit import ARC_ERROR
from lenslib.simulate import render, render_quickly

# what fits begin with beside a network's estimate: shares of its Einstein radius, Sersic indices
_RADII, _INDICES = (0.75, 0.85, 0.93, 1.0, 1.07, 1.15, 1.3, 1.5), (1.0, 2.5)
# of fits from a network's estimate, and of those from a fit: by then they hardly move, or will not end
_STEPS, _FEW = 30, 15
_PRIOR_SEED = 0
# share of the highest sensitivity of a frame's map above which its places count: on the arcs and beside them
SEEN = 0.3
# arcsec: a mass found farther from its place than that is another thing found
NEAR = 0.3


def around(estimate: dict[str, float], recipe: Recipe, view: View) -> dict[str, Tensor]:
    """Starts [s] of a fit about a network's estimate: its Einstein radius and others, sources of two slopes, each as
    bright as fits the frame best."""
    count = len(_RADII) * len(_INDICES)
    starts = {name: torch.full((count,), float(value)) for name, value in estimate.items()}
    shares, indices = torch.meshgrid(torch.tensor(_RADII), torch.tensor(_INDICES), indexing="ij")
    starts["lens_theta_E"] = starts["lens_theta_E"] * shares.flatten()
    starts |= {"n_sersic": indices.flatten(), "amp": torch.ones(count), "gamma": torch.full((count,), 2.0)}
    for name in SmoothModel(recipe).names:
        starts.setdefault(name, torch.zeros(count))
    weight = torch.where(view.mask, 0.0, view.own_deviation[0] ** -2)
    arcs = render_quickly(through(view, recipe), starts)
    fits = (weight * arcs * view.image).flatten(1).sum(1) / (weight * arcs**2).flatten(1).sum(1).clamp(min=1e-30)
    starts["amp"] = fits.clamp(min=1e-3 * float(fits.abs().max()))
    return starts


def fit_view(view: View, recipe: Recipe, starts: dict[str, Tensor], image: Tensor | None = None) -> Fit:
    """The best smooth fit (of one image) to a frame, or to `image` [1, h, w] in its stead, from starts [s].

    Best of the solutions that the starts end in is the least sum of chi-square and `unlikely`: a lens that hardly any
    recipe would draw is not preferred for following a knot of the source a little better.
    The noise is the frame's and, as in `lenslib.ringfit`, a share of the arcs' brightness, which no smooth source has.
    """
    image = view.image if image is None else image
    deviation = torch.hypot(view.own_deviation, ARC_ERROR * image.clamp(min=0)[None])
    count = len(starts["lens_theta_E"])
    images, noise = image.expand(count, 1, -1, -1), deviation.masked_fill(view.mask, torch.inf)
    fits = refine(through(view, recipe), images, starts, noise.expand(count, -1, -1, -1), _STEPS)
    return picked(fits, int((fits.chi_square + unlikely(recipe, fits.params)).argmin()))


def unlikely(recipe: Recipe, params: dict[str, Tensor]) -> Tensor:
    """How far smooth lenses [n] lie from those that a recipe draws: the squared distances from its means in its widths,
    summed over what is fitted but the brightness, whose unit is the frame's. [n]"""
    model = SmoothModel(recipe)
    _, drawn, _ = model.recipe.draw(_PRIOR_SEED, 0)
    usual = model.pack({name: torch.as_tensor(drawn[name], dtype=torch.float32) for name in model.names})
    away = (model.pack(params) - usual.mean(0)) / usual.std(0).clamp(min=1e-6)
    return (away**2)[:, [k for k, name in enumerate(model.names) if name != "amp"]].sum(1)


def picked(fit: Fit, row: int) -> Fit:
    """One image's fit."""
    values = {name: value[row : row + 1] for name, value in vars(fit).items() if isinstance(value, Tensor)}
    params = {name: value[row : row + 1] for name, value in fit.params.items()}
    return Fit(names=fit.names, params=params, **values)


def as_rows(params: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """One lens's params [1] as those of `count` lenses."""
    return {name: value.expand(count).clone() for name, value in params.items()}


def inject(view: View, recipe: Recipe, params: dict[str, Tensor], points: dict[str, Tensor]) -> Tensor:
    """Frames [n, 1, h, w] with dark masses `points` [n, k] (see `lenslib.optics.substructure_deflection`) added to the
    smooth lens of `params` [1]. Where every theta_E is 0, the frame as it is."""
    own, count = through(view, recipe), len(points["theta_E"])
    with torch.no_grad():
        change = render(own, as_rows(params, count), points) - render(own, as_rows(params, count))
    return view.image + change


@dataclass(frozen=True)
class Search:
    """What `search` finds in n images, each on its own: maps [n, h, w] of `significance` and `sensitivity` (1 /
    arcsec^2), places that do not count NaN; the highest significance, [n], and where it is, x and y [n] in arcsec; and
    the `fit`."""

    significance: Tensor
    sensitivity: Tensor
    highest: Tensor
    x: Tensor
    y: Tensor
    fit: Fit


def search(view: View, recipe: Recipe, images: Tensor, params: dict[str, Tensor]) -> Search:
    """Refit smooth lenses to images [n, 1, h, w] of a frame, from params [1], and look for missing mass.

    Significances are divided by the scatter of what is left on the arcs where that is above one, so that a source with
    knots, which leaves much everywhere, must show more. It is judged from the median, which one mass hardly moves. A
    place counts where the frame has data and a mass would show at least a share `SEEN` of what it would at best.
    """
    own, count = through(view, recipe), len(images)
    noise = view.own_deviation.expand(count, -1, -1, -1)
    hidden = noise.masked_fill(view.mask, torch.inf)
    fit = refine(own, images, as_rows(params, count), hidden, _FEW)
    maps = mass_maps(SmoothModel(own), fit, fit.residual.masked_fill(view.mask, 0), hidden)
    left = _scatter(fit, hidden)[:, None, None]
    best = maps.sensitivity.flatten(1).amax(1)[:, None, None]
    unseen = view.mask | (maps.sensitivity < SEEN * best)
    significance = (maps.significance / left).masked_fill(unseen, -torch.inf)
    highest, place = significance.flatten(1).max(1)
    x, y = (axis.flatten()[place] for axis in pixel_grid(images.shape[-1], recipe.instrument.pixel_scale))
    return Search(
        significance.masked_fill(unseen, torch.nan),
        (maps.sensitivity / left).masked_fill(unseen, torch.nan),
        highest,
        x,
        y,
        fit,
    )


def _scatter(fit: Fit, noise: Tensor) -> Tensor:
    """Of the residuals [n, 1, h, w] where the fitted arcs stand out of the noise, [n], at least one."""
    on_arcs = fit.residual.abs().masked_fill(fit.model < noise, torch.nan)
    return (1.4826 * on_arcs.flatten(1).nanmedian(1).values).nan_to_num(1.0).clamp(min=1)


def subhalos(
    recipe: Recipe, sensitivity: Tensor, masses: list[float], places: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """One dark subhalo an image, of each of the `masses` (solar masses) at each of `places` drawn evenly from where the
    map `sensitivity` [h, w] is not NaN: points [n, 1], of pseudo-Jaffe profiles."""
    x, y = (axis[~sensitivity.isnan()].numpy() for axis in pixel_grid(len(sensitivity), recipe.instrument.pixel_scale))
    rows = rng.choice(len(x), places)
    theta_E = np.sqrt(recipe.cosmology.theta_E_squared(np.array(masses, float)))
    count = len(masses) * places
    points = {
        "x": np.tile(x[rows], len(masses)),
        "y": np.tile(y[rows], len(masses)),
        "theta_E": np.repeat(theta_E, places),
    }
    points["Rs"] = truncation(points["theta_E"])
    return {name: torch.as_tensor(value, dtype=torch.float32).reshape(count, 1) for name, value in points.items()}


def truncation(theta_E, host: float = 1.2):
    """Radius (arcsec) at which a host of Einstein radius `host` strips an isothermal subhalo of total mass theta_E^2
    that lies at `host` from its centre: sqrt(b b_host) of its own Einstein radius b, with b = theta_E^2 / radius
    (Metcalf & Madau 2001, ApJ 563, 9; Vegetti et al. 2014, MNRAS 442, 2017, section 2): theta_E^(2/3) host^(1/3)."""
    return np.asarray(theta_E, float) ** (2 / 3) * host ** (1 / 3)


def found(result: Search, points: dict[str, Tensor], threshold: float) -> np.ndarray:
    """Bool [n]: the highest significance is above the threshold and lies within `NEAR` of the mass."""
    apart = torch.hypot(result.x - points["x"][:, 0], result.y - points["y"][:, 0])
    return ((result.highest > threshold) & (apart < NEAR)).numpy()


def convergence_draws(
    fit: Fit, count: int, half: float, pixels: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Mean and deviation [pixels, pixels] of a fitted power law's convergence within `half` arcsec, and the parameters
    [count], over draws from the fit's covariance, widened by its chi-square.

    kappa = (3 - gamma) / 2 (theta_E / r)^(gamma - 1) with r^2 = q x^2 + y^2 / q along the axes (Tessore & Metcalf 2015,
    eq. 2, in lenstronomy's Einstein radius, the root of both semi-axes' product). The external shear has none.
    """
    names = [name for name in fit.names if name.startswith("lens_") or name == "gamma"]
    rows = [fit.names.index(name) for name in names]
    wide = max(float(fit.chi_square[0] / fit.freedom[0]), 1.0)
    covariance = wide * fit.covariance[0][rows][:, rows].double().numpy()
    mean = [float(fit.params[name][0]) for name in names]
    drawn = dict(zip(names, rng.multivariate_normal(mean, covariance, count, check_valid="ignore").T, strict=True))
    drawn["gamma"] = drawn["gamma"].clip(1.05, 2.95)
    x, y = (axis.double().numpy() for axis in pixel_grid(pixels, 2 * half / pixels))
    maps = np.stack([power_law_convergence({k: v[i] for k, v in drawn.items()}, x, y) for i in range(count)])
    return maps.mean(0), maps.std(0), drawn


def power_law_convergence(params: dict[str, float], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Convergence of one elliptical power law at (x, y), see `convergence_draws`; the centre is softened by 0.01
    arcsec."""
    size = min(np.hypot(params["lens_e1"], params["lens_e2"]), 0.9)
    q, angle = (1 - size) / (1 + size), np.arctan2(params["lens_e2"], params["lens_e1"]) / 2
    dx, dy = x - params["lens_center_x"], y - params["lens_center_y"]
    along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    radius = np.sqrt(q * along**2 + across**2 / q + 1e-4)
    return (3 - params["gamma"]) / 2 * (params["lens_theta_E"] / radius) ** (params["gamma"] - 1)


@dataclass(frozen=True)
class Trial:
    """One frame put to the test: its `fit` (see `fit_view`), the `clean` search in it as it is, the subhalos put in
    (`points`, [masses x places, 1]), the search in these frames (`loaded`), and whether a subhalo drawn at each place
    lies near the clean frame's own highest significance, bool [masses x places]."""

    fit: Fit
    clean: Search
    points: dict[str, Tensor]
    loaded: Search

    @property
    def coincident(self) -> np.ndarray:
        return (
            torch.hypot(self.clean.x - self.points["x"][:, 0], self.clean.y - self.points["y"][:, 0]) < NEAR
        ).numpy()


def put_to_the_test(
    view: View, recipe: Recipe, estimate: dict[str, float], masses: list[float], places: int, rng: np.random.Generator
) -> Trial:
    """Fit a frame from a network's estimate, search it, and search it again with a subhalo of each of the `masses`
    (solar masses) at each of so many places."""
    fit = fit_view(view, recipe, around(estimate, recipe, view))
    clean = search(view, recipe, view.image[None], fit.params)
    points = subhalos(recipe, clean.sensitivity[0], masses, places, rng)
    loaded = search(view, recipe, inject(view, recipe, clean.fit.params, points), clean.fit.params)
    return Trial(fit, clean, points, loaded)


def thresholds(highest: np.ndarray, rate: float) -> np.ndarray:
    """Of each of n frames, the significance that it exceeds with a chance of at most `rate` if it is like the others.

    It is the ceil(n (1 - rate))-th of the *other* frames' highest ones, so that no frame judges itself (a conformal
    threshold: Vovk et al. 2005, Algorithmic Learning in a Random World); infinite where there are too few of them.
    """
    rank = int(np.ceil(len(highest) * (1 - rate) - 1e-9))
    others = (np.sort(np.delete(highest, k)) for k in range(len(highest)))
    return np.array([one[rank - 1] if rank <= len(one) else np.inf for one in others])


def recovered(trials: list[Trial], masses: list[float], rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each subhalo is found at that false-alarm rate, bool [frames, masses, places], and whether the frame
    as it is would have passed for it, because its own highest significance is above the threshold and near."""
    limits = thresholds(np.array([float(trial.clean.highest[0]) for trial in trials]), rate)
    shape = (len(trials), len(masses), -1)
    hits = [found(trial.loaded, trial.points, limit) for trial, limit in zip(trials, limits, strict=True)]
    chance = [
        trial.coincident & (float(trial.clean.highest[0]) > limit) for trial, limit in zip(trials, limits, strict=True)
    ]
    return np.reshape(hits, shape), np.reshape(chance, shape)
