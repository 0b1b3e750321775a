"""Fits of roulette recipes: slopes, the way back to the truth, deviations that are true, and what cannot be fitted."""

from functools import partial

import pytest
import torch

from lenslib import load_recipe
from lenslib.errors import InputError
from lenslib.inference import refine
from lenslib.information import fisher
from lenslib.refine import CENTRE, TEMPLATE_SEED
from lenslib.roulette_fit import RouletteTemplates, _met, refine_roulettes
from lenslib.roulette_model import RouletteModel, _smooth
from lenslib.roulette_pixels import Seen, explained, seen_at, smooth_fit, worth
from lenslib.roulette_search import _evolved, _log_left
from lenslib.roulettes import image_position
from lenslib.targets import Targets

# a scene a quarter of the thesis's in size
SMALL = {
    "instrument.pixels": 96,
    "instrument.frame": 280,
    "sampling.einstein_radius": [4, 14],
    "sampling.radius": [20, 60],
    "sampling.radius_again": [24, 60],
    "sampling.smallest_sigma": 4,
    "sampling.largest_sigma": [0.4, -0.05, 0.25],
}
COUNT = 24
# lenses that stay in doubt would evolve for seconds each
fitted = partial(refine_roulettes, evolutions=0)


def scenes(name, seed=3, count=COUNT, **more):
    recipe = load_recipe(name, SMALL | more)
    batch = recipe.sample(count, seed)
    return recipe, batch.images, batch.params


def beside(recipe, truth):
    """Starts as a network gives them: off by pixels and degrees, and without the camera's place."""
    rng = torch.Generator().manual_seed(1)
    off = {"x": 1.0, "y": 1.0, "einstein_radius": 0.5, "sigma1": 0.2, "sigma2": 0.2, "theta": 3.0}
    return {name: truth[name] + size * torch.randn(len(truth[name]), generator=rng) for name, size in off.items()} | {
        name: truth[name] for name in ("axis_ratio", "orientation") if name in truth
    }


def deviations(fit, truth, names):
    """Errors of what was fitted, one label an image."""
    targets = Targets("parameters", names)
    found = {name: fit.params[name].numpy() for name in names}
    labels = targets.label({name: value.numpy() for name, value in truth.items()})
    return {name: torch.as_tensor(value) for name, value in targets.deviations(labels, found).items()}


@pytest.mark.parametrize("noise", [0.0, 20.0])
@pytest.mark.parametrize("name", ["roulette_sis", "raytrace_sie", "raytrace_pm"])
def test_slopes_are_those_of_differences(name, noise):
    recipe, _, truth = scenes(name, count=4, **{"instrument.noise_sd": noise})
    model = RouletteModel(recipe).at(torch.arange(0, 96 * 96, 49).expand(4, -1))
    numbers = model.pack(truth).double()
    numbers[0, -2:] = 1e-3  # almost round
    place = model.x.double(), model.y.double()
    *_, slopes = _smooth(model._plan, numbers, *place, slopes=True)
    for k in range(numbers.shape[1]):
        step = torch.zeros_like(numbers)
        step[:, k] = 1e-6
        above, below = (_smooth(model._plan, numbers + sign * step, *place)[0] for sign in (1, -1))
        difference = (above - below) / 2e-6
        # but for pixels on the rim of the mask, which move in or out
        apart = (difference - slopes[:, k]).abs() / (1 + slopes[:, k].abs().amax())
        assert float(apart.quantile(0.99)) < 1e-6


@pytest.mark.parametrize("name", ["roulette_sis", "raytrace_sie", "raytrace_pm"])
def test_a_model_tells_how_far_a_lens_is_beyond_what_its_recipe_draws(name):
    recipe, _, truth = scenes(name, count=8)
    model = RouletteModel(recipe)
    inside = model.pack(truth)
    assert not model.beyond(inside)[0].any()
    outside = inside * torch.tensor([1.3, 1.3, *[1.0] * (len(model.numbers_names) - 2)])
    outside[:, 2] *= torch.tensor([0.6, 1.4] * 4)
    found, ranges = model.unpack(outside), (SMALL["sampling.radius"], SMALL["sampling.einstein_radius"])
    reached = (torch.hypot(found["x"], found["y"]), found["einstein_radius"])
    expected = torch.stack([here - here.clamp(*limits) for here, limits in zip(reached, ranges, strict=True)], 1)
    beyond, slopes = model.beyond(outside)
    assert expected.bool().any(0).all()
    assert torch.allclose(beyond, 4 * expected, atol=1e-3)  # in quarters of a pixel
    for k in range(outside.shape[1]):
        step = torch.zeros_like(outside)
        step[:, k] = 1e-2
        difference = (model.beyond(outside + step)[0] - model.beyond(outside - step)[0]) / 2e-2
        assert torch.allclose(difference, slopes[:, k], atol=0.02)


