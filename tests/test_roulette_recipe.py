"""Recipes of the CosmoSim kind: draws as the thesis had them, images as CosmoSim's, and errors in one line."""

import numpy as np
import pandas as pd
import pytest
import torch

from lenslib.cli import main
from lenslib.cosmosim import cosmosim_images
from lenslib.dataset import open_dataset, write_dataset
from lenslib.errors import InputError
from lenslib.recipe import list_recipes, load_recipe, parse_recipe
from lenslib.roulette_camera import centre_of_light, crop
from lenslib.roulette_images import render
from lenslib.roulette_recipe import CHUNK
from lenslib.stream import Stream

NAMES = list_recipes("roulette")
SMALL = {
    "instrument.frame": 200,
    "instrument.pixels": 48,
    "sampling.radius": [26, 60],
    "sampling.radius_again": [28, 60],
    "sampling.einstein_radius": [5, 12],
}


@pytest.fixture(scope="module", params=["roulette_sis", "raytrace_sie"])
def small(request):
    return load_recipe(request.param, SMALL)


def test_there_are_six():
    assert NAMES[:5] == ["raytrace_pm", "raytrace_sie", "raytrace_sis", "roulette_pm", "roulette_sis"]
    assert NAMES[5:] == ["roulette_sis_quarter"]
    assert set(NAMES) < set(list_recipes())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_its_own_text(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_the_thesiss(name):
    recipe = load_recipe(name)
    chunks = [recipe.draw(0, chunk) for chunk in range(120)]
    drawn = pd.DataFrame({key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]})
    radius = np.hypot(drawn.x, drawn.y)
    whole = ["chi", "einstein_radius", "sigma1", "sigma2", "theta"]
    assert (drawn[whole] == drawn[whole].round()).all(axis=None)
    assert np.allclose(radius, radius.round())
    assert (drawn.chi == 50).all()
    assert (drawn.einstein_radius.min(), drawn.einstein_radius.max()) == (5, 50)
    assert (radius.min().round(), radius.max().round()) == (26, 200)
    last = 89 if name.endswith("quarter") else 179
    assert (drawn.theta.min(), drawn.theta.max()) == (0, last)
    # the formula of the thesis, with its int()
    largest = np.floor(0.4 - 0.05 * drawn.einstein_radius + 0.282 * radius.round())
    for sigma in (drawn.sigma1, drawn.sigma2):
        assert ((sigma >= 5) & (sigma <= largest)).all()
    # 7.1 per cent of the thesis's sources are round, by its own sampling
    assert abs((drawn.sigma1 == drawn.sigma2).mean() - 0.071) < 4 * (0.071 / len(drawn)) ** 0.5
    # uniform, but where a source would be too small
    assert abs(drawn.theta.mean() - last / 2) < 5 * 52 / len(drawn) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_no_source_that_is_drawn_reaches_the_ring(name):
    recipe = load_recipe(name)
    for chunk in range(20):
        recipe.check({key: torch.tensor(value) for key, value in recipe.draw(3, chunk).items()})


def test_changing_one_prior_leaves_the_other_draws_as_they_were():
    before, after = (
        load_recipe("roulette_sis").draw(0, 0),
        load_recipe("roulette_sis", {"sampling.theta": [0, 89]}).draw(0, 0),
    )
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"theta"}


def test_a_round_source_has_one_size():
    drawn = load_recipe("raytrace_sis", {"sampling.source": "round"}).draw(0, 0)
    assert (drawn["sigma1"] == drawn["sigma2"]).all()


def test_an_image_depends_on_recipe_seed_and_index_alone(small):
    whole = small.sample(CHUNK + 6, seed=5)
    part = small.sample(8, seed=5, start=CHUNK - 4)
    assert torch.equal(part.images[:4], whole.images[CHUNK - 4 : CHUNK])
    assert torch.equal(part.images, small.sample(8, seed=5, start=CHUNK - 4).images)
    assert torch.equal(part.images[:6], whole.images[CHUNK - 4 : CHUNK + 2])
    for name, value in part.params.items():
        assert torch.equal(value[:6], whole.params[name][CHUNK - 4 : CHUNK + 2])
    assert not torch.equal(small.sample(4, seed=6).images, whole.images[:4])


def test_images_are_the_same_whatever_the_number_of_threads(small, threads):
    threads(1)
    one = small.sample(8).images
    threads(2)
    assert torch.equal(one, small.sample(8).images)


