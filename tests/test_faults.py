"""Faults made on purpose: each is detected or harmless, and none changes a number without a word."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest

from lenslib import faults
from lenslib.bench_faults import kill
from lenslib.errors import InputError
from lenslib.faults_workflow import SmallWorkflow, differences, plan
from lenslib.models import create_model, load_weights
from lenslib.notebooks import execute, read_whole, verify_run
from lenslib.records import load_run

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
from run import date_back  # noqa: E402


@pytest.mark.parametrize("name", faults.FAULTS)
def test_no_fault_passes_unnoticed(name, tmp_path):
    outcome = faults.FAULTS[name](tmp_path)
    assert outcome.tried >= len(faults.KINDS)
    assert outcome.unnoticed == 0


def test_an_unguarded_file_would_be_found_out(tmp_path, monkeypatch):
    """The oracle of the oracle: readers that check nothing let a changed byte through."""

    def reader(folder):
        return (folder / "params.parquet").read_bytes()

    monkeypatch.setattr(faults, "KINDS", {"data set": (faults.write_data, reader)})
    outcome = faults.corrupted_byte(tmp_path, tries=3)
    assert outcome == faults.Outcome(tried=9, detected=0, harmless=6)
    assert outcome.unnoticed == 3


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path.joinpath(*map(str, list(faults.PLACE.values())[:-1]), "seed0")
    faults.write_results(folder)
    return folder


def test_a_number_edited_in_a_record_is_refused(folder):
    record = json.loads((folder / "record.json").read_text())
    record["metrics"]["macro_auc"]["value"] = 0.9
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="record.json: altered since it was written"):
        load_run(folder)


def test_a_record_of_before_there_were_seals_is_read(folder):
    record = json.loads((folder / "record.json").read_text())
    del record["seal"]
    (folder / "record.json").write_text(json.dumps(record))
    assert verify_run(folder).metrics["macro_auc"]["value"] == 0.5


def test_weights_that_differ_from_their_record_are_refused_and_loose_ones_taken(folder, tmp_path):
    from safetensors.torch import save_file

    model = create_model("small_cnn", num_outputs=3, image_size=32)
    save_file(model.state_dict(), folder / "weights.safetensors")
    with pytest.raises(InputError, match="weights.safetensors: altered since its record was written"):
        load_weights(model, folder)
    shutil.copy(folder / "weights.safetensors", tmp_path / "loose.safetensors")
    load_weights(model, tmp_path / "loose.safetensors")


def test_verify_tells_a_whole_run_from_an_altered_one(run, folder):
    faults.write_notebook(folder)
    assert run("verify", folder)[0] == 0
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    notebook.cells[0].outputs[0].text = "macro AUC 0.99\n"
    nbformat.write(notebook, folder / "notebook.ipynb")
    code, _, errors = run("verify", folder)
    assert code == 2
    assert len(errors) == 1
    assert "notebook.ipynb: altered" in errors[0]


@pytest.mark.slow
def test_what_papermill_wrote_is_kept_sealed(tmp_path):
    cells = [nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("print('one\\ntwo')")]  # fmt: skip
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "source.ipynb")
    execute(tmp_path / "source.ipynb", tmp_path / "out.ipynb", {"seed": 1}, tmp_path / "log.ipynb")
    text = (tmp_path / "out.ipynb").read_text()
    assert read_whole(tmp_path / "out.ipynb").metadata["lenslib"]["seal"]
    (tmp_path / "out.ipynb").write_text(text.replace("two", "six"))
    with pytest.raises(InputError, match="altered"):
        read_whole(tmp_path / "out.ipynb")
    # whoever edits it may run it
    execute(tmp_path / "out.ipynb", tmp_path / "again.ipynb", {"seed": 2}, tmp_path / "log.ipynb")
    assert read_whole(tmp_path / "again.ipynb").cells[-1].source == "print('one\\nsix')"


def test_what_differs_between_two_workflows_is_named():
    facts = {"same": [1, {"a": 0.5}], "other": 1, "here": 2}
    assert differences(facts, {"same": [1, {"a": 0.5}], "other": 2, "there": 3}) == ["here", "other", "there"]


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        ("Building DAG of jobs...", "plan"),
        ("rule simulate:\n    Message: simulate test", "simulate"),
        ("Job 4: simulate train\nJob 3: train small_cnn", "train"),
        ("Job 4: train small_cnn\nJob 2: chapter chapter; if it fails", "collect"),
        ("Job 2: chapter chapter\nJob 1: render the book", "book"),
    ],
)
def test_the_stage_is_the_step_that_began_last(said, stage, tmp_path):
    workflow = SmallWorkflow(tmp_path / "small", plan())
    workflow.log.write_text(said)
    assert workflow.stage() == stage


def test_what_is_dated_ahead_is_dated_now_and_the_rest_left(tmp_path):
    for name, hours in (("old", -1), ("ahead", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, (time.time() + 3600 * hours,) * 2)
    before = os.stat(tmp_path / "old/file").st_mtime
    assert date_back([tmp_path, tmp_path / "absent"]) == 2
    assert os.stat(tmp_path / "old/file").st_mtime == before
    assert max(os.stat(path).st_mtime for path in tmp_path.rglob("*")) <= time.time()
    assert date_back([tmp_path]) == 0


@pytest.mark.slow
def test_a_killed_workflow_and_one_whose_clock_went_back_come_to_the_same_end(tmp_path):
    found = kill(tmp_path, kills=2, seed=2, step=print)
    assert found["kills_survived"] == found["kills"] == 2
    assert found["clock_workflow_harmless"] == 1
