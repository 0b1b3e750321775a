"""Dark masses put into frames: nothing from nothing, a mass found where it was put, and fits that know the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lenslib.frame_views import draw_like, like_frames, through
from lenslib.injection import (
    around,
    convergence_draws,
    fit_view,
    found,
    inject,
    power_law_convergence,
    put_to_the_test,
    recovered,
    search,
    subhalos,
    thresholds,
    truncation,
    unlikely,
)
from lenslib.lens_maps import convergence, jacobian
from lenslib.priors import Prior
from lenslib.refine import SmoothModel
from lenslib.simulate import render


@pytest.fixture(scope="module")
def recipe():
    """Smooth sources at a high signal-to-noise."""
    plain = like_frames()
    noise = plain.instrument.noise.model_copy(update={"peak_snr": Prior(value=80.0)})
    source = plain.source.model_copy(update={"clumps": None, "R_sersic": Prior(uniform=(0.15, 0.3))})
    instrument = plain.instrument.model_copy(update={"noise": noise})
    return plain.model_copy(update={"source": source, "instrument": instrument})


@pytest.fixture(scope="module")
def frames(recipe, frame_view):
    """Simulated frames, and the smooth lenses in them."""
    view = frame_view()
    images, params, _ = draw_like(recipe, [view], 6, seed=2)
    return [(replace(view, image=images[k]), {n: v[k : k + 1] for n, v in params.items()}) for k in range(6)]


@pytest.fixture(scope="module")
def searched(recipe, frames):
    return [search(view, recipe, view.image[None], truth) for view, truth in frames]


def test_no_mass_changes_nothing(recipe, frames):
    view, truth = frames[0]
    points = {name: torch.zeros(2, 1) for name in ("x", "y", "theta_E")} | {"Rs": torch.ones(2, 1)}
    torch.testing.assert_close(inject(view, recipe, truth, points), view.image.expand(2, 1, 50, 50))


def test_a_mass_changes_the_frame_as_it_changes_its_lens(recipe, frames):
    """Of a frame that is its smooth lens, what is made is that lens with the mass, as the simulator draws it."""
    view, truth = frames[1]
    own = through(view, recipe)
    exact = replace(view, image=render(own, truth)[0])
    points = {"x": torch.tensor([[0.7]]), "y": torch.tensor([[0.4]]), "theta_E": torch.tensor([[0.2]])}
    made = inject(exact, recipe, truth, points)
    torch.testing.assert_close(made, render(own, truth, points), rtol=1e-4, atol=1e-5)
    assert (made - exact.image).abs().max() > 10 * view.noise.max()


def test_frames_without_substructure_show_none(searched):
    """The largest of some hundreds of normal deviates, of which a score of places are independent."""
    highest = torch.cat([result.highest for result in searched])
    assert float(highest.max()) < 5
    assert float(highest.median()) > 0.5
    for result in searched:
        assert result.significance.isnan().any()
        assert (result.significance.isnan() == result.sensitivity.isnan()).all()


def test_masses_are_found_where_they_are_put_and_the_larger_the_more(recipe, frames, searched):
    masses, results = [1e8, 2e10], []
    for (view, truth), clean in zip(frames, searched, strict=True):
        points = subhalos(recipe, clean.sensitivity[0], masses, 3, np.random.default_rng(1))
        assert points["x"].shape == (6, 1)
        torch.testing.assert_close(points["x"][:3], points["x"][3:])
        results.append(found(search(view, recipe, inject(view, recipe, truth, points), truth), points, 4.5))
    shares = np.reshape(results, (6, 2, 3)).mean((0, 2))
    assert shares[0] < 0.2
    assert shares[1] > 0.7


def test_mass_of_a_subhalo_is_that_of_its_einstein_radius(recipe, searched):
    points = subhalos(recipe, searched[0].sensitivity[0], [1e9, 1e10], 2, np.random.default_rng(1))
    theta_E = points["theta_E"][:, 0].double()
    assert float(theta_E[2] / theta_E[0]) == pytest.approx(10**0.5)
    # 4 G M / c^2 D_ls / (D_l D_s): 1e10 solar masses at redshift 0.2 in front of 0.6
    assert float(theta_E[2]) == pytest.approx(float(recipe.cosmology.theta_E_squared(1e10)) ** 0.5)
    # the truncation radius r solves r = sqrt(b b_host) with b = theta_E^2 / r
    radius = truncation(0.3, 1.2)
    assert radius == pytest.approx(np.sqrt(0.3**2 / radius * 1.2))


def test_a_fit_from_a_poor_estimate_finds_the_lens(recipe, frames):
    pulls = []
    for view, truth in frames[:4]:
        names = ("lens_theta_E", "R_sersic", "lens_e1", "lens_e2", "gamma1", "gamma2")
        poor = {name: float(truth[name]) for name in (*names, "source_center_x", "source_center_y")}
        poor |= {"lens_theta_E": 1.15 * poor["lens_theta_E"], "lens_e1": poor["lens_e1"] + 0.05}
        fit = fit_view(view, recipe, around(poor, recipe, view))
        for name in ("lens_theta_E", "lens_e1", "gamma1"):
            pulls.append(float((fit.params[name] - truth[name]) / fit.uncertainty(name)))
    # wider than needed: the noise allowed for is larger than that drawn
    assert np.abs(pulls).max() < 4
    assert np.std(pulls) < 1.5


def test_lenses_that_a_recipe_draws_are_likely_and_others_are_not(recipe):
    """Of normal deviates the sum of squares is their number; drawn lenses are near enough to that."""
    _, drawn, _ = recipe.draw(1, 0)
    params = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in drawn.items()}
    count = len(SmoothModel(recipe).names) - 1
    usual = unlikely(recipe, params)
    assert float(usual.mean()) == pytest.approx(count, rel=0.2)
    torch.testing.assert_close(unlikely(recipe, params | {"amp": 3 * params["amp"]}), usual)
    assert float(unlikely(recipe, params | {"lens_e1": torch.full_like(params["lens_e1"], 0.8)}).min()) > count


def test_convergence_is_that_of_the_deflection(recipe, frames):
    _, truth = frames[2]
    double = {name: value.double() for name, value in truth.items()}
    pixels, half = 80, 2.0
    # the shear has no convergence
    oracle = convergence(jacobian(recipe, double, half, pixels))
    y, x = (np.indices((pixels, pixels)) - (pixels - 1) / 2) * 2 * half / pixels
    mine = power_law_convergence({name: float(value) for name, value in double.items()}, x, y)
    away = np.hypot(x, y) > 0.4
    np.testing.assert_allclose(mine[away], oracle[away], rtol=0.01)


def test_draws_of_a_convergence_follow_the_fit(recipe, frames):
    view, truth = frames[3]
    fit = search(view, recipe, view.image[None], truth).fit
    mean, deviation, drawn = convergence_draws(fit, 400, 2.0, 21, np.random.default_rng(1))
    wide = max(float(fit.chi_square / fit.freedom), 1.0) ** 0.5
    assert drawn["lens_theta_E"].std() == pytest.approx(wide * float(fit.uncertainty("lens_theta_E")), rel=0.15)
    assert mean.shape == deviation.shape == (21, 21)
    assert (deviation > 0).all()
    # a mass within the Einstein radius is known better than the surface density there
    assert drawn["lens_theta_E"].std() / drawn["lens_theta_E"].mean() < np.median(deviation / mean)


def test_no_frame_judges_itself():
    highest = np.array([1.0, 2.0, 3.0, 4.0, 50.0])
    limits = thresholds(highest, 0.25)
    # the fourth of the four others: the last frame's outlier does not raise its own bar
    assert limits[4] == 4
    assert limits[0] == 50
    assert thresholds(np.array([3.0]), 0.1) == np.inf


@pytest.mark.parametrize(("count", "sets"), [(4000, 1), (37, 400), (12, 1000)])
def test_false_alarms_come_at_most_at_their_rate(count, sets):
    drawn = np.random.default_rng(1).gumbel(size=(sets, count))
    alarms = np.mean([(highest > thresholds(highest, 0.1)).mean() for highest in drawn])
    # as near below a tenth as whole frames allow
    assert 0.1 - 1 / count - 0.005 < alarms < 0.105


def test_frames_put_to_the_test(recipe, frames):
    masses, trials = [1e8, 3e10], []
    for view, truth in frames[:2]:
        names = ("lens_theta_E", "R_sersic", "lens_e1", "lens_e2", "gamma1", "gamma2")
        estimate = {name: float(truth[name]) for name in (*names, "source_center_x", "source_center_y")}
        trials.append(put_to_the_test(view, recipe, estimate, masses, 1, np.random.default_rng(3)))
    hits, chance = recovered(trials, masses, 0.5)
    assert hits.shape == chance.shape == (2, 2, 1)
    assert hits[:, 1].all()
    for trial in trials:
        assert float(trial.loaded.highest[1]) > 2 * float(trial.clean.highest[0])
    # a place near the frame's own highest significance is near it whatever the mass
    assert (chance[:, 0] == chance[:, 1]).all()
