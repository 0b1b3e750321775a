"""Regression runs: they learn, their errors are what they say, and their weights answer for their own images only."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lenslib import load_recipe
from lenslib.dataset import write_dataset
from lenslib.errors import InputError
from lenslib.inference import load_classifier, load_estimator, predict_files
from lenslib.records import Records, load_runs
from lenslib.regression import estimate, judge, open_sets, record_regression, regression_metrics, train_regressor
from lenslib.targets import Targets, find_targets
from lenslib.training import Settings

SIZE = 64


@pytest.fixture(scope="module")
def recipe():
    """Small frames of near lenses: quick to draw."""
    small = {
        "instrument.pixels": SIZE,
        "instrument.frame": 200,
        "sampling.einstein_radius": [3, 10],
        "sampling.radius": [26, 60],
        "sampling.radius_again": [28, 60],
        "sampling.smallest_sigma": 3,
    }
    return load_recipe("roulette_sis", small)


@pytest.fixture(scope="module")
def folders(recipe, tmp_path_factory):
    place = tmp_path_factory.mktemp("regression")
    for name, count, seed in (("train", 320, 1), ("test", 96, 2)):
        write_dataset(recipe, count, seed, place / name, progress=False)
    return place


@pytest.fixture(scope="module")
def trained(folders):
    """(run, estimates by name, test set) of one short training."""
    training, test, targets = open_sets(folders / "train", folders / "test", "parameters", "roulette_sis")
    settings = Settings(epochs=40, batch_size=32, learning_rate=3e-3, ema=0.9)
    done, targets = train_regressor(training, targets, "moments", SIZE, settings, "cpu")
    truth, found, rate = estimate(done, test, targets, "moments", SIZE)
    place = (folders / "results", "test", "moments", SIZE, settings, done, training, test, targets)
    return record_regression(*place, truth, found, rate), found, test


def test_it_learns(trained):
    run, _, test = trained
    # against the answer that is always the mean
    for name in ("x", "y", "sigma1"):
        guess = np.abs(test.params[name] - test.params[name].mean()).mean()
        assert run.metrics[f"mae_{name}"]["high"] < 0.7 * guess
        assert run.metrics[f"r2_{name}"]["low"] > 0
    assert run.history()["val_loss"].iloc[-1] < run.history()["val_loss"].iloc[0]


def test_the_record_says_what_was_learned(trained, folders):
    run, found, test = trained
    assert run.task == "regression"
    assert run.parameters["targets"] == ["x", "y", "einstein_radius", "sigma1", "sigma2", "theta"]
    assert "label_smoothing" not in run.parameters
    predictions = run.predictions()
    assert predictions["targets"].shape == predictions["estimates"].shape == (96, 6)
    np.testing.assert_allclose(predictions["estimates"][:, 0], found["x"], rtol=1e-5)
    assert (predictions["targets"][:, 3] >= predictions["targets"][:, 4]).all()
    assert Records(folders / "results").lookup("regression.roulette_sis.best.mae") == run.metrics["mae"]["value"]
    assert len(load_runs(folders / "results")) == 1


def test_saved_weights_answer_as_before(trained, recipe, tmp_path):
    run, found, test = trained
    estimator = load_estimator(run.path("weights.safetensors"), recipe)
    params = estimator.params(test.images)
    assert set(params) == {*run.parameters["targets"], "chi"}
    assert (params["chi"] == 50).all()
    for name, value in found.items():
        np.testing.assert_allclose(params[name], value, atol=1e-4)
    # in any units of brightness
    np.testing.assert_allclose(estimator.params(300 * np.array(test.images[:4]))["x"], found["x"][:4], atol=0.1)
    np.save(tmp_path / "images.npy", np.array(test.images[:3, 0]))
    ((_, answer),) = predict_files(estimator, [tmp_path / "images.npy"], progress=False)
    np.testing.assert_allclose(answer[:, 0], found["x"][:3], atol=1e-4)
    assert judge(estimator, test)["mae"]["value"] == pytest.approx(run.metrics["mae"]["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda images: images[:, :, 1:, 1:], "was trained on roulette_sis"),
        (lambda images: images[:, 0], "has? ?the shape|have the shape"),
        (lambda images: images[:0], "have the shape"),
        (lambda images: images * (np.arange(4) != 2)[:, None, None, None], "image 2 is of one brightness"),
        (
            lambda images: np.where((np.arange(4) == 1)[:, None, None, None], 7.0, images),
            "image 1 is of one brightness",
        ),
        (lambda images: np.where(np.arange(SIZE) == 3, np.nan, images), "image 0 is of one brightness or not finite"),
        (lambda images: np.where(np.arange(SIZE) == 3, np.inf, images), "not finite"),
    ],
)
def test_images_that_cannot_be_measured_are_refused(trained, spoil, said):
    run, _, test = trained
    estimator = load_estimator(run.path("weights.safetensors"))
    with pytest.raises(InputError, match=said) as error:
        estimator.params(spoil(np.array(test.images[:4])))
    assert "\n" not in str(error.value)


def test_weights_trained_on_another_recipe_are_refused(trained, recipe):
    path = trained[0].path("weights.safetensors")
    other = load_recipe("raytrace_sis")
    with pytest.raises(InputError, match="was trained on roulette_sis, not on raytrace_sis"):
        load_estimator(path, other)
    changed = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"theta": (0, 89)})})
    with pytest.raises(InputError, match="roulette_sis as it was then"):
        load_estimator(path, changed)
    # its title is no physics
    assert load_estimator(path, recipe.model_copy(update={"title": "another"})).recipe == "roulette_sis"


def test_weights_of_another_kind_are_refused(trained, tmp_path):
    path = trained[0].path("weights.safetensors")
    with pytest.raises(InputError, match="estimates numbers, not classes"):
        load_classifier(path)
    state = load_file(path)
    for metadata, said in (
        ({}, "does not say its model"),
        ({"classes": "[]"}, "tells classes"),
        ({"targets": "[1]"}, "damaged entry among its targets"),
        ({"targets": "{"}, "damaged entry"),
    ):
        full = {} if not metadata else {name: "1" for name in ("image_size", "native_size", "crop", "in_chans")}
        full |= {"model": "moments", "recipe": "roulette_sis", "recipe_digest": ""} if metadata else {}
        save_file(state, tmp_path / "w.safetensors", full | metadata)
        with pytest.raises(InputError, match=said) as error:
            load_estimator(tmp_path / "w.safetensors")
        assert "\n" not in str(error.value)


def test_errors_are_what_they_say():
    """By hand: errors 1, 1, -4 of truths 0, 10, 20."""
    targets = Targets("raw", ("x",))
    truth, found = {"x": np.array([0.0, 10.0, 20.0])}, {"x": np.array([1.0, 11.0, 16.0])}
    metrics = regression_metrics(targets, truth, found, resamples=200)
    expected = {"mae": 2, "mse": 6, "median": 1, "bias": -2 / 3, "sd": np.sqrt(6 - 4 / 9), "r2": 1 - 6 / (200 / 3)}
    for measure, value in expected.items():
        metric = metrics[f"{measure}_x"]
        assert metric["value"] == pytest.approx(value)
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert metrics["mae"]["value"] == metrics["plain_mae"]["value"] == pytest.approx(2)


def test_the_interval_of_an_error_is_as_wide_as_it_should_be():
    """Of a mean of n even errors of one sign and size spread 0 to 1: 2 x 1.96 x sd / sqrt(n)."""
    n = 2000
    errors = np.random.default_rng(0).uniform(0, 1, n)
    metric = regression_metrics(Targets("raw", ("x",)), {"x": np.zeros(n)}, {"x": errors})["mae_x"]
    assert metric["high"] - metric["low"] == pytest.approx(2 * 1.96 / np.sqrt(12 * n), rel=0.1)


def test_theta_is_judged_where_it_has_a_meaning_and_swapped_sigmas_are_no_error():
    targets = Targets("parameters", ("sigma1", "sigma2", "theta"))
    truth = {"sigma1": [9.0, 9.0, 9.0], "sigma2": [5.0, 5.0, 9.0], "theta": [10.0, 179.0, 40.0]}
    found = {"sigma1": [5.0, 9.0, 9.0], "sigma2": [9.0, 5.0, 9.0], "theta": [100.0, 1.0, 70.0]}
    truth, found = ({name: np.array(value) for name, value in part.items()} for part in (truth, found))
    metrics = regression_metrics(targets, truth, found, resamples=50)
    assert metrics["mae_sigma1"]["value"] == 0
    assert metrics["mae_theta"]["value"] == pytest.approx(1)  # of 0 and 2


def test_targets_that_images_do_not_show_are_kept_apart():
    targets = Targets("raw", ("x", "chi"))
    truth = {"x": np.arange(9.0), "chi": np.arange(9.0)}
    found = {"x": truth["x"] + 1, "chi": np.full(9, 4.0)}
    metrics = regression_metrics(targets, truth, found, {"chi": 1.0}, resamples=50)
    assert metrics["mae"]["value"] == pytest.approx(1)
    assert "r2_chi" not in metrics
    assert metrics["hidden_r2_chi"]["value"] == pytest.approx(0)
    assert "r2_x" in metrics


def test_raw_errors_are_also_given_as_the_thesis_had_them():
    targets = Targets("raw", ("sigma1", "sigma2", "theta"))
    truth = {"sigma1": np.array([5.0, 7.0]), "sigma2": np.array([9.0, 6.0]), "theta": np.array([100.0, 3.0])}
    found = {"sigma1": np.array([9.0, 7.0]), "sigma2": np.array([5.0, 6.0]), "theta": np.array([10.0, 3.0])}
    metrics = regression_metrics(targets, truth, found, resamples=50)
    assert metrics["mae"]["value"] == pytest.approx(0)
    assert metrics["plain_mae_sigma1"]["value"] == pytest.approx(2)
    assert metrics["plain_mse_theta"]["value"] == pytest.approx(4050)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": Settings(epochs=1)}, "raw targets do not turn"),
        ({"train_count": 2}, "train_count must be at least 3"),
        ({"model": "vae"}, "is an autoencoder"),
    ],
)
def test_training_on_what_does_not_fit_is_refused(folders, changes, said):
    training, _, targets = open_sets(folders / "train", folders / "test", "raw")
    given = {"model": "moments", "settings": Settings(epochs=1, augment="none")} | changes
    with pytest.raises(InputError, match=said):
        train_regressor(training, targets, image_size=SIZE, device="cpu", **given)


def test_sets_that_do_not_fit_are_refused(folders, test_data):
    with pytest.raises(InputError, match="have the same seed"):
        open_sets(folders / "train", folders / "train", "parameters")
    with pytest.raises(InputError, match="different recipes"):
        open_sets(folders / "train", test_data.folder, "parameters")
    with pytest.raises(InputError, match="holds roulette_sis, not roulette_pm"):
        open_sets(folders / "train", folders / "test", "parameters", "roulette_pm")


def test_masses_are_learned_from_the_images_that_have_them(training_data, test_data):
    targets = find_targets(training_data.recipe, "axion_mass")
    settings = Settings(epochs=1, batch_size=16, augment="half_turn")
    done, targets = train_regressor(training_data, targets, "small_cnn", 24, settings, "cpu")
    truth, found, _ = estimate(done, test_data, targets, "small_cnn", 24)
    vortices = test_data.labels == test_data.classes.index("vortex")
    assert len(found["log10_axion_mass"]) == vortices.sum()
    np.testing.assert_allclose(
        truth["log10_axion_mass"], np.log10(test_data.params["axion_mass"][vortices].to_numpy()), rtol=1e-6
    )


def test_targets_survive_their_way_through_json():
    targets = dataclasses.replace(find_targets(load_recipe("roulette_sis"), "amplitudes"), offset=(0.5,), scale=(2.0,))
    read = json.loads(json.dumps(targets.to_dict()))
    assert Targets(**{name: tuple(part) if isinstance(part, list) else part for name, part in read.items()}) == targets


def test_the_loss_is_of_the_scaled_targets(folders):
    training, _, targets = open_sets(folders / "train", folders / "test", "parameters")
    for loss, power in (("mae", 1), ("mse", 2)):
        settings = Settings(epochs=1, batch_size=32, learning_rate=1e-9, loss=loss, augment="none", weight_decay=0.0)
        done, fitted = train_regressor(training, targets, "moments", SIZE, settings, "cpu")
        rows = training.params.iloc[-32:]
        encoded = torch.from_numpy(fitted.encode(fitted.label(rows))).float()
        images, _ = training.prepared(SIZE, slice(len(training) - 32, None))
        with torch.no_grad():
            expected = ((done.model(images) - encoded).abs() ** power).mean()
        assert done.history[0]["val_loss"] == pytest.approx(float(expected), rel=1e-3)


def test_the_command_trains_and_its_weights_answer(run, folders, tmp_path):
    sets = ["--train", folders / "train", "--test", folders / "test", "--results", tmp_path, "--profile", "test"]
    code, out, errors = run("regress", "moments", *sets, "--epochs", 1, "--image-size", SIZE, "--device", "cpu")
    assert (code, errors) == (0, [])
    assert "mean absolute error" in out
    (done,) = load_runs(tmp_path)
    weights, images = done.path("weights.safetensors"), tmp_path / "images.npy"
    np.save(images, np.load(folders / "test/images.npy")[:2])
    code, out, errors = run("predict", weights, images, "--json")
    assert (code, errors) == (0, [])
    rows = json.loads(out)
    found = [[row[name] for name in done.parameters["targets"]] for row in rows]
    np.testing.assert_allclose(found, done.predictions()["estimates"][:2], rtol=1e-4, atol=1e-3)
    code, out, errors = run("evaluate", weights, folders / "test", "--json")
    assert (code, errors) == (0, [])
    judged = {row["metric"]: row["value"] for row in json.loads(out)}
    assert judged["mae_x"] == pytest.approx(done.metrics["mae_x"]["value"], rel=1e-4)


def test_bad_input_to_the_commands_is_one_line_and_code_2(run, trained, folders, test_data, tmp_path):
    weights, images = trained[0].path("weights.safetensors"), tmp_path / "images.npy"
    np.save(images, np.zeros((2, SIZE, SIZE)))
    sets = ["--train", folders / "train", "--test", folders / "test"]
    for said, *arguments in (
        ("all equal", "predict", weights, images),
        ("was trained on roulette_sis, not on deeplense_1", "evaluate", weights, test_data.folder),
        ("invalid choice: 'angles'", "regress", "moments", *sets, "--targets", "angles"),
        ("unknown optimizer 'adamax'", "regress", "moments", *sets, "--optimizer", "adamax"),
        ("does not draw the axion mass", "regress", "moments", *sets, "--targets", "axion_mass"),
        ("set augment to none", "regress", "moments", *sets, "--targets", "raw", "--image-size", SIZE),
    ):
        code, out, errors = run(*arguments)
        assert (code, out) == (2, "")
        assert len(errors) == 1, errors
        assert said in errors[0]
