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


def jacobian(recipe: Recipe, params: dict[str, Tensor], half: float, pixels: int, points=None) -> Tensor:
    """Derivatives of the source plane by the image plane, mean over each of `pixels` x `pixels` between -half and half:
    [2, 2, pixels, pixels], first (x, y) of the source plane, then of the image, rows of +y."""
    edges = torch.linspace(-half, half, pixels + 1, dtype=params["lens_theta_E"].dtype)
    y, x = torch.meshgrid(edges, edges, indexing="ij")
    corners = torch.stack([ray[0] for ray in trace(recipe, params, x, y, points)])
    size = 2 * half / pixels
    by_x = (corners[:, :, 1:] - corners[:, :, :-1]) / size
    by_y = (corners[:, 1:] - corners[:, :-1]) / size
    return torch.stack([(by_x[:, 1:] + by_x[:, :-1]) / 2, (by_y[:, :, 1:] + by_y[:, :, :-1]) / 2], 1)


def convergence(bent: Tensor) -> np.ndarray:
    """Mean surface density of each pixel in units of the critical one, [h, w], of a `jacobian`."""
    return (1 - (bent[0, 0] + bent[1, 1]) / 2).numpy()


def critical_curves(bent: Tensor, half: float) -> Curves:
    """Where light is magnified without end, each [n, 2] with n of 200 or more, of a `jacobian` between -half and half.

    A singular lens has besides a curve about its centre, whose image in the source plane is called the cut: where the
    number of images changes without being magnified.
    """
    from contourpy import contour_generator

    determinant = (bent[0, 0] * bent[1, 1] - bent[0, 1] * bent[1, 0]).numpy()
    middles = (np.arange(len(determinant)) + 0.5) / len(determinant) * 2 * half - half
    return [_dense(curve) for curve in contour_generator(middles, middles, determinant).lines(0.0)]


def _dense(curve: np.ndarray) -> np.ndarray:
    """A polygon with points along its sides, because the few about the centre of a singular lens are far apart in the
    source plane."""
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