def test_fits_of_images_that_tell_nothing_are_drawn_back_to_lenses_that_the_recipe_draws():
    recipe, images, truth = scenes("raytrace_sis", count=4)
    model = RouletteModel(recipe)
    view = seen_at(model, images, worth(recipe, images), 64)
    heavy = model.scaled(model.pack(truth), torch.full((4,), 20.0))
    fit = smooth_fit(view, heavy, torch.full_like(view.data, 1e6), 60, False)
    assert (model.beyond(heavy)[0][:, 1] > 20).all()
    assert fit.converged.sum() >= 3
    assert float(model.beyond(model.pack(fit.params))[0][fit.converged].abs().max()) < 1


def test_a_lens_evolves_to_the_truth_along_a_valley():
    """As far off as a fit in doubt: the same distortion, by a lens a tenth heavier, farther from its source."""
    recipe, images, truth = scenes("roulette_sis", count=4)
    model = RouletteModel(recipe)
    view, numbers = seen_at(model, images, worth(recipe, images), 4096), model.pack(truth)
    start = model.scaled(numbers, 1.1 * truth["einstein_radius"])
    found = _evolved(view, start, seed=0)
    left = torch.tensor(
        [
            [float(_log_left(view.rows(torch.tensor([i])).glance(), part[i : i + 1])) for i in range(4)]
            for part in (start, found, numbers)
        ]
    ).exp()
    assert (left[0] > 5).all()
    assert left[1].median() < 1.3
    assert left[2].max() < 1.1  # rounding alone


def test_a_lens_taken_for_one_on_the_other_side_evolves_from_any_that_the_recipe_draws():
    recipe, images, truth = scenes("roulette_sis")
    model, heaviest = RouletteModel(recipe), truth["einstein_radius"].argmax()[None]
    view = seen_at(model, images, worth(recipe, images), 4096).rows(heaviest)
    start = model.pack(truth)[heaviest]
    start[:, :2] *= -1
    start = model.centred(start)
    before, after = (float(_log_left(view.glance(), part)) for part in (start, _evolved(view, start, seed=1)))
    assert after < before - 1


@pytest.mark.parametrize("name", ["roulette_sis", "raytrace_sis"])
def test_fits_find_the_truth_through_the_bitmap(name):
    recipe, images, truth = scenes(name)
    fit = fitted(recipe, images, beside(recipe, truth))
    assert fit.converged.float().mean() >= 0.95
    assert fit.good.float().mean() >= 0.9
    errors = deviations(fit, truth, ("x", "y", "einstein_radius", "sigma1", "sigma2", "theta"))
    # the smallest sources have four pixels: half of the lenses are known to a twentieth of one
    for parameter in ("x", "y", "einstein_radius", "sigma1", "sigma2"):
        assert float(errors[parameter].abs().median()) < 0.05
    placed = fit.uncertainty("centre_x") == 0
    assert placed.any()
    assert (fit.params["centre_x"][placed] == truth["centre_x"][placed]).float().mean() > 0.95


def test_the_deviations_of_noisy_fits_hold_the_jumps_of_the_bitmap():
    """Fits of one lens that hardly bends, its source anywhere within a pixel of the bitmap, scatter as they say,
    which is several times as far as if the jumps of pixels were independent."""
    draw, count = torch.Generator().manual_seed(0), 30
    about = {"x": -54.0, "y": -13.5, "einstein_radius": 8.0, "sigma1": 15.0, "sigma2": 7.0, "theta": 46.0}
    truth = {name: value + torch.rand(count, generator=draw) for name, value in about.items()}
    camera = RouletteModel(load_recipe("raytrace_sis", {"instrument.pixels": 200}))
    light = camera.bitmap(camera.pack(truth)).view(count, 1, 200, 200)
    noisy = load_recipe("raytrace_sis", {"instrument.pixels": 200, "instrument.noise_sd": 5.0})
    images = (light + 5 * torch.randn(light.shape, generator=draw)).round().clamp(0, 255)
    fit = fitted(noisy, images, truth)
    assert fit.good.float().mean() > 0.9
    for name in ("x", "y", "einstein_radius", "sigma1", "sigma2"):
        pulls = (fit.params[name] - truth[name]) / fit.uncertainty(name)
        assert 0.6 < float(pulls.square().mean().sqrt()) < 1.6, name


