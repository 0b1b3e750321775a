"""Labels and what a network learns of them: one label an image, and back; they turn as images do."""

import numpy as np
import pytest
import torch

from lenslib import load_recipe, roulettes
from lenslib.augmentation import turn_images
from lenslib.errors import InputError
from lenslib.observable import hidden_targets, least_errors
from lenslib.roulette_camera import draw_images
from lenslib.targets import KINDS, Targets, amplitudes, find_targets, fit_targets, ordered

ROULETTE = ("parameters", "raw", "amplitudes")


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("roulette_sis", {"instrument.pixels": 200})


def fitted(recipe, kind, seed=0):
    """Targets of a kind, scaled by one chunk of scenes, and the labels of these."""
    drawn = recipe.draw(seed, 0)
    targets = find_targets(recipe, kind)
    labels = targets.label(drawn)
    return fit_targets(targets, labels, recipe), labels, drawn


@pytest.mark.parametrize("name", ["roulette_sis", "roulette_pm", "raytrace_sie"])
@pytest.mark.parametrize("kind", ROULETTE)
def test_labels_come_back(name, kind):
    targets, labels, _ = fitted(load_recipe(name), kind)
    back = targets.decode(targets.encode(labels))
    for deviation in targets.deviations(labels, back).values():
        assert np.nanmax(np.abs(deviation)) < 1e-8


@pytest.mark.parametrize("kind", ["parameters", "amplitudes"])
def test_what_is_learned_is_scaled(recipe, kind):
    targets, labels, _ = fitted(recipe, kind)
    encoded = targets.encode(labels)
    assert 0.2 < encoded.std(0).min() <= encoded.std(0).max() < 3


def test_raw_labels_are_as_drawn(recipe):
    targets, _, drawn = fitted(recipe, "raw")
    np.testing.assert_array_equal(targets.encode(drawn), np.stack([drawn[name] for name in targets.names], 1))


def test_two_labels_of_one_image_are_learned_as_one(recipe):
    targets, _, drawn = fitted(recipe, "parameters")
    twin = drawn | {"sigma1": drawn["sigma2"], "sigma2": drawn["sigma1"], "theta": (drawn["theta"] + 90) % 180}
    labels, others = targets.label(drawn), targets.label(twin)
    np.testing.assert_allclose(targets.encode(others), targets.encode(labels), atol=1e-12)
    assert (labels["sigma1"] >= labels["sigma2"]).all()
    deviations = targets.deviations(drawn, twin)
    assert all(np.nanmax(np.abs(value)) < 1e-9 for value in deviations.values())


def test_the_angle_of_a_round_source_is_neither_learned_nor_judged(recipe):
    targets, _, drawn = fitted(recipe, "parameters")
    round_ones = drawn | {"sigma2": drawn["sigma1"].copy()}
    turned = round_ones | {"theta": round_ones["theta"] + 37}
    np.testing.assert_array_equal(targets.encode(targets.label(round_ones)), targets.encode(targets.label(turned)))
    assert np.isnan(targets.deviations(round_ones, turned)["theta"]).all()


def test_angles_differ_the_short_way_round():
    targets = Targets("parameters", ("sigma1", "sigma2", "theta"))
    sizes = {"sigma1": np.array([9.0, 9.0]), "sigma2": np.array([5.0, 5.0])}
    found = targets.deviations(sizes | {"theta": [1.0, 178.0]}, sizes | {"theta": [179.0, 4.0]})
    np.testing.assert_allclose(found["theta"], [-2.0, 6.0])


@pytest.mark.parametrize("lookup", ["floor", "exact"])
@pytest.mark.parametrize("kind", range(8))
def test_turned_images_are_images_of_turned_labels(recipe, lookup, kind):
    """Drawn again from turned labels, but for the camera, which centres by whole pixels."""
    recipe = recipe.model_copy(update={"instrument": recipe.instrument.model_copy(update={"lookup": lookup})})
    targets, labels, drawn = fitted(recipe, "parameters")
    some = {name: value[:6] for name, value in labels.items()}
    encoded = torch.from_numpy(targets.encode(some))
    found = targets.decode(targets.turned(encoded, kind))
    images, again = (
        draw_images(recipe, {name: {"chi": np.full(6, 50.0), **one}[name] for name in drawn}, [0, 0], "cpu", True)[0]
        for one in (some, found)
    )
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    turned = torch.stack([turn_images(images, kind).roll(shift, (2, 3)) for shift in shifts])
    away = (turned - again).abs()[..., 2:-2, 2:-2].mean((2, 3, 4)).min(0).values
    # rounding to grey levels alone; half a pixel off is a hundred times as much
    assert (away < 2e-3).all()


