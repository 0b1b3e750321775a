"""The blind ceiling, against observers whose AUC is an integral, and the library's own renderer."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lenslib.blind import Cells, blind_ceiling, likelihoods, pieces, without
from lenslib.errors import InputError
from lenslib.recipe import load_recipe
from lenslib.refine import smooth
from lenslib.simulate import render

POPULATIONS = "substructure.populations"


def integrated_auc(places, strength):
    """The AUC of the likelihood ratio of one signal of a known strength, equally likely in any of so many orthogonal
    places, against noise: over a grid of the image's parts along them, under both hypotheses."""
    axis = np.linspace(-6, 6 + strength, 90)
    parts = np.stack(np.meshgrid(*[axis] * places, indexing="ij"), -1).reshape(-1, places)
    none = norm.pdf(parts).prod(1)
    ratio = np.exp(strength * parts - strength**2 / 2).mean(1)
    labels, weights = np.repeat([0, 1], len(parts)), np.concatenate([none, ratio * none])
    return roc_auc_score(labels, np.tile(ratio, 2), sample_weight=weights)


def observed(templates, truths, seed=1):
    """AUCs by name of what `likelihoods` says of as many images as there are truths, and as many of noise."""
    noise = np.random.default_rng(seed).standard_normal((2, *truths.shape))
    labels = np.repeat([0, 1], len(truths))
    found = likelihoods([templates], [truths], noise)
    return {name: roc_auc_score(labels, value.ravel()) for name, value in found.items()}


@pytest.mark.parametrize(("places", "strength"), [(1, 1.5), (2, 2.0), (3, 2.5)])
def test_an_observer_who_is_given_every_place_has_the_auc_of_the_integral(places, strength):
    templates = strength * np.eye(places)
    truths = templates[np.random.default_rng(0).integers(places, size=20000)]
    # 20,000 images of each: a standard error of about 0.003
    assert observed(templates, truths)["least"] == pytest.approx(integrated_auc(places, strength), abs=0.01)


def test_one_who_is_told_the_place_has_the_textbook_auc():
    """Phi(d' / sqrt 2), Green & Swets 1966."""
    templates = 1.5 * np.eye(50)
    truths = templates[np.random.default_rng(0).integers(50, size=20000)]
    assert observed(templates, truths)["known"] == pytest.approx(norm.cdf(1.5 / 2**0.5), abs=0.01)


