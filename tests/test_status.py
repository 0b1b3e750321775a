"""What the command says of runs that are over, at work, failed, and not begun."""

import json
import os
import time

import nbformat
import pytest
import yaml

from lenslib.errors import InputError
from lenslib.records import CHECKPOINT, run_folder, write_run
from lenslib.seals import SEAL
from lenslib.status import overview, summary

PLAN = {
    "profile": "test",
    "runs": [{"task": "classification", "recipe": "deeplense_1", "model": "small_cnn", "seeds": [0, 1, 2]}],
    "chapters": {"01_simulation": None, "05_convolutional": {}},
}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    (tmp_path / "results").mkdir()
    return tmp_path


def look(place):
    return {one.run: one for one in overview(place / "results", place / "logs", place / "plan.yaml")}


def record(place, seed, metrics=None):
    names = {"profile": "test", "task": "classification", "recipe": "deeplense_1", "model": "small_cnn", "seed": seed}
    metrics = metrics or {"macro_auc": {"value": 0.75, "low": 0.7, "high": 0.8}}
    return write_run(run_folder(place / "results", *names.values()), **names, parameters={}, metrics=metrics,
                     seconds={"train": 3725.0})  # fmt: skip


def log(place, name, *outputs):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=list(outputs))])
    notebook.metadata.papermill = {"start_time": "2026-11-28T20:00:00.123456+00:00", "duration": None}
    path = place / "logs" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def test_what_was_planned_and_has_not_begun_remains(place):
    found = look(place)
    assert {one.state for one in found.values()} == {"planned"}
    assert len(found) == 5
    assert summary(list(found.values())) == "5 planned"


def test_a_run_that_is_over_says_when_and_how_long(place):
    record(place, 1)
    one = look(place)["test/classification/deeplense_1/small_cnn/seed1"]
    assert (one.state, one.took, one.macro_auc) == ("done", "1:02:05", 0.75)
    assert one.started
    assert summary(list(look(place).values())) == "1 done, 4 planned"


@pytest.mark.parametrize("auc", [0.5, "none"])
def test_a_metric_may_be_a_number_or_a_text(place, auc):
    record(place, 1, {"macro_auc": auc})
    assert look(place)["test/classification/deeplense_1/small_cnn/seed1"].macro_auc == auc


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 10**400, 1e300])
def test_a_run_of_no_time_that_a_clock_shows_is_done(place, seconds):
    run = record(place, 1)
    said = {name: value for name, value in run.record.items() if name != SEAL}
    (run.folder / "record.json").write_text(json.dumps(said | {"seconds": {"train": seconds, "test": 1.0}}))
    one = look(place)["test/classification/deeplense_1/small_cnn/seed1"]
    assert (one.state, one.took) == ("done", "")


@pytest.mark.parametrize(
    "content",
    [
        *([1], {"metadata": [1]}, {"metadata": {"papermill": [1]}}, {"metadata": {"papermill": {"duration": "x"}}}),
        *({"metadata": {"papermill": {"duration": 1e400, "start_time": 3}}}, {"cells": 3}, {"cells": {"a": 1}}),
        *({"cells": [1, {}, {"outputs": [3, {}]}, {"outputs": 3}]}, {"cells": [{"outputs": {"output_type": "error"}}]}),
    ],
)
def test_an_odd_notebook_has_its_row(place, content):
    for folder in ("results", "logs"):
        path = place / folder / "test/chapters" / f"{folder}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    found = look(place)
    assert (found["test/chapters/results"].state, found["test/chapters/results"].took) == ("done", "")
    assert found["test/chapters/logs"].state == "begun"


def test_a_checkpoint_that_goes_as_it_is_looked_at_is_a_run_at_work(place):
    folder = run_folder(place / "results", "test", "classification", "deeplense_1", "small_cnn", 2)
    (folder / CHECKPOINT).mkdir(parents=True)  # stands for no file
    assert look(place)["test/classification/deeplense_1/small_cnn/seed2"].state == "begun"


def test_a_run_that_failed_says_why_and_where(place):
    said = "no light\nin band r\n\n"
    error = nbformat.v4.new_output("error", ename="ValueError", evalue=said, traceback=["..."])
    path = log(place, "test/chapters/01_simulation", error)
    one = look(place)["test/chapters/01_simulation"]
    assert one.state == "failed"
    assert one.note == f"ValueError: in band r; its traceback is in {path}"
    assert one.started == "2026-11-28T20:00:00"
    # run again, it is over, and its log is gone
    path.unlink()
    assert look(place)["test/chapters/01_simulation"].state == "planned"


def test_a_run_at_work_says_how_far_it_is(place):
    path = log(place, "test/chapters/05_convolutional")
    ago = time.time() - 3600
    os.utime(path, (ago, ago))
    assert look(place)["test/chapters/05_convolutional"].state == "begun"
    assert look(place)["test/chapters/05_convolutional"].note.startswith("last sign of life 1:00:0")

    folder = run_folder(place / "results", "test", "classification", "deeplense_1", "small_cnn", 2)
    folder.mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(b"")
    (folder / "history.csv").write_text("epoch,train_loss\n1,0.5\n2,0.4\n")
    one = look(place)["test/classification/deeplense_1/small_cnn/seed2"]
    assert one.state == "begun"
    assert one.note.startswith("2 epochs; last sign of life 0:00:0")
    assert summary(list(look(place).values())) == "2 begun, 3 planned"


def test_a_log_that_is_being_written_is_a_run_at_work(place):
    log(place, "test/chapters/01_simulation").write_text('{"cells": [')
    assert look(place)["test/chapters/01_simulation"].state == "begun"


def test_a_chapter_that_was_executed_is_done(place):
    log(place, "test/chapters/01_simulation")
    notebook = json.loads((place / "logs/test/chapters/01_simulation.ipynb").read_text())
    notebook["metadata"]["papermill"]["duration"] = 61.4
    target = place / "results/test/chapters/01_simulation.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(notebook))
    (place / "logs/test/chapters/01_simulation.ipynb").unlink()
    one = look(place)["test/chapters/01_simulation"]
    assert (one.state, one.started, one.took) == ("done", "2026-11-28T20:00:00", "0:01:01")


@pytest.mark.parametrize("content", ["[1, 2", "just words", "runs: 3\nchapters: {}\nprofile: test\n", "{}"])
def test_a_plan_that_is_none_is_told(place, content):
    (place / "plan.yaml").write_text(content)
    with pytest.raises(InputError, match="is no profile of the workflow"):
        look(place)


def test_every_profile_of_the_workflow_is_a_plan(place, run):
    for profile in ("test", "laptop", "desk", "full"):
        code, out, errors = run("status", place / "results", "--plan", f"workflow/{profile}.yaml", "--json")
        assert code == 0, errors
        rows = json.loads(out)
        assert {row["state"] for row in rows} == {"planned"}
        assert all(row["run"].startswith(f"{profile}/") for row in rows)


def test_the_command_ends_with_the_counts(place, run):
    record(place, 0)
    code, out, _ = run("status", place / "results", "--logs", place / "logs", "--plan", place / "plan.yaml")
    assert code == 0
    assert out.splitlines()[-1] == "1 done, 4 planned"
