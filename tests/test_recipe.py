"""Recipes: what a file may say, what its errors say, and that the draws follow the priors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lenslib.errors import InputError
from lenslib.priors import Prior
from lenslib.recipe import PER_CLASS, list_recipes, load_recipe, parse_recipe


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_is_its_own_text(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_a_path_is_a_recipe_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(load_recipe("matched_hst", {"name": "mine"}).to_yaml())
    assert load_recipe(path) == load_recipe(str(path)) == load_recipe("matched_hst", {"name": "mine"})


def test_overrides_change_what_they_name_and_nothing_else():
    plain = load_recipe("matched_hst").model_dump()
    changed = load_recipe("matched_hst", {"substructure.mass_fraction": 0.01, "instrument.pixels": 64}).model_dump()
    assert changed["substructure"]["mass_fraction"]["value"] == 0.01
    assert changed["instrument"]["pixels"] == 64
    changed["substructure"]["mass_fraction"] = plain["substructure"]["mass_fraction"]
    changed["instrument"]["pixels"] = plain["instrument"]["pixels"]
    assert changed == plain


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("source.R_sersc", 0.2, "source.R_sersc: there is no such key; did you mean R_sersic"),
        ("source.R_sersic", -0.2, "source.R_sersic"),
        ("source.ellipticity", {"axis_ratio": 1.2, "angle": 0.0}, "source.ellipticity.axis_ratio"),
        ("source.ellipticity", {"axis_ratio": 0.5, "e1": 0.0}, "source.ellipticity"),
        ("lens.profile", "nfw", "lens.profile"),
        ("lens.theta_E", 1.0, "lens"),
        ("lens.mass", "heavy", "lens.mass"),
        ("lens.slope", 2.2, "lens"),
        ("source.center.x", {"uniform": [0.35, -0.35]}, "source.center.x"),
        ("source.center.x", {"uniform": [0.0, float("nan")]}, "source.center.x"),
        ("source.n_sersic", {"uniform": [0.5, 1.0], "value": 1.0}, "source.n_sersic"),
        ("source.n_sersic", {"log_uniform": [-1.0, 1.0]}, "source.n_sersic"),
        ("source.n_sersic", {"normal": [1.0, -0.1], "within": [0.5, 2.0]}, "source.n_sersic"),
        ("source.n_sersic", {"uniform": [0.5, 1.0], "within": [0.5, 0.7]}, "source.n_sersic"),
        ("cosmology.z_source", 0.2, "cosmology"),
        ("instrument.pixels", 0, "instrument.pixels"),
        ("instrument.psf.gaussians", [], "instrument.psf.gaussians"),
        ("instrument.noise.kind", "loud", "instrument.noise"),
        ("substructure.populations.wimp", {"kind": "vortex"}, "substructure.populations.wimp"),
        ("substructure.populations.cdm.count", -1, "substructure.populations.cdm.count"),
        ("substructure.populations.cdm.mass", {"low": 1e9, "high": 1e6, "slope": -1.9}, "cdm.mass"),
        ("substructure.populations.vortex.length", 1.0, "substructure.populations.vortex"),
        ("substructure.populations.cdm.profile", "tnfw", "populations.cdm"),
        ("substructure.populations.cdm.truncation", 3.0, "populations.cdm"),
        ("substructure.populations.vortex.velocity", 0.0, "substructure.populations.vortex.velocity"),
        ("substructure.populations.vortex.mass", "much", "substructure.populations.vortex.mass: 'much' is no number"),
        ("substructure.populations.cdm.mass.slope", -60.0, "substructure.populations.cdm.mass"),
        ("lens.ellipticity", {"e1": 0.8, "e2": 0.8}, "lens.ellipticity"),
        ("lens.mass", 0.0, "lens.mass"),
        ("cosmology.Om0", 0.04, "cosmology: Ob0"),
        ("instrument", "hubble", "instrument: 'hubble'"),
        ("by_class", {"wimp": {"shear": {"gamma1": 0.0, "gamma2": 0.0}}}, "by_class names 'wimp'"),
        ("companions", {"galaxies": {"profile": "point", "count": 0}}, "companions.galaxies.count"),
        (
            "companions",
            {"a b": {"profile": "point", "count": 2, "theta_E": 1, "position": {"x": 0, "y": 0}}},
            "plain name",
        ),
        ("bands", {"g": {"source": {"uniform": [1, 0]}}}, "bands.g.source"),
        ("bands", {}, "bands"),
        ("source", {"profile": "picture", "folder": "x", "pixel_scale": -1.0}, "source.pixel_scale"),
        ("instrument.noise", {"kind": "none", "peak_snr": 20.0}, "peak_snr needs noise"),
        ("title.short", "I", "title"),
        ("name", "../evil", "name"),
    ],
)
def test_an_impossible_value_is_one_line_that_names_its_field(key, value, named):
    with pytest.raises(InputError) as error:
        load_recipe("deeplense_1", {key: value})
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["name", "cosmology", "source", "instrument"])
def test_a_missing_field_is_named(field):
    lines = load_recipe("deeplense_1").model_dump(mode="json", exclude_none=True)
    del lines[field]
    with pytest.raises(InputError, match=f"{field}: .*required"):
        parse_recipe(str(lines))


def test_fractional_substructure_needs_a_mass_fraction():
    with pytest.raises(InputError, match=r"substructure\.mass_fraction is missing"):
        load_recipe("matched_hst", {"substructure.mass_fraction": None})


@pytest.mark.parametrize("text", ["", "- a list", "a: [1", "just words", "a: 1\n\tb: 2"])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="bad.yaml") as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_unknown_names_offer_the_near_ones(tmp_path):
    with pytest.raises(InputError, match="did you mean deeplense_1"):
        load_recipe("deeplens_1")
    with pytest.raises(InputError, match="no recipe file"):
        load_recipe(tmp_path / "absent.yaml")


def _bounds(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(sorted).map(tuple)


_priors = st.one_of(
    st.builds(Prior, value=st.floats(-1e6, 1e6)),
    st.builds(Prior, uniform=_bounds(-1e6, 1e6)),
    st.builds(Prior, log_uniform=_bounds(1e-26, 1e12)),
    st.builds(Prior, uniform_area=_bounds(0, 1e3)),
    st.tuples(st.floats(-10, 10), st.floats(0.01, 10), st.floats(-3, 0), st.floats(0.1, 3)).map(
        lambda t: Prior(normal=t[:2], within=(t[0] + t[1] * t[2], t[0] + t[1] * t[3]))
    ),
)


@settings(deadline=None)
@given(_priors, st.integers(0, 2**32))
def test_draws_lie_in_the_support(prior, seed):
    low, high = prior.support()
    draws = prior.draw(np.random.default_rng(seed), (4, 25))
    # 1e-150, because the square of anything smaller is zero in float64
    rounding = 1e-9 * max(abs(low), abs(high)) + 1e-150
    assert draws.shape == (4, 25)
    assert draws.min() >= low - rounding
    assert draws.max() <= high + rounding


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (Prior(uniform=(-2, 3)), stats.uniform(-2, 5)),
        (Prior(log_uniform=(0.1, 30)), stats.loguniform(0.1, 30)),
        (Prior(normal=(1, 2)), stats.norm(1, 2)),
        (Prior(normal=(1.15, 0.35), within=(0.55, 1.8)), stats.truncnorm(-0.6 / 0.35, 0.65 / 0.35, 1.15, 0.35)),
        (Prior(normal=(0, 0.08), within=(0, 0.21)), stats.truncnorm(0, 0.21 / 0.08, 0, 0.08)),
        # the area within r of a ring from 1 to 3 is (r^2 - 1) / 8 of it
        (Prior(uniform_area=(1, 3)), lambda r: (np.asarray(r) ** 2 - 1) / 8),
    ],
)
def test_draws_follow_the_distribution(prior, law):
    draws = prior.draw(np.random.default_rng(5), 20_000)
    assert stats.kstest(draws, getattr(law, "cdf", law)).pvalue > 1e-3


@pytest.mark.parametrize("within", [(9.0, 10.0), (-50.0, -45.0)])
def test_a_normal_cut_far_in_its_tail_is_refused_or_drawn_right(within):
    try:
        prior = Prior(normal=(0, 1), within=within)
    except ValueError:
        return
    draws = prior.draw(np.random.default_rng(0), 1000)
    assert ((draws >= within[0]) & (draws <= within[1])).all()


def _all_draws(recipe):
    labels, params, points = recipe.draw(3, 0)
    return {"labels": labels} | params | {f"{name}_{k}": v for name in points for k, v in points[name].items()}


@pytest.mark.parametrize(
    ("name", "key", "value", "depends"),
    [
        ("deeplense_1", "source.R_sersic", {"uniform": [0.1, 0.4]}, {"R_sersic"}),
        ("deeplense_1", "substructure.populations.vortex.mass", 1e10, {"vortex_mass", "mass_fraction"}),
        ("deeplense_1", "instrument.noise.exposure_time", 100.0, {"exposure_time"}),
        ("matched_hst", "lens.slope", {"uniform": [1.6, 1.9]}, {"gamma", "lens_theta_E"}),
        ("matched_hst", "source.n_sersic", 1.0, {"n_sersic"}),
        (
            "matched_hst",
            "substructure.mass_fraction",
            0.02,
            {"mass_fraction", "lens_theta_E", "cdm_mass", "vortex_mass"},
        ),
    ],
)
def test_changing_one_prior_leaves_the_other_draws_as_they_were(name, key, value, depends):
    before, after = _all_draws(load_recipe(name)), _all_draws(load_recipe(name, {key: value}))
    differ = {field for field in before if not np.array_equal(before[field], after[field], equal_nan=True)}
    assert differ == depends


@pytest.mark.parametrize("name", list_recipes("lens"))
def test_every_chunk_holds_as_many_of_each_class(name, shipped_recipe):
    recipe = shipped_recipe(name)
    orders = [recipe.draw(seed, chunk)[0] for seed, chunk in ((0, 0), (0, 1), (1, 0))]
    for labels in orders:
        assert np.bincount(labels).tolist() == [PER_CLASS] * len(recipe.classes)
    if len(recipe.classes) == 1:
        return
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])