def test_images_are_whole_grey_levels_in_the_middle(small):
    batch = small.sample(CHUNK)
    assert batch.images.shape == (CHUNK, 1, 48, 48)
    assert batch.images.dtype == torch.float32
    assert (batch.images == batch.images.round()).all()
    assert batch.images.min() == 0
    assert 250 < batch.images.max() <= 255
    assert batch.labels.tolist() == [0] * CHUNK
    wide = load_recipe(small.name, SMALL | {"instrument.pixels": 200}).sample(CHUNK)
    for image in wide.images[:, 0]:
        column, row = centre_of_light(image)
        # half a pixel of rounding, and what a shift pushes over the edge
        assert abs(column - 100) < 0.6
        assert abs(row - 99) < 0.6


def test_the_fast_way_is_the_differentiable_one(small):
    exact = load_recipe(small.name, SMALL | {"instrument.lookup": "exact"})
    batch = exact.sample(CHUNK)
    params = {name: value.double() for name, value in batch.params.items()}
    # single precision shifts what is next to one half
    difference = (batch.images - render(exact, params)).abs()
    assert difference.max() < 0.52


def test_the_place_of_an_image_is_that_of_its_middle(small):
    """Without centring, what centring moves lies at (centre_x, centre_y)."""
    centred = small.sample(4)
    still = load_recipe(small.name, SMALL | {"instrument.centring": "none", "instrument.pixels": 200}).sample(4)
    assert (still.params["centre_x"] == 0).all()
    for i in range(4):
        x, y = (int(centred.params[name][i]) for name in ("centre_x", "centre_y"))
        cut = crop(still.images[i, 0], 100 + x - 24, 99 + y - 23, 48)
        assert torch.equal(cut, centred.images[i, 0])


def test_noise_is_of_the_stated_deviation():
    noisy = load_recipe("raytrace_sis", SMALL | {"instrument.noise_sd": 4.0})
    plain = load_recipe("raytrace_sis", SMALL)
    one, other = noisy.sample(CHUNK), plain.sample(CHUNK, noise=False)
    bright = (other.images > 30) & (other.images < 220)
    grain = (one.images - other.images)[bright]
    # rounding adds 1/12
    assert float(grain.std()) == pytest.approx((16 + 1 / 12) ** 0.5, rel=4 / (2 * len(grain)) ** 0.5)
    assert abs(float(grain.mean())) < 4 * 4 / len(grain) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_images_are_cosmosims(name, monkeypatch):
    # a chunk is drawn whole, however few of it are looked at
    monkeypatch.setattr("lenslib.roulette_recipe.CHUNK", 3)
    recipe = load_recipe(name)
    batch = recipe.sample(3, seed=2)
    try:
        theirs = cosmosim_images(recipe, {key: value.numpy() for key, value in batch.params.items()})
        theirs = np.stack(list(theirs))
    except InputError as error:
        pytest.skip(str(error))
    difference = np.abs(batch.images[:, 0].numpy() - theirs)
    assert (theirs > 0).mean() > 0.01
    assert (difference <= 2).mean() >= 0.995


def test_a_data_set_is_written_and_opened(small, tmp_path):
    data = write_dataset(small, 10, 1, tmp_path / "set", progress=False)
    again = open_dataset(tmp_path / "set")
    assert again.recipe == small
    assert again.classes == ("lens",)
    assert np.array_equal(again.images, data.images)
    assert set(small.targets) <= set(again.params)
    assert np.array_equal(again.images, small.sample(10, seed=1).images)


def test_it_streams(small):
    stream = Stream(small, 10, seed=1, image_size=24)
    images = torch.cat([images for images, _ in stream.batches(0, 4)])
    assert images.shape == (10, 1, 24, 24)


def test_the_command_line_simulates_it(tmp_path, capsys):
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    with pytest.raises(SystemExit) as stopped:
        main(
            ["simulate", "raytrace_sis", "--count", "3", "--out", str(tmp_path / "set")]
            + [word for text in settings for word in ("--set", text)]
        )
    assert stopped.value.code == 0
    assert "3 images of raytrace_sis" in capsys.readouterr().out


