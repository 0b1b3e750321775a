"""Convergence and caustics against Gauss's law, closed forms and lenstronomy."""

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.lens_model_extensions import LensModelExtensions
from scipy.spatial import cKDTree

from lenslib.interop import lenstronomy_scene
from lenslib.lens_maps import caustics, convergence, critical_curves, jacobian
from lenslib.recipe import load_recipe

HALF = 2.5


def scene(changes=None, label=0, name="matched_hst"):
    """One image of a class: its recipe, params, points, and the same in lenstronomy's words."""
    recipe = load_recipe(name, changes or {})
    batch = recipe.sample(recipe.chunk_size, seed=3, noise=False)
    k = int((batch.labels == label).nonzero()[0])
    params = {name: value[k : k + 1].double() for name, value in batch.params.items()}
    points = {name: value[k : k + 1].double() for name, value in batch.substructure.items()} if label else None
    return recipe, params, points, lenstronomy_scene(batch, k)


@pytest.mark.parametrize("label", [0, 1])
def test_the_convergence_of_a_square_is_its_mass(label):
    """Over a square, the mean convergence is what enters through its sides; away from substructure, lenstronomy's."""
    recipe, params, points, told = scene(label=label)
    kappa = convergence(jacobian(recipe, params, HALF, 200, points))
    lens = LensModel(told.lens_model_list)
    fine = (np.arange(4000) + 0.5) / 4000 * 2 * HALF - HALF
    side = np.full_like(fine, HALF)
    mass = sum(
        np.mean(lens.alpha(*place, told.kwargs_lens)[axis] * sign) * 2 * HALF
        for place, axis, sign in (
            ((side, fine), 0, 1), ((-side, fine), 0, -1), ((fine, side), 1, 1), ((fine, -side), 1, -1),
        )
    )  # fmt: skip
    assert kappa.mean() * (2 * HALF) ** 2 == pytest.approx(mass / 2, rel=1e-3)
    middles = (np.arange(200) + 0.5) / 200 * 2 * HALF - HALF
    x, y = np.meshgrid(middles, middles)
    smooth = [k for k, name in enumerate(told.lens_model_list) if name not in ("POINT_MASS",)]
    lens = LensModel([told.lens_model_list[k] for k in smooth])
    expected = lens.kappa(x, y, [told.kwargs_lens[k] for k in smooth])
    far = np.hypot(x, y) > 0.5
    if label == 0:
        np.testing.assert_allclose(kappa[far], expected[far], rtol=2e-3)
    else:
        assert np.median(np.abs(kappa[far] - expected[far])) < 2e-3


def test_caustics_are_those_of_lenstronomy():
    recipe, params, _, told = scene()
    lens = LensModelExtensions(LensModel(told.lens_model_list))
    x, y, in_source_x, in_source_y = lens.critical_curve_caustics(
        told.kwargs_lens, compute_window=2 * HALF, grid_scale=0.01
    )
    longest = max(critical_curves(recipe, params, HALF, 400), key=len)
    expected = max(range(len(x)), key=lambda k: len(x[k]))
    for found, ours in ((np.stack([x[expected], y[expected]], 1), longest),
                        (np.stack([in_source_x[expected], in_source_y[expected]], 1),
                         caustics(recipe, params, [longest])[0])):  # fmt: skip
        assert cKDTree(found).query(ours)[0].max() < 0.02
        assert cKDTree(ours).query(found)[0].max() < 0.02


def round_lens(slope):
    recipe, params, _, _ = scene()
    nothing = ("lens_e1", "lens_e2", "gamma1", "gamma2", "lens_center_x", "lens_center_y")
    params |= dict.fromkeys(nothing, torch.zeros(1, dtype=torch.float64))
    return recipe, params | {name: torch.tensor([value], dtype=torch.float64) for name, value in
                             (("lens_theta_E", 1.0), ("gamma", slope))}  # fmt: skip


@pytest.mark.parametrize("pixels", [150, 301])
@pytest.mark.parametrize("slope", [1.6, 1.9, 2.0, 2.4])
def test_a_round_lens_has_the_curves_of_its_slope(slope, pixels):
    """Of Einstein radius 1 and deflection r^(2 - slope): a ring whose caustic is a point; where slope < 2 a radial
    curve at (2 - slope)^(1 / (slope - 1)); where it is 2, a cut of radius 1 in the source plane; beyond, no other."""
    recipe, params = round_lens(slope)
    curves = critical_curves(recipe, params, HALF, pixels)
    found = caustics(recipe, params, curves)
    sizes = [np.hypot(*curve.T).mean() for curve in curves]
    ring = int(np.argmax(sizes))
    np.testing.assert_allclose(np.hypot(*curves[ring].T), 1, atol=5e-3)
    np.testing.assert_allclose(found[ring], 0, atol=5e-3)
    others = [k for k in range(len(curves)) if k != ring]
    assert len(others) == (slope <= 2)
    if slope < 2:
        radius = (2 - slope) ** (1 / (slope - 1))
        np.testing.assert_allclose(np.hypot(*curves[others[0]].T), radius, rtol=0.05)
        np.testing.assert_allclose(np.hypot(*found[others[0]].T), radius ** (2 - slope) - radius, rtol=0.01)
    if slope == 2:
        np.testing.assert_allclose(np.hypot(*found[others[0]].T), 1, atol=1e-3)
    assert caustics(recipe, params, []) == []
