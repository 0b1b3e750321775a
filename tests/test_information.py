"""Fisher matrices: against finite differences, closed forms, proven degeneracies and the scatter of refits."""

import math
import warnings

import numpy as np
import pytest
import torch

from lenslib.errors import InputError
from lenslib.information import ROUNDING_VARIANCE, UnobservableWarning, check_targets, fisher, refit
from lenslib.instruments import NumpyNoise
from lenslib.recipe import load_recipe
from lenslib.simulate import render

SCENE = {"x": 60.0, "y": 20.0, "chi": 50.0, "einstein_radius": 12.0, "sigma1": 9.0, "sigma2": 6.0, "theta": 20.0}
SHAPE = {"axis_ratio": 0.6, "orientation": 30.0}
ROULETTES = ["roulette_sis", "roulette_pm", "raytrace_sis", "raytrace_pm", "raytrace_sie"]
CAMERA = {"instrument.pixels": 96, "instrument.centring": "none", "instrument.masked": False}


def one(**more):
    """Parameters of one image, whose middle is near the brighter image of the source."""
    given = SCENE | {"centre_x": 80.0, "centre_y": 27.0} | more
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in given.items()}


def still(name, **more):
    return load_recipe(name, CAMERA | more), one(**(SHAPE if name.endswith("sie") else {}))


@pytest.fixture(scope="module")
def lenses():
    """Smooth lenses of both kinds of noise on few pixels: (recipe, params) by name."""
    found = {}
    for name in ("matched_hst", "deeplense_1"):
        recipe = load_recipe(name, {"instrument.pixels": 40, "instrument.pixel_scale": 0.1})
        batch = recipe.sample(96, seed=4)
        found[name] = recipe, {key: value[batch.labels == 0][:3].double() for key, value in batch.params.items()}
    return found


def test_the_bound_of_a_gaussian_without_a_lens_is_the_textbooks():
    """A round Gaussian of peak A and width s, sampled finely, with noise n a pixel: the integral of
    (A x / s^2)^2 exp(-r^2 / s^2) is pi A^2 / 2, and so the position's deviation n / A sqrt(2 / pi)."""
    recipe, params = still("raytrace_sis")
    params |= one(einstein_radius=0.0, sigma1=7.0, sigma2=7.0, centre_x=60.0, centre_y=20.0)
    bound = fisher(recipe, params, ["x", "y"]).bound()
    expected = math.sqrt(ROUNDING_VARIANCE) / 255 * math.sqrt(2 / math.pi)
    assert float(bound["x"]) == pytest.approx(expected, rel=1e-3)
    assert float(bound["y"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ROULETTES)
def test_the_matrix_is_that_of_finite_differences(name):
    recipe, params = still(name)
    information = fisher(recipe, params)
    slopes = []
    for key in information.names:
        step = 1e-5
        ahead, behind = (recipe.render(params | {key: params[key] + s}) for s in (step, -step))
        slopes.append(((ahead - behind) / (2 * step)).flatten())
    slopes = torch.stack(slopes)
    torch.testing.assert_close(information.matrix[0], slopes @ slopes.T / ROUNDING_VARIANCE, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["matched_hst", "deeplense_1"])
def test_the_matrix_of_a_lens_is_that_of_finite_differences(lenses, name):
    recipe, params = lenses[name]
    information = fisher(recipe, params)
    images, slopes = render(recipe, params), []
    for key in information.names:
        step = 1e-6
        ahead, behind = (render(recipe, params | {key: params[key] + s}) for s in (step, -step))
        slopes.append(((ahead - behind) / (2 * step)).flatten(1))
    slopes = torch.stack(slopes, 1)
    time, background = (params[key][:, None] for key in ("exposure_time", "background_rms"))
    # photons of the scene and of the sky; DeepLenseSim's code draws those of the scene twice
    variance = images.flatten(1) / time * (2 if name == "deeplense_1" else 1) + background**2
    expected = (slopes / variance[:, None]) @ slopes.transpose(1, 2)
    scale = expected.diagonal(dim1=1, dim2=2).sqrt()
    difference = (information.matrix - expected) / (scale[:, :, None] * scale[:, None, :])
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["matched_hst", "deeplense_1"])
def test_the_variance_is_that_of_the_noise_that_is_drawn(lenses, name):
    """Of 4000 exposures of one pixel in ten, against the matrix of the amplitude alone, which is what V makes it."""
    recipe, params = lenses[name]
    image = render(recipe, params)[:1]
    copies = 4000
    spread = image[..., ::4, ::4].expand(copies, -1, -1, -1).float()
    scene = {key: value[:1].expand(copies).float() for key, value in params.items()}
    drawn = recipe.instrument.noise.add(spread, scene, NumpyNoise(np.random.default_rng(0)))
    if name == "deeplense_1":
        drawn = drawn / scene["exposure_time"][:, None, None, None]
    time, background = float(params["exposure_time"][0]), float(params["background_rms"][0])
    expected = spread[0] / time * (2 if name == "deeplense_1" else 1) + background**2
    bright = spread[0] > 3 * background  # nothing is cut off at zero there
    ratio = drawn.var(0)[bright] / expected[bright]
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ROULETTES)
def test_chi_and_the_einstein_radius_are_a_null_direction_and_the_only_one(name):
    recipe, params = still(name)
    information = fisher(recipe, params)
    (null,) = information.null_directions()
    assert null.words == "chi and einstein_radius together"
    # both by the same share
    assert null.steps["chi"] / 50 == pytest.approx(null.steps["einstein_radius"] / 12, rel=1e-6)
    assert int(information.rank()) == len(information.names) - 1
    bound = information.bound()
    assert [key for key, value in bound.items() if torch.isinf(value)] == ["chi", "einstein_radius"]
    # chi fixed: full rank, and all bounds finite
    assert int(information.rank(known=["chi"])) == len(information.names) - 1
    assert information.null_directions(known=["chi"]) == []
    fixed = information.bound(known=["chi"])
    assert all(torch.isfinite(value).all() for value in fixed.values())
    for key in ("x", "sigma1"):
        torch.testing.assert_close(fixed[key], bound[key], rtol=1e-6, atol=0)


