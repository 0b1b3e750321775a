"""Maps of missing mass: sums over pixels as by hand, noise of deviation one, and a mass found where it was put."""

import pytest
import torch

from lenslib.mass_maps import SOFTENING, _Deflections, mass_maps
from lenslib.optics import pixel_grid
from lenslib.refine import SmoothModel, noise_map, refine
from lenslib.simulate import render


def test_sums_are_those_over_all_pixels():
    size, scale = 7, 0.3
    maps, (x, y) = _Deflections(size, scale), pixel_grid(size, scale)
    fields = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    apart_x, apart_y = (axis.flatten()[None] - axis.flatten()[:, None] for axis in (x, y))
    squared = apart_x**2 + apart_y**2 + (SOFTENING * scale) ** 2
    # [place of the mass, pixel]
    pull_x, pull_y = apart_x / squared, apart_y / squared
    one, two, three = fields.flatten(2).unbind(1)
    by_hand = one @ pull_x.T + two @ pull_y.T
    torch.testing.assert_close(maps.gather(fields[:, :2]).flatten(1), by_hand, atol=1e-4, rtol=1e-4)
    by_hand = one @ (pull_x**2).T + two @ (pull_y**2).T + 2 * three @ (pull_x * pull_y).T
    squares = maps.gather_squares(*fields.split(1, dim=1)).flatten(1)
    torch.testing.assert_close(squares, by_hand, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def smooth_lenses(small_matched):
    recipe = small_matched({"instrument.noise.peak_snr": 40.0})
    batch = recipe.sample(96, seed=3)
    rows = batch.labels == 0
    return recipe, {name: value[rows] for name, value in batch.params.items()}, batch.images[rows]


def test_noise_has_a_significance_of_deviation_one(smooth_lenses):
    recipe, params, images = smooth_lenses
    noise = noise_map(recipe, params, images.clamp(min=0))
    fit = refine(recipe, images, params, noise)
    noise = noise_map(recipe, params, fit.model)
    maps = mass_maps(SmoothModel(recipe), fit, (images - fit.model) / noise, noise)
    # of places that tell anything of a mass; those of one map go together, a few to the lens
    seen = maps.sensitivity > maps.sensitivity.flatten(1).quantile(0.5, 1)[:, None, None]
    shown = maps.significance[fit.good][seen[fit.good]]
    assert float(shown.std()) == pytest.approx(1, abs=0.15)
    assert abs(float(shown.mean())) < 0.2


def test_a_mass_is_found_where_it_was_put(smooth_lenses):
    recipe, params, _ = smooth_lenses
    mass = 2e-3
    some = {name: value[:8] for name, value in params.items()}
    clean = render(recipe, some)
    noise = noise_map(recipe, some, clean)
    exact = refine(recipe, clean, some, noise)
    sensitivity = mass_maps(SmoothModel(recipe), exact, exact.residual, noise).sensitivity
    # each where its lens shows it best
    places = sensitivity.flatten(1).argmax(1)
    scale = recipe.instrument.pixel_scale
    x, y = (axis.flatten()[places][:, None] for axis in pixel_grid(clean.shape[-1], scale))
    # many points spread as what bends light by theta / (theta^2 + softening^2): Plummer's profile, seen in projection
    order = torch.arange(300) + 0.5
    share = order / len(order)
    radius, turn = SOFTENING * scale * torch.sqrt(share / (1 - share)), order * torch.pi * (3 - 5**0.5)
    x, y = x + radius * torch.cos(turn), y + radius * torch.sin(turn)
    points = {"x": x, "y": y, "theta_E": torch.full_like(x, (mass / len(order)) ** 0.5)}
    disturbed = render(recipe, some, points)
    fit = refine(recipe, disturbed, some, noise)
    maps = mass_maps(SmoothModel(recipe), fit, fit.residual, noise)
    found = maps.significance.flatten(1).argmax(1)
    size = clean.shape[-1]
    apart = torch.hypot((found % size - places % size).float(), (found // size - places // size).float())
    assert float(apart.median()) <= 1.5
    best = (maps.significance / maps.sensitivity).flatten(1).gather(1, places[:, None])[:, 0]
    assert float(best.median()) == pytest.approx(mass, rel=0.1)
