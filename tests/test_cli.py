"""The command line: what it prints, what it writes, and one line with exit code 2 for bad input."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lenslib.cli import main
from lenslib.dataset import open_dataset, write_batches, write_dataset
from lenslib.models import list_models
from lenslib.recipe import list_recipes
from lenslib.records import load_runs


@pytest.fixture
def refused(run):
    """Asserts that a command is bad input: code 2, nothing on standard output, one line that holds `said`."""

    def call(said, *arguments):
        code, out, errors = run(*arguments)
        assert (code, out) == (2, "")
        assert len(errors) == 1, errors
        assert said in errors[0]

    return call


@pytest.fixture(scope="module")
def trained(training_data, test_data, tmp_path_factory):
    """A results folder with one small run in it."""
    results = tmp_path_factory.mktemp("results")
    settings = ["--epochs", 2, "--image-size", 24, "--profile", "test", "--seed", 3, "--device", "cpu"]
    arguments = ["train", "small_cnn", "--train", training_data.folder, "--test", test_data.folder]
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in [*arguments, "--results", results, *settings]])
    assert stop.value.code == 0
    return results


@pytest.fixture(scope="module")
def weights(trained):
    return trained / "test/classification/deeplense_1/small_cnn/seed3/weights.safetensors"


@pytest.fixture
def files(test_data, tmp_path):
    """A folder of single images and one stack: images 0, 1 and 2 to 5 of the test set."""
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", test_data.images[0, 0])
    np.save(folder / "b.npy", test_data.images[1])
    np.save(folder / "stack.npy", test_data.images[2:6])
    return folder


def test_recipes_and_models_are_listed(run):
    for command, names, key in (("recipes", list_recipes(), "recipe"), ("models", list_models(), "model")):
        code, out, errors = run(command, "--json")
        assert (code, errors) == (0, [])
        assert [row[key] for row in json.loads(out)] == names
        _, table, _ = run(command)
        assert [line.split()[0] for line in table.splitlines()] == [key, *names]


def test_simulate_writes_the_set_that_verify_passes(run, small_recipe, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(small_recipe.to_yaml())
    options = ["--count", 7, "--seed", 1, "--start", 90, "--out", tmp_path / "set"]
    code, out, errors = run("simulate", recipe, *options, "--set", "source.n_sersic=2.5")
    assert (code, errors) == (0, [])
    data = open_dataset(tmp_path / "set")
    assert (len(data), data.seed) == (7, 1)
    assert data.params["index"].tolist() == list(range(90, 97))
    assert (data.params["n_sersic"] == 2.5).all()
    assert data.digest in out
    code, out, errors = run("verify", tmp_path / "set")
    assert (code, errors) == (0, [])
    assert data.digest in out


def test_train_writes_a_run_that_status_lists(run, trained, training_data, test_data):
    (found,) = load_runs(trained)
    assert (found.model, found.recipe, found.profile, found.seed) == ("small_cnn", "deeplense_1", "test", 3)
    assert found.datasets == {"train": training_data.digest, "test": test_data.digest}
    assert found.parameters["train_count"] == len(training_data)
    predictions = found.predictions()
    np.testing.assert_array_equal(predictions["labels"], test_data.labels)
    np.testing.assert_allclose(predictions["scores"].sum(1), 1, atol=1e-5)
    assert len(found.history()) == 2
    code, out, _ = run("status", trained, "--json")
    assert code == 0
    assert json.loads(out)[0]["macro_auc"] == found.metrics["macro_auc"]["value"]


def test_train_goes_on_from_a_run_with_its_backbone_held(run, trained, weights, training_data, test_data, tmp_path):
    given = ["--train", training_data.folder, "--test", test_data.folder, "--results", tmp_path, "--profile", "test"]
    options = ["--epochs", 1, "--image-size", 24, "--device", "cpu", "--weights", weights.parent, "--frozen"]
    assert run("train", "small_cnn", *given, *options)[0] == 0
    (found,) = load_runs(tmp_path)
    assert found.parameters["weights"] == str(weights.parent)
    before, after = load_file(weights), load_file(found.path("weights.safetensors"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_train_on_a_stream_writes_the_same_kind_of_run(run, small_recipe, test_data, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(small_recipe.to_yaml())
    given = ["--stream", 100, "--test", test_data.folder, "--results", tmp_path / "results", "--stream-seed", 7]
    options = ["--epochs", 2, "--image-size", 24, "--profile", "test", "--device", "cpu"]
    code, _, errors = run("train", "small_cnn", "--train", recipe, *given, *options)
    assert (code, errors) == (0, [])
    (found,) = load_runs(tmp_path / "results")
    said = {name: found.parameters[name] for name in ("train_count", "stream_seed", "validation_seed", "epochs")}
    assert said == {"train_count": 100, "stream_seed": 7, "validation_seed": 3, "epochs": 2}
    assert found.datasets["test"] == test_data.digest
    assert len(found.predictions()["labels"]) == len(test_data)


def test_a_stream_that_does_not_fit_is_refused(refused, small_recipe, test_data, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(small_recipe.to_yaml())

    def train(said, *options, train=recipe):
        given = ["--train", train, "--test", test_data.folder, "--results", tmp_path / "results", "--device", "cpu"]
        refused(said, "train", "small_cnn", *given, *options)
        assert not (tmp_path / "results").exists()

    train("count", "--stream", 0)
    train("--stream", "--stream", "many")
    train("seed", "--stream", 96, "--stream-seed", -1)
    train("same seed 5", "--stream", 96, "--stream-seed", 5, "--validation-seed", 5)
    # the test folder has seed 1
    train("training and", "--stream", 96, "--stream-seed", 1)
    train("validation and", "--stream", 96, "--validation-seed", 1)
    train("recipe", "--stream", 96, "--set", "source.n_sersic=3")
    train("--stream", "--set", "source.n_sersic=3")
    train("deeplense_1", "--stream", 96, train="deeplens_1")
    train("crop", "--stream", 96, "--crop", 31)
    train("precision", "--stream", 96, "--precision", "bf16-true")


def test_predict_gives_what_the_run_recorded(run, weights, trained, files):
    recorded = load_runs(trained)[0].predictions()["scores"]
    code, out, errors = run("predict", weights, files, "--json")
    assert (code, errors) == (0, [])
    rows = json.loads(out)
    expected = [f"{files}/{name}" for name in ("a.npy", "b.npy", *(f"stack.npy[{k}]" for k in range(4)))]
    assert [row["file"] for row in rows] == expected
    classes = ("no_sub", "cdm", "vortex")
    np.testing.assert_allclose([[row[name] for name in classes] for row in rows], recorded[:6], atol=1e-4)
    assert [row["class"] for row in rows] == [classes[k] for k in recorded[:6].argmax(1)]
    code, text, _ = run("predict", weights, files, "--csv")
    listed = list(csv.DictReader(text.splitlines()))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == listed
    code, table, _ = run("predict", weights, files / "b.npy", files / "a.npy")
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        [row["file"], row["class"]] for row in (rows[1], rows[0])
    ]


def test_evaluate_gives_what_the_run_recorded(run, weights, trained, test_data):
    code, out, errors = run("evaluate", weights, test_data.folder, "--json")
    assert (code, errors) == (0, [])
    found = {row["metric"]: row for row in json.loads(out)}
    recorded = load_runs(trained)[0].metrics
    for name in ("macro_auc", "auc_cdm", "accuracy"):
        assert found[name] == {"metric": name} | {
            part: pytest.approx(recorded[name][part], abs=1e-3) for part in ("value", "low", "high")
        }


def test_one_bad_file_among_many_is_code_1_and_a_table_with_a_gap(run, weights, files):
    np.save(files / "b.npy", np.full((32, 32), np.nan))
    code, out, errors = run("predict", weights, files, "--json")
    assert code == 1
    assert len(errors) == 1
    assert "b.npy" in errors[0]
    assert len(json.loads(out)) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["simulat"], "simulate"),
        (["recipes", "--jsn"], "--jsn"),
        (["simulate", "deeplense_1"], "--count"),
        (["simulate", "deeplense_1", "--count", "many", "--out", "{tmp}/set"], "--count"),
        (["simulate", "deeplens_1", "--count", "3", "--out", "{tmp}/set"], "deeplense_1"),
        (["simulate", "{tmp}/absent.yaml", "--count", "3", "--out", "{tmp}/set"], "absent.yaml"),
        (["simulate", "deeplense_1", "--count", "0", "--out", "{tmp}/set"], "count"),
        (["simulate", "deeplense_1", "--count", "-5", "--out", "{tmp}/set"], "count"),
        (["simulate", "deeplense_1", "--count", "3", "--seed", "-1", "--out", "{tmp}/set"], "seed"),
        (["simulate", "deeplense_1", "--count", "3", "--start", "-1", "--out", "{tmp}/set"], "start"),
        (["simulate", "deeplense_1", "--count", "3", "--out", "{tmp}/set", "--set", "lens"], "KEY=VALUE"),
        (["simulate", "deeplense_1", "--count", "3", "--out", "{tmp}/set", "--set", "lens.mas=1"], "lens.mas"),
        (["simulate", "deeplense_1", "--count", "3", "--out", "{tmp}/set", "--set", "lens.mass=[1"], "lens.mass"),
        (["simulate", "deeplense_1", "--count", "3", "--out", "{tmp}/set", "--device", "abacus"], "abacus"),
        (["simulate", "deeplense_1", "--count", "999999999999", "--out", "{tmp}/set"], "free"),
        (["verify", "{tmp}/absent"], "absent"),
        (["status", "{tmp}/absent"], "absent"),
        (["predict", "{tmp}/absent.safetensors", "{tmp}/image.npy"], "absent.safetensors"),
        (["evaluate", "{tmp}/absent.safetensors", "{tmp}"], "absent.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_code_2(refused, tmp_path, arguments, said):
    refused(said, *[argument.format(tmp=tmp_path) for argument in arguments])
    assert not list(tmp_path.iterdir())


def test_an_altered_set_is_refused(refused, test_data, tmp_path):
    folder = shutil.copytree(test_data.folder, tmp_path / "set")
    with open(folder / "images.npy", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xfe")
    refused("images.npy", "verify", folder)


def test_training_on_what_does_not_fit_is_refused(refused, training_data, test_data, small_recipe, tmp_path):
    def train(said, *options, model="small_cnn", train=training_data.folder, test=test_data.folder):
        given = ["--train", train, "--test", test, "--results", tmp_path / "results", "--image-size", 24]
        refused(said, "train", model, *given, "--device", "cpu", "--epochs", 1, *options)
        assert not (tmp_path / "results").exists()

    train("small_cnn", model="small_cn")
    train("autoencoder", model="vae")
    train("16 pixels or more", "--image-size", 8)
    train("image_size", "--image-size", 0)
    train("epochs", "--epochs", 0)
    train("batch_size", "--batch-size", -1)
    train("learning_rate", "--learning-rate", "nan")
    train("learning-rate", "--learning-rate", "fast")
    train("augment", "--augment", "d5")
    train("precision", "--precision", "8-bit")
    train("seed", "--seed", -1)
    train("patience", "--patience", -1)
    train("shift must be below the 24 pixels", "--shift", 24)
    train("name some in weights", "--frozen")
    train("has no ImageNet weights", "--weights", "imagenet")
    train("absent.safetensors", "--weights", tmp_path / "absent.safetensors")
    train("abacus", "--device", "abacus")
    train("absent", train=tmp_path / "absent")
    train("same seed", train=test_data.folder)
    other = write_dataset(small_recipe.model_copy(update={"title": "other"}), 3, 9, tmp_path / "other", progress=False)
    train("different recipes", test=other.folder)
    # one image, and two of one class: no network can be judged or chosen by these
    one = write_dataset(small_recipe, 1, 9, tmp_path / "one", progress=False)
    train("one class", test=one.folder)
    train("one", train=one.folder)
    labelled = _labelled(small_recipe, tmp_path)
    train("image 20 of", train=labelled("high", np.r_[np.arange(20) % 3, 3, np.arange(9) % 3]))
    train("label -1", train=labelled("low", np.r_[np.arange(29) % 3, -1]))
    # the last tenth, which chooses the epoch, has the third class
    train("of the 27 training images shows vortex", train=labelled("empty", np.r_[np.arange(27) % 2, 2, 2, 2]))


def _labelled(recipe, tmp_path):
    """Writes a data set of noise with given labels."""

    def write(name, labels):
        images = torch.randn(len(labels), 1, 32, 32, generator=torch.Generator().manual_seed(0))
        values = {"label": torch.from_numpy(labels)}
        return write_batches(recipe, len(labels), 1, [(images, values)], 9, tmp_path / name).folder

    return write


def test_weights_that_do_not_fit_are_refused(refused, weights, training_data, test_data, tmp_path):
    def train(said, path, model="small_cnn"):
        given = ["--train", training_data.folder, "--test", test_data.folder, "--results", tmp_path / "results"]
        refused(said, "train", model, *given, "--image-size", 24, "--device", "cpu", "--weights", path)
        assert not (tmp_path / "results").exists()

    train("of small_cnn do not fit the model: 'stages.0.0.weight' is missing", weights, "polar_cnn")
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pt")
    train("pickled weights are refused", tmp_path / "weights.pt")


def test_a_loss_that_explodes_is_one_line(refused, training_data, test_data, tmp_path, monkeypatch):
    def explode(*_, **__):
        return torch.tensor(float("nan"))

    monkeypatch.setattr("lenslib.tasks.cross_entropy", explode)
    given = ["--train", training_data.folder, "--test", test_data.folder, "--results", tmp_path / "results"]
    refused("lower learning_rate", "train", "small_cnn", *given, "--image-size", 24, "--device", "cpu")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.ones((31, 31)), "32 x 32"),
        (np.where(np.arange(1024) == 7, np.nan, 1.0).reshape(32, 32), "NaN"),
        (np.ones((32, 32)), "all equal"),
        (np.array([{}], dtype=object), "pickled"),
    ],
    ids=["shape", "nan", "constant", "pickle"],
)
def test_a_bad_image_is_refused(refused, weights, tmp_path, image, said):
    np.save(tmp_path / "image.npy", image, allow_pickle=True)
    refused(said, "predict", weights, tmp_path / "image.npy")


def test_what_holds_no_images_is_refused(refused, weights, tmp_path):
    refused("no such file", "predict", weights, tmp_path / "absent.npy")
    refused("holds no images", "predict", weights, tmp_path)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    refused("whole PNG", "predict", weights, tmp_path / "image.png")
    (tmp_path / "image.jpg").write_bytes(b"\xff\xd8")
    refused("only .npy", "predict", weights, tmp_path / "image.jpg")


def test_a_network_is_judged_on_its_own_kind_of_images_only(refused, weights, tmp_path, small_recipe):
    pixels = small_recipe.instrument.model_copy(update={"pixels": 24})
    other = write_dataset(
        small_recipe.model_copy(update={"instrument": pixels}), 3, 9, tmp_path / "other", progress=False
    )
    refused("32 pixels", "evaluate", weights, other.folder)


def test_a_process_ends_with_one_line_and_code_2(weights, tmp_path):
    """Through the interpreter: nothing else reaches the terminal, neither a warning nor a progress bar."""
    np.save(tmp_path / "image.npy", np.full((32, 32), 1e300) * np.arange(32))
    command = [sys.executable, "-m", "lenslib.cli", "predict", weights, tmp_path / "image.npy"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "infinite" in done.stderr
