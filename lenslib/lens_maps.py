"""Maps of one lens: its convergence, its critical curves and their images in the source plane, the caustics.

`params` and `points` are those of one image of a `Batch`: tensors [1] and [1, k]. Lengths are arcsec. Derivatives are
differences between the corners of pixels, so that the convergence is the mean over a pixel (Gauss's law), and finite
where a point mass lies.
"""

import numpy as np
import torch
from torch import Tensor

from lenslib.recipe import Recipe
from lenslib.simulate import trace

Curves = list[np.ndarray]
# of a curve, at least
_POINTS = 200
# slopes this near to 2 are isothermal; the radius of a circle about their centre, in arcsec
_ISOTHERMAL, _CUT = 0.01, 1e-4
# share of the Einstein radius within which radial curves lie, and beyond which tangential ones reach
_INNER = 0.6


def jacobian(
    recipe: Recipe, params: dict[str, Tensor], half: float, pixels: int, points=None, centre=(0.0, 0.0)
) -> Tensor:
    """Derivatives of the source plane by the image plane, mean over each of `pixels` x `pixels` within `half` of
    `centre`: [2, 2, pixels, pixels], first (x, y) of the source plane, then of the image, rows of +y."""
    edges = torch.linspace(-half, half, pixels + 1, dtype=params["lens_theta_E"].dtype)
    y, x = torch.meshgrid(edges + centre[1], edges + centre[0], indexing="ij")
    corners = torch.stack([ray[0] for ray in trace(recipe, params, x, y, points)])
    size = 2 * half / pixels
    by_x = (corners[:, :, 1:] - corners[:, :, :-1]) / size
    by_y = (corners[:, 1:] - corners[:, :-1]) / size
    return torch.stack([(by_x[:, 1:] + by_x[:, :-1]) / 2, (by_y[:, :, 1:] + by_y[:, :, :-1]) / 2], 1)


def convergence(bent: Tensor) -> np.ndarray:
    """Mean surface density of each pixel in units of the critical one, [h, w], of a `jacobian`."""
    return (1 - (bent[0, 0] + bent[1, 1]) / 2).numpy()


def critical_curves(recipe: Recipe, params: dict[str, Tensor], half: float, pixels: int) -> Curves:
    """Where the smooth lens magnifies without end, within `half` of the origin, each [n, 2] with n of 200 or more.

    The radial curve of a lens that is shallower than isothermal is sought on a finer grid about its centre. An
    isothermal lens has in its stead a circle about the centre, as small as can be, whose image in the source plane is
    called the cut: there an image vanishes without being magnified. A steeper lens has neither.
    """
    centre = tuple(float(params[f"lens_center_{axis}"]) for axis in "xy")
    inner = min(_INNER * float(params["lens_theta_E"]), half)

    def size(curve: np.ndarray) -> float:
        return np.hypot(*(curve - centre).T).max()

    tangential = [curve for curve in _contours(recipe, params, half, pixels) if size(curve) > inner]
    slope = float(params["gamma"]) if recipe.lens.profile == "epl" else 2.0
    if slope > 2 + _ISOTHERMAL:
        return tangential
    if slope > 2 - _ISOTHERMAL:
        turn = np.linspace(0, 2 * np.pi, _POINTS)
        return [*tangential, np.array(centre) + _CUT * np.stack([np.cos(turn), np.sin(turn)], 1)]
    return tangential + [one for one in _contours(recipe, params, inner, pixels, centre) if size(one) < inner]


def _contours(recipe, params, half: float, pixels: int, centre=(0.0, 0.0)) -> Curves:
    from contourpy import contour_generator

    bent = jacobian(recipe, params, half, pixels, centre=centre)
    determinant = (bent[0, 0] * bent[1, 1] - bent[0, 1] * bent[1, 0]).numpy()
    middles = (np.arange(pixels) + 0.5) / pixels * 2 * half - half
    lines = contour_generator(middles + centre[0], middles + centre[1], determinant).lines(0.0)
    return [_dense(curve) for curve in lines]


def _dense(curve: np.ndarray) -> np.ndarray:
    """A polygon with points along its sides, because few in the image plane can be far apart in the source plane."""
    along = np.append(0, np.hypot(*np.diff(curve, axis=0).T).cumsum())
    even = np.linspace(0, along[-1], max(_POINTS, len(curve)))
    return np.stack([np.interp(even, along, column) for column in curve.T], 1)


def caustics(recipe: Recipe, params: dict[str, Tensor], curves: Curves, points=None) -> Curves:
    """Critical curves as they lie in the source plane, each [n, 2]."""
    if not curves:
        return []
    x, y = torch.tensor(np.concatenate(curves), dtype=params["lens_theta_E"].dtype).T[:, None]
    found = torch.stack([ray[0, 0] for ray in trace(recipe, params, x, y, points)], 1).numpy()
    return np.split(found, np.cumsum([len(curve) for curve in curves])[:-1])
