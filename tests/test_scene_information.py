"""What one scene's image tells, against automatic derivatives, and by what it claims of itself."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from lenslib.errors import InputError
from lenslib.recipe import load_recipe
from lenslib.scene import default_scene, draw_scene, pinned
from lenslib.scene_information import tell
from lenslib.simulate import render


def told(name="deeplense_1", label="no_sub", changes=None, values=None):
    recipe = load_recipe(name, changes or {})
    values = default_scene(recipe, label, 4) | (values or {})
    picture = draw_scene(recipe, values, label, 4)
    return recipe, values, picture, tell(recipe, values, picture)


def test_bounds_are_those_of_automatic_derivatives():
    recipe, values, picture, found = told("matched_hst", changes={"instrument.pixels": 40})
    params = {name: torch.tensor([value], dtype=torch.float64) for name, value in picture.params.items()}
    names = ["lens_theta_E" if name == "theta_E" else name for name in found.bounds]
    scene = pinned(recipe, values)

    def image(numbers):
        return render(scene, params | dict(zip(names, numbers[:, None], strict=True)))[0, 0].flatten()

    numbers = torch.stack([params[name][0] for name in names])
    slopes = torch.func.jacfwd(image)(numbers) / torch.tensor(found.deviation).flatten()[:, None]
    expected = torch.linalg.inv(slopes.T @ slopes).diagonal().sqrt().numpy()
    np.testing.assert_allclose(list(found.bounds.values()), expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["deeplense_1", "matched_hst"])
def test_a_step_in_the_weakest_direction_changes_the_image_by_one_deviation(name):
    recipe, values, picture, found = told(name)
    assert set(found.weakest) <= set(values)
    step = found.weakest
    for sign in (1, -1):
        moved = {name: value + sign * step.get(name, 0) for name, value in values.items()}
        changed = found.change(draw_scene(recipe, moved, "no_sub").clean, picture.clean)
        assert changed == pytest.approx(1, rel=0.1)
    # which is a point on the ellipsoid of one deviation, so that no coordinate is beyond its bound
    assert all(abs(step[name]) <= found.bounds[name] * 1.0001 for name in step)


def test_no_substructure_is_no_signal():
    *_, nothing = told()
    assert nothing.signal == 0
    assert nothing.ceiling == 0.5
    *_, something = told(label="vortex")
    assert something.signal > 1
    assert something.ceiling == pytest.approx(norm.cdf(something.signal / 2**0.5))


def test_the_signal_is_what_a_fit_leaves():
    """To first order, as much chi-square as scipy's least squares leave, wherever they begin."""
    from scipy.optimize import least_squares

    changes = {"instrument.pixels": 40, "instrument.noise.peak_snr": 25.0}
    recipe, values, picture, found = told("matched_hst", "vortex", changes, {"mass_fraction": 0.01})
    names = ["lens_theta_E" if name == "theta_E" else name for name in found.bounds]
    scene, params = pinned(recipe, values), picture.params | {"theta_E": picture.params["lens_theta_E"]}
    start = np.array([params[name] for name in names])

    def left(numbers):
        given = params | dict(zip(names, numbers * np.abs(start).clip(0.01), strict=True))
        given = {name: torch.tensor([value], dtype=torch.float64) for name, value in given.items()}
        return ((render(scene, given)[0, 0].numpy() - picture.clean) / found.deviation).ravel()

    fit = least_squares(left, start / np.abs(start).clip(0.01), method="lm")
    assert found.signal**2 == pytest.approx(2 * fit.cost, rel=0.15)


@pytest.mark.parametrize("changes", [{"instrument.noise.kind": "none"}, {"instrument.divide_by_peak": True}])
def test_images_that_cannot_be_judged_are_refused(changes):
    with pytest.raises(InputError, match="matched_hst"):
        told("matched_hst", changes=changes)