@pytest.mark.parametrize("noise", [0.0, 8.0])
def test_a_start_without_the_cameras_place_is_put_where_the_light_is(noise):
    """Noise that is cut off at zero shines everywhere: its centre is the frame's, not the lens's."""
    changes = {"instrument.noise_sd": noise, "instrument.lookup": "exact"}
    recipe, images, truth = scenes("raytrace_sis", **changes)
    model = RouletteModel(recipe)
    known = {name: value for name, value in truth.items() if name not in CENTRE}
    placed = model.unpack(_met(model, images, model.pack(known)[:, None])[:, 0])
    away = torch.hypot(*(placed[name] - truth[name] for name in CENTRE))
    # whole pixels, a centre from 9,216 of them, and light beyond the frame
    assert float(away.median()) < 1
    assert float(away.max()) < 4


def test_images_without_light_above_the_noise_are_flagged():
    recipe, images, truth = scenes("raytrace_sis", count=2, **{"instrument.noise_sd": 8.0})
    fit = fitted(recipe, images / 255, beside(recipe, truth), steps=3)
    assert not fit.good.any()
    assert all(value.isfinite().all() for value in fit.params.values())


def test_the_stated_deviations_are_true():
    """With Gaussian noise, parameters lie within a half, one and two deviations as often as Gaussian errors do, and the
    deviations are those of the Cramer-Rao bound for the fitted lenses, which other code derives."""
    recipe, images, truth = scenes(
        "raytrace_sis", count=32, **{"instrument.noise_sd": 8.0, "instrument.lookup": "exact"}
    )
    fit = fitted(recipe, images, beside(recipe, truth))
    assert fit.good.all()
    errors = deviations(fit, truth, ("x", "y", "einstein_radius", "sigma1", "sigma2"))
    pulls = torch.stack([errors[name] / fit.uncertainty(name) for name in errors]).abs()
    # parameters of a lens go together: three deviations of as many draws as lenses, too small and too large alike
    for size, share in ((0.5, 0.383), (1, 0.683), (2, 0.954)):
        spread = (share * (1 - share) / pulls.shape[1]) ** 0.5
        assert float((pulls < size).float().mean()) == pytest.approx(share, abs=3 * spread)
    fisher_of = fisher(recipe, {name: value.double() for name, value in (truth | fit.params).items()})
    bound = fisher_of.bound(known=["chi"])
    for name in ("x", "y", "einstein_radius"):
        ratio = fit.uncertainty(name) / bound[name]
        assert float(ratio.median()) == pytest.approx(1, abs=0.1)


def test_a_search_starts_fits_without_the_truth():
    recipe, images, _ = scenes("raytrace_sis", count=12, **{"instrument.lookup": "exact"})
    fit = fitted(recipe, images, RouletteTemplates(recipe, 2048).starts(images))
    assert fit.good.float().mean() >= 0.7


def test_an_estimate_that_leads_nowhere_is_followed_by_a_search():
    recipe, images, truth = scenes("raytrace_sis", count=3, **{"instrument.lookup": "exact"})
    # the lens on the wrong side, and a source far too large
    far = beside(recipe, truth) | {"x": -truth["x"], "y": -truth["y"], "sigma1": 4 * truth["sigma1"]}
    model = RouletteModel(recipe)
    alone = fitted(recipe, images, model.pack(far)[:, None], steps=6)
    assert fitted(recipe, images, far, steps=6).good.sum() > alone.good.sum()


def test_an_estimate_right_behind_the_lens_is_a_start_like_others():
    recipe, images, truth = scenes(
        "raytrace_sis", count=2, **{"instrument.lookup": "exact", "instrument.noise_sd": 5.0}
    )
    fit = fitted(recipe, images, beside(recipe, truth) | {"x": torch.zeros(2), "y": torch.zeros(2)})
    assert fit.covariance.isfinite().all()


@pytest.mark.parametrize("name", ["roulette_sis", "matched_hst"])
@pytest.mark.parametrize("seed", [0, 1, 2, 2**63 - 1])
def test_no_truth_of_a_data_set_is_among_the_templates(name, seed):
    recipe = load_recipe(name)
    column = "x" if name == "roulette_sis" else "lens_theta_E"
    drawn = recipe.draw(seed, 0), recipe.draw(TEMPLATE_SEED, 0)
    one, other = (part[column] if name == "roulette_sis" else part[1][column] for part in drawn)
    assert not set(one) & set(other)


