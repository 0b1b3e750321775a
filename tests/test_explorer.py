"""The explorer draws the recipe's own images, and its sliders move them."""

import io

import matplotlib.image
import numpy as np
import pytest
import torch

from lenslib.errors import InputError
from lenslib.explorer import Explorer
from lenslib.optics import macro_deflection, point_mass_deflection
from lenslib.recipe import load_recipe
from lenslib.scene import default_scene, dials, draw_scene, residual

RECIPES = ("deeplense_1", "matched_hst")


@pytest.mark.parametrize("name", RECIPES)
def test_a_scene_is_an_image_of_the_data_set(name):
    recipe, seed = load_recipe(name), 3
    batch = recipe.sample(recipe.chunk_size, seed=seed, noise=False)
    for index, label in enumerate(recipe.classes):
        image = int((batch.labels == index).nonzero()[0])
        picture = draw_scene(recipe, default_scene(recipe, label, seed), label, seed)
        expected = batch.images[image, 0].numpy()
        # compiled and plain kernels round differently
        np.testing.assert_allclose(picture.clean, expected, atol=1e-5 * expected.max())
        for param, column in batch.params.items():
            np.testing.assert_allclose(picture.params[param], column[image], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", RECIPES)
def test_no_substructure_is_the_smooth_lens(name):
    recipe = load_recipe(name)
    for label in recipe.classes:
        values = default_scene(recipe, label)
        nothing = "mass_fraction" if "mass_fraction" in values else "vortex_mass"
        full, empty = (draw_scene(recipe, values | change, label) for change in ({}, {nothing: 0.0}))
        plain = draw_scene(recipe, values, "no_sub")
        if label in dials(recipe)[nothing].classes:
            np.testing.assert_allclose(empty.clean, empty.smooth, atol=1e-6 * empty.clean.max())
        # up to brightness, which follows the peak where the recipe fixes its signal-to-noise
        assert np.abs(residual(full.smooth, plain.clean)).max() < 1e-4
        assert (np.abs(full.clean - full.smooth).max() > 1e-3 * full.clean.max()) == (label != "no_sub")


@pytest.mark.parametrize("label", ["no_sub", "cdm", "vortex"])
@pytest.mark.parametrize("conserve", ["within_theta_E", "none"])
def test_the_mass_within_the_einstein_radius(label, conserve):
    """Gauss's law: the mean radial deflection on a circle, times its radius, is the mass within (theta_E^2)."""
    recipe = load_recipe("matched_hst", {"substructure.conserve_mass": conserve})
    round_lens = dict.fromkeys(("lens_e1", "lens_e2", "lens_center_x", "lens_center_y"), 0.0)
    values = default_scene(recipe, label) | round_lens | {"theta_E": 1.2, "gamma": 2.3, "mass_fraction": 0.03}
    picture = draw_scene(recipe, values, label)
    params = {name: torch.tensor([value], dtype=torch.float64) for name, value in picture.params.items()}
    points = {name: torch.tensor(value[None], dtype=torch.float64) for name, value in picture.substructure.items()}
    angle = torch.arange(400_000, dtype=torch.float64)[None] * (2 * torch.pi / 400_000)
    x, y = 1.2 * angle.cos(), 1.2 * angle.sin()
    alpha_x, alpha_y = macro_deflection(params, x, y, "epl")
    if points:
        held = points["theta_E"] > 0
        inside = float((points["theta_E"] ** 2)[held & (points["x"].hypot(points["y"]) < 1.2)].sum())
        assert inside > 0.003 * 1.2**2, "a scene that would show nothing"
        for k in held[0].nonzero()[:, 0]:
            one_x, one_y = point_mass_deflection(*(points[name][:, k : k + 1] for name in ("x", "y", "theta_E")), x, y)
            alpha_x, alpha_y = alpha_x + one_x, alpha_y + one_y
    mass = float((alpha_x * x + alpha_y * y).mean())
    expected = 1.2**2 + (inside if points and conserve == "none" else 0)
    assert mass == pytest.approx(expected, rel=2e-4)


def test_redrawing_keeps_the_values_and_moves_the_substructure():
    recipe = load_recipe("matched_hst")
    values = default_scene(recipe, "cdm")
    one, other = (draw_scene(recipe, values, "cdm", seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.clean, draw_scene(recipe, values, "cdm", 1).clean)
    for name in values.keys() & one.params.keys():
        assert one.params[name] == pytest.approx(values[name], rel=1e-6, abs=1e-8) or not np.isfinite(one.params[name])
        assert one.params[name] == other.params[name] or not np.isfinite(one.params[name])
    assert np.abs(one.clean - other.clean).max() > 0.01 * one.clean.max()


@pytest.mark.parametrize("name", RECIPES)
def test_every_dial_has_a_finite_range_that_the_recipe_allows(name):
    recipe = load_recipe(name)
    for label in recipe.classes:
        values = default_scene(recipe, label)
        for dial in dials(recipe).values():
            assert np.isfinite([dial.low, dial.high]).all()
            assert dial.low < dial.high
            for value in (dial.low, dial.high):
                picture = draw_scene(recipe, values | {dial.name: value}, label)
                assert np.isfinite(picture.clean).all(), (label, dial.name, value)
                assert np.isfinite(picture.noisy).all(), (label, dial.name, value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_slider_moves_the_picture(name):
    explorer = Explorer(name)
    explorer.label.value = "vortex"
    for dial, slider in explorer.sliders.items():
        before, start = explorer.image.value, slider.value
        low = 10**slider.min if explorer.dials[dial].log else slider.min
        slider.value = low if abs(low - start) > 1e-3 * abs(start) else explorer.dials[dial].high
        assert (explorer.image.value != before) == (not slider.disabled), dial
        slider.value = start
    for control in (explorer.redraw, explorer.label):
        before = explorer.image.value
        control.value = 7 if control is explorer.redraw else "cdm"
        assert explorer.image.value != before
    assert matplotlib.image.imread(io.BytesIO(explorer.image.value), format="png").ndim == 3


def test_holding_an_image_shows_the_change_since():
    explorer = Explorer()
    explorer.hold.value = True
    assert "rms change 0.00%" in explorer.title
    explorer.sliders["theta_E"].value *= 1.05
    assert "rms change 0.00%" not in explorer.title
    explorer.hold.value = False
    assert explorer.held is None


def test_bad_input_is_one_line_that_names_it():
    recipe = load_recipe("matched_hst")
    values = default_scene(recipe, "cdm")
    cases = {
        "unknown recipe 'matched_hts': did you mean matched_hst": lambda: Explorer("matched_hts"),
        "unknown class 'CDM'": lambda: draw_scene(recipe, values, "CDM"),
        "unknown dial 'theta': did you mean theta_E": lambda: draw_scene(recipe, values | {"theta": 1.0}, "cdm"),
        "no value for gamma2": lambda: draw_scene(recipe, {k: v for k, v in values.items() if k != "gamma2"}, "cdm"),
        "lens.theta_E": lambda: draw_scene(recipe, values | {"theta_E": -1.0}, "cdm"),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