def test_amplitudes_turn_as_their_spin(recipe):
    """Those of turned parameters are the turned amplitudes."""
    plain, labels, drawn = fitted(load_recipe("roulette_sis", {"instrument.lookup": "exact"}), "amplitudes")
    places, _, _ = fitted(load_recipe("roulette_sis", {"instrument.lookup": "exact"}), "parameters")
    for kind in range(8):
        moved = places.decode(places.turned(torch.from_numpy(places.encode(places.label(drawn))), kind))
        expected = plain.label(drawn | {name: moved[name] for name in ("x", "y")})
        found = plain.decode(plain.turned(torch.from_numpy(plain.encode(labels)), kind))
        for name in plain.names:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-12)


def test_amplitudes_are_those_of_the_lens_plane_at_the_image(recipe):
    drawn = {name: torch.as_tensor(value) for name, value in recipe.draw(0, 0).items()}
    nu = roulettes.image_position("sis", drawn)
    expected = roulettes.sis_amplitudes(drawn["einstein_radius"], 0.5 * nu[0], 0.5 * nu[1], 5)
    found = amplitudes(recipe.draw(0, 0), "sis")
    np.testing.assert_allclose(found["alpha21"], expected[:, 2, 1].real)
    np.testing.assert_allclose(found["beta12"], expected[:, 1, 2].imag)
    # the convergence of a sphere, R_E / 2 |xi|
    np.testing.assert_allclose(-found["alpha10"], drawn["einstein_radius"] / (2 * torch.hypot(*nu) / 2), rtol=1e-9)


def test_masses_are_decimal_logarithms():
    targets = find_targets(load_recipe("deeplense_1"), "axion_mass")
    labels = targets.label({"axion_mass": np.array([1e-24, 1e-22])})
    np.testing.assert_allclose(labels["log10_axion_mass"], [-24, -22])


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("deeplense_1", "parameters", "those of roulette recipes"),
        ("roulette_sis", "axion_mass", "does not draw the axion mass"),
        ("matched_hst", "axion_mass", "does not draw"),
        ("roulette_sis", "mass_fraction", "does not draw the mass fraction"),
        ("roulette_sis", "parameter", "did you mean parameters"),
    ],
)
def test_targets_that_a_recipe_does_not_have(name, kind, said):
    with pytest.raises(InputError, match=said) as error:
        find_targets(load_recipe(name), kind)
    assert "\n" not in str(error.value)


def test_one_value_is_nothing_to_learn(recipe):
    targets, labels, _ = fitted(recipe, "parameters")
    with pytest.raises(InputError, match="nothing to learn"):
        fit_targets(targets, labels | {"einstein_radius": np.full(32, 20.0)}, recipe)


def test_kinds_are_all_there():
    assert set(ROULETTE) < set(KINDS)


def test_ordering_twice_is_ordering_once(recipe):
    once = ordered(recipe.draw(0, 0))
    for name, value in ordered(once).items():
        np.testing.assert_array_equal(value, once[name])


def test_the_least_errors_of_labels_that_images_share():
    """Against the arithmetic of the sampling: half the mean difference of the sigmas, a quarter turn's half, and the
    mean distance of an even draw from its middle."""
    half, quarter = (load_recipe("roulette_sis", {"sampling.theta": [0, last]}) for last in (179, 89))
    found, count = least_errors(half, 4096), 4096
    drawn = [half.draw(0, chunk) for chunk in range(count // 32)]
    apart = np.abs(np.concatenate([part["sigma1"] - part["sigma2"] for part in drawn]))
    share = (apart == 0).mean()
    assert found["sigma1"]["mae"] == pytest.approx(apart.mean() / 2)
    assert found["sigma2"]["mse"] == pytest.approx((apart**2).mean() / 4)
    assert found["theta"]["mae"] == pytest.approx(45)
    assert found["theta_round"]["mae"] == pytest.approx(45 * share)
    assert found["theta_round"]["mse"] == pytest.approx((180**2 - 1) / 12 * share)
    found = least_errors(quarter, 4096)
    assert found["sigma1"] == {"mae": 0, "mse": 0}
    assert found["theta"]["mae"] == found["theta_round"]["mae"] == pytest.approx(22.5 * share)
    assert found["theta"]["mse"] == pytest.approx((90**2 - 1) / 12 * share)


def test_targets_that_cannot_be_seen_are_named():
    recipe = load_recipe("roulette_sis", {"sampling.chi": [30, 70], "instrument.pixels": 200})
    with pytest.warns(UserWarning, match="chi and einstein_radius together"):
        hidden = hidden_targets(recipe, find_targets(recipe, "parameters"))
    assert hidden == {"chi": 1.0, "einstein_radius": 1.0}


@pytest.mark.parametrize(("kind", "last", "warned"), [("parameters", 179, 0), ("raw", 179, 1), ("raw", 89, 0)])
def test_only_labels_of_which_an_image_has_two_are_warned_of(recwarn, kind, last, warned):
    recipe = load_recipe("roulette_sis", {"sampling.theta": [0, last], "instrument.pixels": 200})
    assert hidden_targets(recipe, find_targets(recipe, kind)) == {}
    assert len([one for one in recwarn if "two labels" in str(one.message)]) == warned