def test_lenstronomy_has_no_words_for_it(small):
    with pytest.raises(InputError, match="lenstronomy"):
        small.sample(1).to_lenstronomy(0)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("roulette_sis", {"lens.terms": 171}, "lens.terms"),
        ("roulette_sis", {"lens.terms": None}, "terms"),
        ("raytrace_sis", {"lens.terms": 5}, "terms"),
        ("raytrace_sis", {"instrument.masked": True}, "masked"),
        ("raytrace_sis", {"sampling.smallest_sigma": 0}, "smallest_sigma"),
        ("raytrace_sis", {"sampling.smallest_sigma": 20}, "largest_sigma"),
        ("raytrace_sis", {"sampling.radius": [200, 26]}, "radius"),
        ("raytrace_sis", {"sampling.chi": [0, 50]}, "chi"),
        ("raytrace_sis", {"sampling.chi": [10, 50]}, "outside the frame"),
        ("raytrace_sis", {"instrument.pixels": 2000}, "pixels"),
        ("raytrace_sis", {"instrument.pixels": 399}, "pixels"),
        ("raytrace_sie", {"sampling.axis_ratio": [0.5, 1.0]}, "axis_ratio"),
        ("raytrace_sie", {"sampling.axis_ratio": None}, "axis_ratio"),
        ("raytrace_sis", {"lens.profle": "sis"}, "profle"),
    ],
)
def test_impossible_recipes_are_refused_in_one_line(name, changes, named):
    with pytest.raises(InputError, match=named) as refused:
        load_recipe(name, changes)
    assert "\n" not in str(refused.value)


GOOD = {"x": 60.0, "y": 20.0, "chi": 50.0, "einstein_radius": 20.0, "sigma1": 9.0, "sigma2": 6.0, "theta": 10.0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigma1": 0.0}, "sigma1 must be above 0"),
        ({"sigma2": -3.0}, "sigma2 must be above 0"),
        ({"chi": 0.0}, "chi must be above 0"),
        ({"x": float("nan")}, "x is not a finite number"),
        ({"x": 0.0, "y": 0.0}, "right behind the lens"),
        ({"x": 480.0}, "outside the frame"),
        ({"sigma1": 40.0, "sigma2": 40.0}, "outside the ring of convergence"),
        ({"x": 12.0, "y": 0.0}, "outside the ring of convergence"),
    ],
)
def test_impossible_scenes_are_refused_in_one_line(changes, named):
    recipe = load_recipe("roulette_sis")
    params = {name: torch.tensor([value], dtype=torch.float64) for name, value in GOOD.items()}
    recipe.check(params)
    changed = params | {name: torch.tensor([value], dtype=torch.float64) for name, value in changes.items()}
    with pytest.raises(InputError, match=named) as refused:
        recipe.check(changed)
    assert "\n" not in str(refused.value)


def test_a_source_that_reaches_the_mask_is_not_drawn():
    wide = load_recipe("roulette_sis", SMALL | {"sampling.largest_sigma": [40, 0, 0.3]})
    with pytest.raises(InputError, match="outside the ring"):
        wide.sample(32)
    batch = load_recipe("roulette_sis", SMALL).sample(2)
    with pytest.raises(InputError, match="sigma1 must be above 0"):
        load_recipe("roulette_sis", SMALL).render(batch.params | {"sigma1": torch.zeros(2)})


@pytest.mark.parametrize("profile", ["sis", "pm", "sie"])
def test_a_series_without_a_mask_is_a_picture_of_numbers(profile, monkeypatch):
    # all that are drawn are looked at: the series of an ellipsoid to 50th order takes seconds an image
    monkeypatch.setattr("lenslib.roulette_recipe.CHUNK", 8)
    # the region of an ellipsoid is smaller than the thesis's formula for sources takes it to be
    far = dict.fromkeys(("sampling.radius", "sampling.radius_again"), [55, 60])
    oval = far | {"sampling.axis_ratio": [0.6, 0.9], "sampling.largest_sigma": [5, 0, 0]}
    ghostly = {"lens.profile": profile, "instrument.masked": False} | (oval if profile == "sie" else {})
    images = load_recipe("roulette_sis", SMALL | ghostly).sample(8).images
    assert torch.isfinite(images).all()
    assert (images.amax((1, 2, 3)) > 100).all()


def test_a_parameter_that_is_missing_is_named():
    params = {name: torch.tensor([value]) for name, value in GOOD.items() if name != "theta"}
    with pytest.raises(InputError, match="lack theta"):
        load_recipe("roulette_sis").render(params)


def test_images_of_the_wrong_size_or_without_light_are_refused():
    with pytest.raises(InputError, match="all zero"):
        centre_of_light(torch.zeros(8, 8))
    with pytest.raises(InputError, match="not finite"):
        centre_of_light(torch.full((8, 8), float("nan")))
    with pytest.raises(InputError, match="shape"):
        centre_of_light(torch.ones(1, 8, 8))
    with pytest.raises(InputError, match="crop 9 x 9 pixels out of 8 x 8"):
        crop(torch.ones(8, 8), 0, 0, 9)
    assert centre_of_light(torch.eye(9)) == (4.0, 4.0)