def test_few_draws_bound_the_integral_from_both_sides_and_more_draws_bound_it_closer():
    places, strength, images = 3, 2.0, 50
    rng, exact, gaps = np.random.default_rng(2), integrated_auc(places, strength), []
    for draws in (4, 16, 256):
        parts = []
        for _ in range(400):
            own, true = (strength * np.eye(places)[rng.integers(places, size=n)] for n in (draws, images))
            parts.append(likelihoods([own], [true], rng.standard_normal((2, images, places))))
        labels = np.tile(np.repeat([0, 1], images), len(parts))
        least, most = (roc_auc_score(labels, np.ravel([part[name] for part in parts])) for name in ("least", "most"))
        # 20,000 images of each: a standard error of about 0.003
        assert least < exact + 0.008
        assert most > exact - 0.008
        gaps.append(most - least)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_what_a_fit_takes_up_leaves_nothing_and_what_it_cannot_stays():
    slopes = torch.randn(4, 30, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-3, 1, 10, 1e4])[:, None]
    across = torch.randn(30, generator=torch.Generator().manual_seed(2))
    across -= slopes.T @ torch.linalg.lstsq(slopes.T.double(), across.double()[:, None]).solution[:, 0].float()
    left = without(slopes, torch.stack([slopes.sum(0), across]))
    assert float(left[0].norm()) < 1e-3 * float(slopes.sum(0).norm())
    torch.testing.assert_close(left[1], across, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def one_lens(small_matched):
    recipe = small_matched({"substructure.mass_fraction": 0.01})
    params = smooth(recipe).sample(4, 3, noise=False).params
    return recipe, {name: value[1:2].double() for name, value in params.items()}


def test_responses_are_the_derivatives_of_the_renderer(one_lens):
    recipe, params = one_lens
    cells, mass = Cells(recipe), 1e-7
    responses = cells.responses({name: value.float() for name, value in params.items()}, torch.ones(1600))
    brightest = responses.norm(dim=1).topk(5).indices
    for k in brightest.tolist():
        x, y = cells.middles[:, k].double()
        points = {"x": x.view(1, 1), "y": y.view(1, 1), "theta_E": torch.full((1, 1), mass**0.5).double()}
        change = (render(recipe, params, points) - render(recipe, params)).flatten() / mass
        assert float((responses[k] - change).norm()) < 1e-2 * float(change.norm())


def test_the_sum_over_cells_is_what_a_string_does(one_lens):
    recipe, params = one_lens
    cells, mass = Cells(recipe), 1e-6
    string = {name: np.array([[value]]) for name, value in {"x": 0.3, "y": -0.4, "mass": mass, "length": 1.2}.items()}
    string["angle"] = np.array([[0.7]])
    responses = cells.responses({name: value.float() for name, value in params.items()}, torch.ones(1600))
    points = {name: torch.from_numpy(value) for name, value in string.items() if name != "mass"}
    change = render(recipe, params, points | {"theta_E": torch.full((1, 1), mass**0.5).double()})
    change = (change - render(recipe, params)).flatten().numpy()
    found = (cells.shares(string) @ responses.numpy())[0]
    # cells of two pixels blur a line a little
    assert np.linalg.norm(found - change) < 0.15 * np.linalg.norm(change)


def test_cells_hold_all_mass_and_keep_a_strings_middle(one_lens):
    recipe, params = one_lens
    cells = Cells(recipe)
    for label in ("cdm", "vortex"):
        drawn = pieces(recipe, label, params, 200, [1])
        held = cells.shares(drawn)
        np.testing.assert_allclose(held.sum(1), 0.01 * float(params["theta_E"]) ** 2, rtol=1e-4)
    near = {name: value[:1] for name, value in drawn.items()} | {"x": np.array([[0.1]]), "y": np.array([[-0.2]])}
    middle = cells.shares(near) @ cells.middles.T.numpy() / near["mass"]
    np.testing.assert_allclose(middle, [[0.1, -0.2]], atol=1e-4)


def test_bounds_keep_their_order_and_a_mass_of_nothing_tells_nothing(small_matched):
    recipe = small_matched({"substructure.mass_fraction": 0.005, "instrument.noise.peak_snr": 25.0})
    found = blind_ceiling(recipe, 6, 4096, 50, resamples=50)
    for name in ("any", "cdm", "vortex"):
        value = {bound: found[f"{name}_{bound}_auc"]["value"] for bound in ("least", "most", "known", "rendered")}
        assert 0.5 < value["least"] <= value["most"] + 0.02
        assert value["most"] <= value["known"] + 0.02
        assert value["rendered"] > 0.5
    light = small_matched({"substructure.mass_fraction": 1e-6})
    found = blind_ceiling(light, 6, 64, 100, resamples=50)
    # 600 images of a class: a standard error of 0.02
    assert found["any_most_auc"]["value"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "sizes", "said"),
    [
        ({}, (1, 64), "two lenses"),
        ({"instrument.noise": {"kind": "none"}}, (4, 64), "noise"),
        ({"classes": ["no_sub"], POPULATIONS: {}}, (4, 64), "with and without"),
        ({f"{POPULATIONS}.cdm.profile": "pseudo_jaffe"}, (4, 64), "cdm is neither"),
        ({"by_class": {"cdm": {"shear": {"gamma1": 0.1, "gamma2": 0.0}}}}, (4, 64), "of their own"),
    ],
)
def test_what_has_no_blind_ceiling_is_refused(changes, sizes, said):
    with pytest.raises(InputError, match=said):
        blind_ceiling(load_recipe("matched_hst", changes), *sizes)