@pytest.mark.parametrize(("name", "times"), [("roulette_sis", 0.7), ("raytrace_sie", 1.3), ("roulette_pm", 1.4)])
def test_another_einstein_radius_leaves_the_image_where_it_was(name, times):
    recipe, _, truth = scenes(name, count=4)
    model = RouletteModel(recipe)
    before = model.pack(truth)
    after = model.scaled(before, times * truth["einstein_radius"].float())

    def place(numbers):
        found = model.unpack(numbers)
        nu = image_position(recipe.lens.profile, found | {"chi": truth["chi"].float()})
        return nu[0] - found["centre_x"], nu[1] - found["centre_y"]

    for one, other in zip(place(before), place(after), strict=True):
        torch.testing.assert_close(one, other, atol=0.02, rtol=1e-3)


@pytest.mark.parametrize("name", ["roulette_sis", "raytrace_sis"])
def test_an_image_is_explained_at_the_truth_alone(name):
    recipe, images, truth = scenes(name, count=8)
    model = RouletteModel(recipe)
    seen, numbers = Seen(model, images.flatten(1)), model.pack(truth)
    assert explained(seen, numbers).all()
    # a source that is off by a fifth of a pixel reads other pixels of its bitmap
    beside_it = model.pack(truth | {"x": truth["x"] + 0.2})
    assert not explained(seen, beside_it).any()


def test_residuals_are_the_image_less_the_model_in_deviations():
    recipe, images, truth = scenes("raytrace_sis", count=4)
    fit = fitted(recipe, images, beside(recipe, truth))
    seen = fit.residual != 0
    noise = ((images - fit.model) / fit.residual)[seen]
    # never below that of rounding
    assert float(noise.min()) > 0.99 * (1 / 12) ** 0.5
    torch.testing.assert_close(fit.residual.square().sum((1, 2, 3)), fit.chi_square)


def test_a_fit_that_does_not_converge_is_flagged():
    recipe, images, truth = scenes(
        "raytrace_sis", count=4, **{"instrument.lookup": "exact", "instrument.noise_sd": 2.0}
    )
    far = beside(recipe, truth)
    far = far | {"x": -far["x"], "y": -far["y"], "sigma1": 3 * far["sigma1"]}
    fit = refine_roulettes(recipe, images, far, steps=1)
    assert not fit.converged.any()
    assert not fit.good.any()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda images: images.numpy(), "images are a ndarray: give a tensor"),
        (lambda images: images.double(), "images are torch.float64: give them in single precision"),
        (lambda images: images[..., :-1], "images have shape"),
        (lambda images: images * 0, "image 0 has pixels that are all equal"),
        (lambda images: images * 0 + 9, "image 0 has pixels that are all equal"),
        (lambda images: images / 0, "image 0 is NaN or infinite"),
        (lambda images: images[:0], "images have shape"),
    ],
)
def test_images_that_cannot_be_fitted(damage, said):
    recipe, images, truth = scenes("roulette_sis", count=2)
    with pytest.raises(InputError, match=said):
        refine(recipe, damage(images), truth)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"sampling.chi": [30, 70]}, "varies chi"), ({"lens.terms": 5}, "a series of 5 terms is not yet the lens")],
)
def test_recipes_that_cannot_be_fitted(change, said):
    recipe = load_recipe("roulette_sis", SMALL | change)
    with pytest.raises(InputError, match=said):
        RouletteModel(recipe)


def test_a_roulette_knows_its_noise():
    recipe, images, truth = scenes("roulette_sis", count=2)
    with pytest.raises(InputError, match="knows its noise"):
        refine(recipe, images, truth, noise=images)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda start: {name: value for name, value in start.items() if name != "sigma1"}, "starts lack sigma1"),
        (lambda start: start | {"theta": start["theta"] * torch.nan}, "image 0 starts at a theta that is NaN"),
        (
            lambda start: start | dict.fromkeys(("centre_x", "centre_y"), start["x"] / 0),
            "image 0 starts at a centre_x that is NaN or infinite",
        ),
        (
            lambda start: {name: value for name, value in start.items() if name != "centre_x"},
            "the camera's place whole",
        ),
        (lambda start: {name: value[:1] for name, value in start.items()}, r"2 images need \[2\]"),
        (lambda start: torch.zeros(1, 1, 8), r"shape \(1, 1, 8\): 2 images need \[2, starts, 8\]"),
        (lambda start: torch.full((2, 1, 8), torch.inf), "image 0 has a start that is NaN or infinite"),
    ],
)
def test_starts_that_cannot_be_fitted_from(spoil, said):
    recipe, images, truth = scenes("roulette_sis", count=2)
    with pytest.raises(InputError, match=said) as error:
        refine(recipe, images, spoil(truth))
    assert "\n" not in str(error.value)
