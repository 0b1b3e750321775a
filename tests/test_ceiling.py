"""The ceiling, against observers that are simulated and laws that any ceiling obeys."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lenslib.ceiling import (
    Leftovers,
    ceiling_of,
    leftovers,
    only,
    oracle,
    over_pairs,
    paired_auc,
    share_of_ceiling,
    share_text,
    varied_names,
)
from lenslib.errors import InputError
from lenslib.metrics import classification_metrics
from lenslib.recipe import load_recipe
from lenslib.records import Records, run_folder, write_run
from lenslib.refine import smooth
from lenslib.resampling import once
from lenslib.simulate import render

SMALL = {"instrument.pixels": 40, "instrument.pixel_scale": 0.1, "instrument.noise.peak_snr": 25.0}
AUC = {"value": 0.8, "low": 0.78, "high": 0.82}


def recipe(name="matched_hst", **changes):
    return load_recipe(name, SMALL | {key.replace("__", "."): value for key, value in changes.items()})


def linear_lenses(count, seed=0, sigma=1.0, strength=2.0):
    """Lenses whose images are A p + T_k + noise, each with an A [30, 4] and T_k [30] of its own for two classes."""
    rng = np.random.default_rng(seed)
    slopes = rng.standard_normal((count, 30, 4))
    templates = strength * rng.standard_normal((count, 2, 30)) / 30**0.5
    absorbed = np.stack([np.linalg.lstsq(a, t.T, rcond=None)[0] for a, t in zip(slopes, templates, strict=True)])
    left = templates - (slopes @ absorbed).swapaxes(1, 2)
    gram = np.zeros((count, 3, 3))
    gram[:, 1:, 1:] = left @ left.swapaxes(1, 2) / sigma**2
    none = Leftovers(("none", "a", "b"), np.array([False, True, True]), gram, np.ones((count, 3), bool))
    return slopes, templates, none


def observed(slopes, templates, sigma=1.0, seed=1, times=20):
    """Labels and log-likelihood ratios [m, 3] of one who fits p to images of every class, knowing A and both T."""
    rng = np.random.default_rng(seed)
    labels, ratios = [], []
    for a, t in zip(slopes, templates, strict=True):
        t = np.vstack([np.zeros(30), t])
        beside = np.eye(30) - a @ np.linalg.pinv(a)
        for label in np.repeat(np.arange(3), times):
            image = a @ (50 * rng.standard_normal(4)) + t[label] + sigma * rng.standard_normal(30)
            misfit = [((beside @ (image - one)) ** 2).sum() / sigma**2 for one in t]
            labels.append(label)
            ratios.append(-0.5 * (np.array(misfit) - misfit[0]))
    return np.array(labels), np.array(ratios)


def test_the_simulated_observer_of_a_linear_model_has_the_auc_of_the_formula():
    slopes, templates, left = linear_lenses(40)
    found = oracle(left, resamples=200)
    labels, ratios = observed(slopes, templates)
    for k, label in ((1, "a"), (2, "b")):
        pair = labels != 3 - k
        expected = once(40, over_pairs(left.chi_square(label)))[0]
        assert found[f"{label}_against_none_auc"]["value"] == expected
        # 800 images of each: a standard error of about 0.01
        assert roc_auc_score(labels[pair] == k, ratios[pair, k]) == pytest.approx(expected, abs=0.03)


def test_the_simulated_observer_of_three_classes_has_the_macro_auc_of_the_oracle():
    slopes, templates, left = linear_lenses(40, strength=3.0)
    found = oracle(left, resamples=200)
    labels, ratios = observed(slopes, templates)
    scores = np.exp(ratios - ratios.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    reached = classification_metrics(labels, scores, left.classes, resamples=10)
    for name in ("macro_auc", "auc_none", "auc_a", "auc_b"):
        assert found[name]["value"] == pytest.approx(reached[name]["value"], abs=0.03)
    reached = roc_auc_score(labels > 0, scores[:, 1:].sum(1))
    assert found["any_auc"]["value"] == pytest.approx(reached, abs=0.03)


def test_one_lens_has_the_textbook_auc_of_a_known_signal():
    """Phi(d' / sqrt 2), Green & Swets 1966."""
    assert paired_auc(9.0, 9.0) == pytest.approx(norm.cdf(3 / 2**0.5))


def test_two_classes_with_one_template_cannot_be_told_apart():
    gram = np.zeros((30, 3, 3))
    gram[:, 1:, 1:] = 400.0
    left = Leftovers(("none", "a", "b"), np.array([False, True, True]), gram, np.ones((30, 3), bool))
    found = oracle(left, resamples=50)
    # none is told from both, and each of these from none, which is half of its rest
    assert found["auc_none"]["value"] == pytest.approx(1)
    assert found["auc_a"]["value"] == pytest.approx(0.75)


@given(st.lists(st.floats(0, 50), min_size=3, max_size=8), st.floats(1.01, 4))
def test_the_ceiling_grows_with_the_signal_and_never_leaves_its_range(chi_square, factor):
    chi_square = np.array(chi_square)
    low, high = (once(len(chi_square), over_pairs(scale * chi_square))[0] for scale in (1, factor))
    assert 0.5 <= low <= high <= 1
    assert (low < high) or chi_square.max() * factor < 1e-12 or low > 1 - 1e-9


def test_pairs_of_a_resample_are_those_of_the_lenses_it_drew():
    chi_square, drawn = np.array([1.0, 4.0, 9.0]), np.array([0, 0, 2])
    first, second = np.triu_indices(3, 1)
    apart = drawn[first] != drawn[second]
    expected = paired_auc(chi_square[drawn[first]], chi_square[drawn[second]])[apart].mean()
    assert over_pairs(chi_square)(np.array([[2.0, 0.0, 1.0]]))[0, 0] == pytest.approx(expected)


def test_no_signal_is_a_ceiling_of_one_half():
    left = Leftovers(("none", "a"), np.array([False, True]), np.zeros((20, 2, 2)), np.ones((20, 2), bool))
    found = oracle(left, resamples=50)
    for name in ("macro_auc", "any_auc", "a_against_none_auc"):
        assert found[name] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_every_class_is_drawn_with_the_same_lens():
    rough = recipe()
    alone = {label: only(rough, label).sample(8, 5, noise=False) for label in rough.classes}
    for name in ("theta_E", "gamma", "lens_e1", "gamma1", "source_center_x", "background_rms", "peak_snr"):
        assert torch.equal(alone["cdm"].params[name], alone["vortex"].params[name])
        assert torch.equal(alone["cdm"].params[name], alone["no_sub"].params[name])
    assert not torch.equal(alone["cdm"].images, alone["vortex"].images)


def test_what_a_recipe_never_varies_is_known():
    published = load_recipe("deeplense_1", {"instrument.pixels": 40})
    params = smooth(published).sample(8, noise=False).params
    assert varied_names(published, params) == {"source_center_x", "source_center_y"}
    assert "lens_theta_E" in varied_names(recipe(), smooth(recipe()).sample(8, noise=False).params)


def test_priors_of_what_never_varies_are_no_trouble():
    published = load_recipe("deeplense_1", {"instrument.pixels": 40, "instrument.pixel_scale": 0.1})
    plain, informed = (leftovers(published, 4, by=way) for way in ("first_order", "priors_known"))
    assert (informed.chi_square("cdm") >= plain.chi_square("cdm") * (1 - 1e-6)).all()
    # two numbers that vary over widths that the image shows far better
    np.testing.assert_allclose(informed.gram, plain.gram, rtol=0.02, atol=0.1)


@pytest.fixture(scope="module")
def faint():
    """Little substructure: lenses, their fits, and the recipe."""
    little = recipe(substructure__mass_fraction=0.001)
    return little, leftovers(little, 16, seed=3)


def test_where_substructure_is_little_the_fit_leaves_what_a_linear_one_leaves(faint):
    little, left = faint
    linear, informed = (leftovers(little, 16, 3, by) for by in ("first_order", "priors_known"))
    assert left.converged.all()
    for label in ("cdm", "vortex"):
        np.testing.assert_allclose(np.median(left.chi_square(label) / linear.chi_square(label)), 1, atol=0.05)
        # who knows more before, loses less, but not all
        assert (informed.chi_square(label) >= linear.chi_square(label) * (1 - 1e-6)).all()


def test_what_is_left_to_first_order_is_beside_automatic_derivatives():
    little = recipe(substructure__mass_fraction=0.001)
    params = {name: value.double() for name, value in smooth(little).sample(2, 3, noise=False).params.items()}
    names = sorted(varied_names(little, smooth(little).sample(16, 3, noise=False).params))
    drawn = only(little, "vortex").sample(2, 3, noise=False)
    deviation = little.instrument.noise.deviation(drawn.images, drawn.params).flatten(1).double()

    def image(numbers):
        return render(smooth(little), params | dict(zip(names, numbers, strict=True))).flatten(1)[0]

    slopes = torch.func.jacfwd(image)(torch.stack([params[name] for name in names]))[:, :, 0].T / deviation[0]
    change = (drawn.images.flatten(1)[0].double() - image(torch.stack([params[name] for name in names]))) / deviation[0]
    matrix = slopes @ slopes.T
    expected = change @ change - change @ slopes.T @ torch.linalg.solve(matrix, slopes @ change)
    assert leftovers(little, 2, 3, "first_order").chi_square("vortex")[0] == pytest.approx(float(expected), rel=0.02)


def test_more_mass_and_more_signal_to_noise_raise_the_ceiling(faint):
    little, left = faint
    heavier = leftovers(recipe(substructure__mass_fraction=0.01), 16, seed=3)
    sharper = leftovers(recipe(substructure__mass_fraction=0.001, instrument__noise__peak_snr=100.0), 16, seed=3)
    low, more, clear = (oracle(found, resamples=10)["any_auc"]["value"] for found in (left, heavier, sharper))
    assert low < more
    assert low < clear


def test_no_mass_leaves_nothing():
    left = leftovers(recipe(substructure__mass_fraction=1e-9), 4)
    assert left.gram.max() < 1e-3


def test_noise_k_times_as_large_leaves_a_chi_square_k_squared_times_smaller():
    """Of a background alone: so long an exposure that photons make no noise."""
    plain = load_recipe("deeplense_1", {"instrument.pixels": 40, "instrument.noise.exposure_time": 1e12})
    louder = load_recipe("deeplense_1", {"instrument.pixels": 40, "instrument.noise.exposure_time": 1e12,
                                         "instrument.noise.background_rms": 0.03})  # fmt: skip
    first, second = leftovers(plain, 4), leftovers(louder, 4)
    np.testing.assert_allclose(second.gram[:, 1:, 1:] * 9, first.gram[:, 1:, 1:], rtol=0.01)


def test_a_lens_that_is_known_leaves_more_than_one_that_is_fitted():
    published = load_recipe("deeplense_1", {"instrument.pixels": 40, "instrument.pixel_scale": 0.1})
    known, fitted = (leftovers(published, 8, all_unknown=all_unknown) for all_unknown in (False, True))
    assert (known.gram[:, 1, 1] > fitted.gram[:, 1, 1]).all()


def test_without_noise_the_ceiling_is_one_by_definition():
    left = leftovers(load_recipe("deeplense_3"), 4)
    found = oracle(left)
    assert found["noise"] == "none"
    assert found["macro_auc"] == found["cdm_against_none_auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize(("name", "count"), [("matched_hst", 1), ("deeplense_4", 4)])
def test_what_has_no_ceiling_is_refused(name, count):
    with pytest.raises(InputError, match=name):
        leftovers(load_recipe(name), count)


def test_the_share_of_an_exactly_known_ceiling_is_a_change_of_scale():
    exact = {"value": 0.9, "low": 0.9, "high": 0.9}
    expected = {name: pytest.approx((value - 0.5) / 0.4) for name, value in AUC.items()}
    assert share_of_ceiling(AUC, exact) == expected
    assert share_of_ceiling(exact, exact) == {name: pytest.approx(1) for name in exact}


def test_the_interval_of_a_share_covers():
    rng = np.random.default_rng(0)
    truth, hits = (0.8 - 0.5) / (0.9 - 0.5), 0
    for _ in range(1000):
        auc, ceiling = (
            {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}
            for value, error in ((rng.normal(0.8, 0.02), 0.02), (rng.normal(0.9, 0.03), 0.03))
        )
        share = share_of_ceiling(auc, ceiling)
        hits += share["low"] <= truth <= share["high"]
    assert 930 <= hits <= 970


@pytest.mark.parametrize("low", [0.45, 0.5])
def test_the_share_of_a_ceiling_that_may_be_one_half_is_undefined(low):
    ceiling = {"value": 0.55, "low": low, "high": 0.65}
    assert share_of_ceiling(AUC, ceiling) == share_text(AUC, ceiling) == "undefined"


def test_a_record_that_is_not_there_leaves_a_blank(tmp_path):
    place = {"profile": "test", "task": "ceiling", "recipe": "matched_hst", "model": "oracle", "seed": 0}
    ceiling = {"value": 0.9, "low": 0.88, "high": 0.92}
    write_run(run_folder(tmp_path, *place.values()), **place, parameters={}, metrics={"macro_auc": ceiling})
    records = Records(tmp_path)
    assert ceiling_of(records, "matched_hst") == ceiling_of(records, "matched_hst_residual") == ceiling
    assert ceiling_of(records, "deeplense_1") is None
    assert share_text(AUC, None) == ""
    assert share_text(AUC, ceiling).startswith("0.75 [")