def _columns(recipe, params, names):
    """Whitened derivatives [p, k] of the rendered image by differences of eighth order, numpy."""
    steps = {"einstein_radius": 0.1, "theta": 2.0}
    weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    columns = []
    for key in names:
        step, found = steps.get(key, 0.2), 0
        for k, weight in weights.items():
            ahead, behind = (recipe.render(params | {key: params[key] + s * k * step}) for s in (1, -1))
            found = found + weight * (ahead - behind) / step
        columns.append(found.flatten().numpy() / math.sqrt(ROUNDING_VARIANCE))
    return np.stack(columns, 1)


@pytest.mark.parametrize(
    "scene",
    [
        {"x": 199.0, "y": 20.0, "einstein_radius": 5.0, "centre_x": 209.0, "centre_y": 21.0},
        {"x": 150.0, "y": 20.0, "einstein_radius": 0.01, "centre_x": 150.0, "centre_y": 20.0},
    ],
    ids=["far", "faint"],
)
def test_what_is_barely_seen_is_seen(scene):
    """A lens that hardly bends: the bound is that of the singular values of the derivatives, which no product of the
    derivatives with themselves has to double precision."""
    recipe = load_recipe("roulette_sis", {"instrument.pixels": 96})
    params = one(sigma1=6.0, sigma2=5.0, **scene)
    information = fisher(recipe, params)
    names = [name for name in information.names if name != "chi"]
    assert int(information.rank()) == int(information.rank(known="chi")) == len(names)
    assert [null.words for null in information.null_directions()] == ["chi and einstein_radius together"]
    columns = _columns(recipe, params, names)
    norms = np.linalg.norm(columns, axis=0)
    _, values, vectors = np.linalg.svd(columns / norms, full_matrices=False)
    expected = np.linalg.norm(vectors.T / values, axis=1) / norms
    bound = information.bound(known="chi")
    for name, value in zip(names, expected, strict=True):
        assert float(bound[name]) == pytest.approx(value, rel=0.03), name
    free = information.bound()
    assert [name for name, value in free.items() if torch.isinf(value)] == ["chi", "einstein_radius"]


def test_nothing_is_left_when_all_is_known():
    information = fisher(*still("raytrace_sis"))
    assert information.bound(known=information.names) == {}
    assert int(information.rank(known=information.names)) == 0


