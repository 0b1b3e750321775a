"""Faults made on purpose: each is detected or harmless, and none changes a number without a word."""

import json
import os
import shutil

import nbformat
import pytest

from lenslib import faults
from lenslib.errors import InputError
from lenslib.models import create_model, load_weights
from lenslib.notebooks import execute, read_whole, verify_run
from lenslib.records import load_run


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


@pytest.mark.skipif(not os.environ.get("LENSLIB_SLOW"), reason="starts a kernel: set LENSLIB_SLOW=1")
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
