"""Run records: whole or absent, and looked up without touching the test metric."""

import importlib.util
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lenslib import provenance, records
from lenslib.errors import InputError
from lenslib.records import Records, load_run, load_runs, run_folder, write_run


@pytest.fixture
def write(tmp_path):
    """Writes a run of task classification under tmp_path and returns it; any field can be given."""

    def make(model="small_cnn", profile="laptop", recipe="deeplense_1", seed=0, **given):
        place = {"profile": profile, "task": "classification", "recipe": recipe, "model": model, "seed": seed}
        given = {"parameters": {"train_count": 12000}, "metrics": {"macro_auc": 0.9, "val_macro_auc": 0.9}} | given
        return write_run(run_folder(tmp_path, **place), **place, **given)

    return make


def test_what_is_written_is_what_is_read(write, tmp_path):
    scores = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    weights = {"layer": torch.arange(4.0)}
    write(
        metrics={"macro_auc": {"value": np.float64(0.5), "low": 0.25, "high": torch.tensor(0.75)}, "best_lens": "B1"},
        predictions={"scores": scores},
        history=[{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_macro_auc": 0.75}],
        weights=weights,
        seconds={"train": 3.5},
        datasets={"train": "ab", "test": "cd"},
    )
    (run,) = load_runs(tmp_path)
    assert run.metrics == {"macro_auc": {"value": 0.5, "low": 0.25, "high": 0.75}, "best_lens": "B1"}
    np.testing.assert_array_equal(run.predictions()["scores"], scores)
    assert run.history()["loss"].tolist() == [0.5, 0.25]
    torch.testing.assert_close(load_file(run.path("weights.safetensors")), weights)
    assert run.started.endswith("+00:00")
    assert run.peak_memory_mb > 10
    assert len(run.source_digest) == 64


@pytest.mark.parametrize("lost", ["predictions.npz", "history.csv", "weights.safetensors", "record.json"])
def test_a_run_cut_short_does_not_count(write, tmp_path, monkeypatch, lost):
    whole, real_write = write(), records.write_whole

    def full_disk(path, content):
        if path.name == lost:
            raise OSError(28, "No space left on device")
        real_write(path, content)

    monkeypatch.setattr(records, "write_whole", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        write(predictions={"labels": np.zeros(2)}, history=[{"epoch": 1}], weights={"w": torch.zeros(1)})
    assert not (whole.folder / "record.json").exists()
    assert not list(whole.folder.glob(".*"))
    with pytest.raises(InputError, match="no record|missing"):
        Records(tmp_path).lookup("classification.deeplense_1.small_cnn.macro_auc")


def test_a_lost_record_is_an_error_not_a_shorter_list(write, tmp_path):
    write()
    run = write(seed=1, predictions={"labels": np.zeros(2)})
    (run.folder / "record.json").unlink()
    with pytest.raises(InputError, match=r"seed1/record\.json: missing"):
        load_runs(tmp_path)


@pytest.mark.parametrize("content", ["", '{"schema": 1', "[]", '{"schema": 1, "profile": "laptop"}', "\x00\xff"])
def test_a_torn_record_is_named(write, tmp_path, content):
    path = write().folder / "record.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"seed0/record\.json: not a") as error:
        load_runs(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["git_commit", "images_per_second"])
def test_a_record_without_what_tables_show_is_refused(write, name):
    run = write()
    said = {key: value for key, value in run.record.items() if key not in (name, "seal")}
    (run.folder / "record.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=f"lacks.*{name}"):
        load_run(run.folder)


def test_a_record_moved_elsewhere_or_of_another_schema_is_refused(write, tmp_path):
    run = write()
    shutil.copytree(run.folder, run.folder.with_name("seed7"))
    with pytest.raises(InputError, match="seed7"):
        load_runs(tmp_path)
    shutil.rmtree(run.folder.with_name("seed7"))
    (run.folder / "record.json").write_text(json.dumps(run.record | {"schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        load_runs(tmp_path)


def test_an_altered_file_is_refused(write):
    run = write(predictions={"labels": np.arange(5)})
    path = run.folder / "predictions.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="altered"):
        run.predictions()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": {"macro_auc": float("nan")}}, "not a finite number"),
        ({"metrics": {"macro_auc": True}}, "not a finite number"),
        ({"metrics": {"macro_auc": {"low": 0.1}}}, "must be a number or have value"),
        ({"metrics": {"macro.auc": 0.5}}, "must be letters"),
        ({"model": "../../escape"}, "must be letters"),
        ({"model": "resnet18.a1"}, "must be letters"),
        ({"parameters": {"model": object()}}, "cannot be recorded"),
        ({"predictions": {"names": np.array([None])}}, "pickle"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_written(write, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        write(**given)
    assert not list(tmp_path.rglob("*.*"))


def test_best_is_chosen_on_validation_never_on_test(write, tmp_path):
    write("honest", metrics={"macro_auc": 0.5, "val_macro_auc": 0.9})
    write("lucky", metrics={"macro_auc": 0.99, "val_macro_auc": 0.8})
    write("unvalidated", metrics={"macro_auc": 1.0})
    look_up = Records(tmp_path).lookup
    assert look_up("classification.deeplense_1.best.model") == "honest"
    assert look_up("classification.deeplense_1.best.macro_auc") == 0.5


def test_the_best_profile_wins(write, tmp_path):
    write(profile="laptop", metrics={"macro_auc": 0.75})
    write(profile="test", metrics={"macro_auc": 0.5})
    write("vit_tiny", profile="test", metrics={"macro_auc": 0.25})
    look_up = Records(tmp_path).lookup
    assert look_up("classification.deeplense_1.small_cnn.macro_auc") == 0.75
    assert look_up("classification.deeplense_1.vit_tiny.profile") == "test"
    write(profile="full", metrics={"macro_auc": 1.0})
    assert Records(tmp_path).lookup("classification.deeplense_1.small_cnn.profile") == "full"
    assert Records(tmp_path, profiles=["test"]).lookup("classification.deeplense_1.small_cnn.macro_auc") == 0.5


def test_weights_are_looked_for_from_the_best_profile_down(write, tmp_path):
    write(profile="desk", predictions={"labels": np.arange(3)})
    for profile in ("test", "laptop"):
        (run := write(profile=profile, predictions={"labels": np.arange(3)})).path("predictions.npz")
    (tmp_path / "desk/classification/deeplense_1/small_cnn/seed0/predictions.npz").unlink()
    place = "classification", "deeplense_1", "small_cnn"
    assert Records(tmp_path).select(*place)[0].profile == "desk"
    assert Records(tmp_path).with_file(*place, "predictions.npz").folder == run.folder
    with pytest.raises(InputError, match="has weights"):
        Records(tmp_path).with_file(*place, "weights.safetensors")
    with pytest.raises(InputError, match="unknown model"):
        Records(tmp_path).with_file("classification", "deeplense_1", "resnet", "predictions.npz")


def test_seeds_are_averaged(write, tmp_path):
    for seed, value in enumerate((1.0, 2.0, 6.0)):
        metric = {"value": value, "low": value - 1, "high": value + 2}
        write(seed=seed, metrics={"error": metric}, seconds={"train": 10.0 * seed}, device=f"cuda:{seed % 2}")
    look_up = Records(tmp_path).lookup
    key = "classification.deeplense_1.small_cnn"
    assert look_up(f"{key}.error") == pytest.approx(3)
    assert look_up(f"{key}.error.low") == pytest.approx(2)
    assert look_up(f"{key}.error.high") == pytest.approx(5)
    assert look_up(f"{key}.error.seed_sd") == pytest.approx(7**0.5)  # of 1, 2, 6: (4 + 1 + 9) / 2
    assert look_up(f"{key}.seeds") == 3
    assert look_up(f"{key}.seconds.train") == pytest.approx(10)
    assert look_up(f"{key}.parameters.train_count") == 12000
    assert look_up(f"{key}.device") == "cuda:0, cuda:1"
    table = Records(tmp_path).table("classification")
    assert table["error_high"].tolist() == [3, 4, 8]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("classification.deeplense_1.small_cnn.macro_acu", "did you mean macro_auc"),
        ("classification.deeplense_1.smal_cnn.macro_auc", "did you mean small_cnn"),
        ("classification.deeplense_9.small_cnn.macro_auc", "no record of 'classification.deeplense_9'"),
        ("classification.deeplense_1.small_cnn.macro_auc.low", "unknown field"),  # it has no interval
        ("classification.deeplense_1.small_cnn.macro_auc.seed_sd", "two seeds"),
        ("classification.deeplense_1.small_cnn.parameters", "unknown field"),
        ("classification.deeplense_1.small_cnn", "expected task.recipe.model.field"),
        ("classification..small_cnn.macro_auc", "expected task.recipe.model.field"),
    ],
)
def test_a_key_without_a_record_says_so(write, tmp_path, key, message):
    write()
    with pytest.raises(InputError, match=message):
        Records(tmp_path).lookup(key)


def test_source_digest_follows_modules_and_recipes_alone(tmp_path):
    shutil.copy(records.__file__.replace("records.py", "provenance.py"), tmp_path)
    spec = importlib.util.spec_from_file_location("provenance_copy", tmp_path / "provenance.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    digests = [copied.source_digest()]
    for name in ("notes.txt", "recipes/a.yaml", "models/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
        digests.append(copied.source_digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_commit_is_dirty_by_code_and_not_by_results(tmp_path, monkeypatch):
    for name in ("lenslib", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("before")

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lenslib" / "provenance.py"))
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = provenance.git_commit()
    assert len(clean) == 40
    (tmp_path / "results" / "file").write_text("after")
    assert provenance.git_commit() == clean
    (tmp_path / "lenslib" / "file").write_text("after")
    assert provenance.git_commit() == f"{clean}-dirty"