def test_what_is_known_of_chi_is_known_of_the_einstein_radius():
    """b = R_E / chi is seen: a share of chi is the same share of R_E."""
    recipe, params = still("raytrace_sis")
    information = fisher(recipe, params)
    seen = float(information.bound(known=["chi"])["einstein_radius"])
    for share in (0.001, 0.01, 0.1):
        bound = information.bound(prior={"chi": share * 50})
        assert float(bound["chi"]) == pytest.approx(share * 50, rel=1e-6)
        assert float(bound["einstein_radius"]) == pytest.approx(math.hypot(share * 12, seen), rel=1e-6)


@pytest.mark.parametrize("name", ["roulette_sis", "raytrace_pm"])
def test_the_angle_of_a_round_source_is_a_null_direction_of_its_own(name):
    recipe, params = still(name)
    information = fisher(recipe, params | one(sigma2=9.0))
    assert {null.words for null in information.null_directions()} == {"chi and einstein_radius together", "theta alone"}
    bound = information.bound(known=["chi"])
    assert torch.isinf(bound["theta"]).all()
    assert torch.isfinite(bound["einstein_radius"]).all()


def test_what_moves_the_camera_hides_what_moves_the_source():
    """An unknown shift takes from the image what only a comparison with the lens's place tells."""
    recipe, params = still("roulette_sis")
    centred = load_recipe("roulette_sis", {"instrument.pixels": 96, "instrument.masked": False})
    seen, hidden = fisher(recipe, params), fisher(centred, params)
    assert set(hidden.names) - set(seen.names) == {"centre_x", "centre_y"}
    for key in seen.names:
        if key not in ("chi", "einstein_radius"):
            assert hidden.bound()[key] >= seen.bound()[key] * (1 - 1e-9)
    assert hidden.bound()["x"] > 3 * seen.bound()["x"]


def test_brightness_is_not_seen_where_images_are_divided_by_their_peak(lenses):
    recipe, params = lenses["matched_hst"]
    divided = load_recipe("matched_hst", {"instrument.divide_by_peak": True, "instrument.pixels": 40})
    words = [null.words for null in fisher(divided, params).null_directions()]
    assert words == ["amp alone"]


def test_more_is_known_with_less_noise(lenses):
    recipe, params = lenses["matched_hst"]
    before = fisher(recipe, params).bound()
    after = fisher(recipe, params | {"exposure_time": params["exposure_time"] * 4}).bound()
    for name, bound in before.items():
        assert (after[name] < bound).all()


def test_correlations_are_between_minus_one_and_one(lenses):
    recipe, params = lenses["matched_hst"]
    found = fisher(recipe, params).correlation()
    assert (found.abs() <= 1 + 1e-9).all()
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones_like(found[:, 0]))
    recipe, params = still("raytrace_sis")
    found = fisher(recipe, params)
    chi = found.names.index("chi")
    assert torch.isnan(found.correlation()[0, chi]).all()


def _scatter(recipe, params, names, copies, seed, points=None):
    """Deviation of refits of noisy copies, over the bound, by name."""
    one_scene = {name: value[:1].double() for name, value in params.items()}
    some = {name: value[:1].double() for name, value in (points or {}).items()}
    information = fisher(recipe, one_scene, names, some or None)
    many = {name: value.expand(copies) for name, value in one_scene.items()}
    rng = np.random.default_rng(seed)
    if recipe.kind == "roulette":
        image = recipe.render(one_scene)
        deviation = (recipe.instrument.noise_sd**2 + ROUNDING_VARIANCE) ** 0.5
        noisy = image + deviation * rng.standard_normal((copies, *image.shape[1:]))
    else:
        image = render(recipe, one_scene, some or None).expand(copies, -1, -1, -1).float()
        scene = {name: value.float() for name, value in many.items()}
        noisy = recipe.instrument.noise.add(image, scene, NumpyNoise(rng)).double()
        if recipe.instrument.noise.kind == "deeplense":
            noisy = noisy / many["exposure_time"][:, None, None, None]
    found = refit(recipe, noisy, many, names, {k: v.expand(copies, -1) for k, v in some.items()} or None)
    bound = information.bound()
    return {name: float(value.std() / bound[name][0]) for name, value in found.items()}


def test_refits_scatter_as_the_bound_says():
    """A deviation from 200 copies has an error of 5 per cent; of 500: `lenslib bench roulettes --refits 500`."""
    recipe, params = still("raytrace_sis", **{"instrument.pixels": 64, "instrument.noise_sd": 2.0})
    ratios = _scatter(recipe, params, ["x", "y", "einstein_radius", "sigma1", "sigma2", "theta"], 200, 3)
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(1, abs=0.15), name


