"""The explorer draws the recipe's own images, its sliders move them, and what it says of them is so."""

import io
import re

import matplotlib.image
import numpy as np
import pytest
import torch
from astropy.io import fits

from lenslib.errors import InputError
from lenslib.explorer import Explorer, explore
from lenslib.explorer_judge import judge_for
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


def test_walking_moves_sliders_and_hardly_the_image():
    explorer = Explorer("deeplense_1", 1)
    explorer.label.value = "no_sub"
    before = explorer.values
    explorer.hold.value = True
    explorer.walk()
    assert explorer.values != before
    assert explorer.told.change(explorer.picture.clean, explorer.held) == pytest.approx(1, rel=0.1)
    assert "deviations from the held one" in explorer.words.value
    explorer.walk(-1)
    for name, value in explorer.values.items():
        assert value == pytest.approx(before[name], abs=2e-3 * (explorer.dials[name].high - explorer.dials[name].low))


def test_the_end_of_a_slider_is_said_and_nothing_moves():
    explorer = Explorer("deeplense_1")
    before = explorer.values
    explorer.move({"theta_E": 99.0, "n_sersic": before["n_sersic"] * 1.01})
    assert "theta_E = 99 is beyond its slider" in explorer.said.value
    assert explorer.values == before


def test_a_network_judges_the_image_that_is_shown():
    """With a name, validated, it tells most scenes of its recipe; of a scene unlike them it says so."""
    judge, explorer = judge_for(load_recipe("deeplense_1")), Explorer("deeplense_1")
    assert judge.quick
    right = 0
    for seed in range(4):
        explorer.redraw.value = seed
        for label in explorer.recipe.classes:
            explorer.label.value = label
            explorer.ask()
            shares = re.findall(r"(\w+) <b>([\d.]+)%", explorer.answer.value)
            right += max(shares, key=lambda share: float(share[1]), default=("",))[0] == label
    assert right >= 9
    explorer.move({"R_sersic": explorer.dials["R_sersic"].high, "amp": explorer.dials["amp"].high, "theta_E": 0.45})
    explorer.ask()
    assert "unlike" in explorer.answer.value


def test_a_scene_comes_back_from_its_file(tmp_path):
    explorer = Explorer("matched_hst", 2)
    explorer.label.value, explorer.redraw.value = "vortex", 5
    explorer.sliders["psf_factor"].value, explorer.sliders["vortex_angle"].value = 1.7, 1.0
    shown, path = explorer.picture, tmp_path / "scene.yaml"
    explorer.path.value = str(path)
    explorer.save()
    assert "saved" in explorer.said.value
    other = Explorer("matched_hst", 0)
    other.path.value = str(path)
    other.load()
    assert (other.label.value, other.redraw.value) == ("vortex", 5)
    np.testing.assert_allclose(other.picture.noisy, shown.noisy, atol=1e-4 * shown.noisy.max())
    batch = load_recipe(path).sample(3, seed=0, noise=False)  # it is a recipe as any other
    np.testing.assert_allclose(batch.params["gamma"], explorer.values["gamma"], rtol=1e-6)


def test_a_saved_scene_is_the_image_to_other_programs(tmp_path):
    explorer = Explorer("matched_hst", 2)
    for label in explorer.recipe.classes:
        explorer.label.value = label
        for name in ("scene.fits", "scene.py", "scene.png"):
            explorer.path.value = str(tmp_path / name)
            explorer.save()
        with fits.open(tmp_path / "scene.fits") as file:
            np.testing.assert_array_equal(file[0].data, explorer.picture.noisy)
            np.testing.assert_array_equal(file["CLEAN"].data, explorer.picture.clean)
            assert file[0].header["CLASS"] == label
            assert file[0].header["theta_E"] == pytest.approx(explorer.values["theta_E"])
        names = {}
        exec((tmp_path / "scene.py").read_text(), names)  # noqa: S102 - as its reader would
        clean = explorer.picture.clean
        np.testing.assert_allclose(names["image"], clean, atol=5e-3 * clean.max())
        assert (tmp_path / "scene.png").read_bytes() == explorer.image.value


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("scene.txt", None, "is saved as .yaml"),
        ("absent/scene.yaml", None, "cannot be written"),
        ("scene.yaml", "a: [", "not valid YAML"),
        ("scene.yaml", load_recipe("deeplense_1").to_yaml(), "other dials or classes"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, said):
    explorer = Explorer()
    explorer.path.value = str(tmp_path / name)
    if content is None:
        explorer.save()
        assert said in explorer.said.value
        return
    (tmp_path / name).write_text(content)
    before = explorer.values
    explorer.load()
    assert said in explorer.said.value
    assert explorer.values == before


def test_roulettes_are_the_recipes_own():
    """Every fourth pixel of what `render` gives with the lens in the middle, by the series and by rays."""
    explorer = explore("roulette_sis", 3)
    params = {name: torch.tensor([value], dtype=torch.float32) for name, value in explorer.values.items()}
    frame = explorer.recipe.instrument.model_copy(update={"masked": explorer.masked.value})
    series = explorer.recipe.model_copy(update={"instrument": frame})
    np.testing.assert_allclose(explorer.drawn("roulette"), series.render(params)[0, 0, ::4, ::4], atol=0.01)
    rays = load_recipe(
        "raytrace_sis", {"instrument.centring": "none", "instrument.lookup": "exact", "instrument.pixels": 800}
    )
    np.testing.assert_allclose(explorer.drawn("raytrace"), rays.render(params)[0, 0, ::4, ::4], atol=0.01)


def test_more_terms_come_nearer_to_the_rays():
    explorer = explore("roulette_sis", 3)
    rays, errors = explorer.drawn("raytrace"), []
    for terms in (2, 8, 40):
        before = explorer.image.value
        explorer.masked.value, explorer.terms.value = True, terms
        assert explorer.image.value != before
        lit = explorer.drawn("roulette") > 1
        errors.append(np.abs(explorer.drawn("roulette") - rays)[lit].mean())
    assert errors[0] > errors[1] > errors[2]
    before = explorer.image.value
    explorer.sliders["x"].value = explorer.sliders["y"].value = 0.0
    assert "right behind the lens" in explorer.words.value
    for box in (explorer.ring, explorer.axes, explorer.places):
        explorer.sliders["x"].value = 60.0
        before = explorer.image.value
        box.value = not box.value
        assert explorer.image.value != before


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