def test_what_is_not_shown_is_named_in_a_warning():
    recipe = load_recipe("raytrace_sis", {"instrument.pixels": 120, "sampling.chi": [40, 60]})
    with pytest.warns(UnobservableWarning, match="einstein_radius .100% of them: chi and einstein_radius together"):
        shares = check_targets(recipe, ["x", "einstein_radius"], count=2)
    assert shares == {"einstein_radius": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_targets(recipe, ["x", "y"], count=2) == {}
        assert check_targets(recipe, ["x", "einstein_radius"], count=2, known="chi") == {}
    round_sources = load_recipe("raytrace_sis", {"instrument.pixels": 120, "sampling.source": "round"})
    with pytest.warns(UnobservableWarning, match="theta .100% of them: theta alone"):
        check_targets(round_sources, ["theta"], count=2)


@pytest.mark.parametrize("name", ROULETTES)
def test_what_a_recipe_never_varies_is_known(name):
    """Shipped recipes have chi 50 always."""
    recipe = load_recipe(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets = [key for key in recipe.targets if key not in ("sigma1", "sigma2", "theta")]
        assert check_targets(recipe, targets, count=1) == {}


def test_two_labels_of_one_image_are_named_in_a_warning():
    small = {"instrument.pixels": 120}
    for theta, targets, known, warns in [
        ([0, 179], ["sigma1"], (), True),
        ([0, 90], ["theta"], (), True),
        ([0, 89], ["sigma1", "sigma2", "theta"], (), False),
        ([0, 179], ["sigma1", "theta"], ["sigma2"], False),
    ]:
        recipe = load_recipe("roulette_sis", small | {"sampling.theta": theta})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert check_targets(recipe, targets, count=1, known=known) == {}
        said = [str(one.message) for one in said if one.category is UnobservableWarning]
        assert len(said) == warns
        assert all("has two labels" in words and "unless the targets keep sigma1 >= sigma2" in words for words in said)


def test_arrays_and_single_names_do():
    recipe, params = still("raytrace_sis")
    expected = fisher(recipe, params, ["x", "chi"])
    found = fisher(recipe, {name: value.numpy() for name, value in params.items()}, ["x", "chi"])
    assert torch.equal(found.factor, expected.factor)
    assert list(expected.bound(known="chi")) == ["x"]
    assert fisher(recipe, params, "x").names == ("x",)


def test_bad_input_is_one_line(lenses):
    recipe, params = still("raytrace_sis")
    dark = torch.zeros(1, 1, 96, 96)
    for message, call in {
        "unknown parameter 'sigma3'": lambda: fisher(recipe, params, ["sigma3"]),
        "sigma1 must be above 0": lambda: fisher(recipe, params | one(sigma1=0.0)),
        "no parameters": lambda: fisher(recipe, {}),
        "unknown target 'R_E'": lambda: check_targets(recipe, ["R_E"], count=1),
        "unknown parameter 'amp'": lambda: fisher(recipe, params).bound(known=["amp"]),
        "standard deviation above 0": lambda: fisher(recipe, params).bound(prior={"chi": 0.0}),
        "the images do not show all": lambda: refit(recipe, recipe.render(params), params),
        "have the shape .2, 1, 96, 96.": lambda: refit(recipe, recipe.render(params).repeat(2, 1, 1, 1), params),
        "have the shape .1, 1, 48, 48.": lambda: refit(recipe, recipe.render(params)[..., ::2, ::2], params, ["x"]),
        "have the shape .1, 1, 48, 192.": lambda: refit(recipe, dark.reshape(1, 1, 48, 192), params, ["x"]),
        "image 0 is zero everywhere": lambda: refit(recipe, dark, params, ["x"]),
        "image 0 is zero everywhere or not finite": lambda: refit(recipe, dark / 0, params, ["x"]),
        "no names of parameters": lambda: fisher(recipe, params, []),
        "for each of n scenes, not the shapes": lambda: fisher(recipe, params | {"x": params["x"].repeat(2)}),
        "unknown parameter 'ch'": lambda: fisher(recipe, params).bound(known="ch"),
        "unknown parameter 'kappa'": lambda: check_targets(recipe, ["x"], count=1, known=["kappa"]),
    }.items():
        with pytest.raises(InputError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)
    silent = load_recipe("deeplense_2")
    with pytest.raises(InputError, match="has no noise"):
        fisher(silent, lenses["deeplense_1"][1])
