"""Parameters are checked before a notebook starts; an executed notebook appears only when all of it ran."""

import argparse
import copy

import nbformat
import pytest

import lenslib
from lenslib.errors import InputError
from lenslib.notebooks import NotebookError, add_parser, check, execute, from_text, inspect, keep, read, read_whole
from lenslib.status import overview

PARAMETERS = """
from typing import Literal
profile: str = "test"
recipe: str = "a"
models: list[str] = ["b"]
seed: int = 0
train_count: int = 10
epochs: int = 1
learning_rate: float = 1e-3
noise: bool = True
kind: Literal["hard", "easy"] = "easy"
sizes: list[int] = [64]
"""


@pytest.fixture
def notebook(tmp_path):
    """Writes a notebook with a parameters cell and one more cell."""

    def make(source="", parameters=PARAMETERS):
        cells = [nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(source)]
        cells[0].metadata.tags = ["parameters"]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path = tmp_path / "some.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
        return path

    return make


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    monkeypatch.setattr(lenslib, "list_recipes", lambda: ["deeplense_1", "matched_hst"], raising=False)
    monkeypatch.setattr(lenslib, "list_models", lambda: ["small_cnn", "resnet18"], raising=False)


def test_parameters_are_read_without_running(notebook):
    parameters = inspect(notebook())
    assert list(parameters)[:3] == ["profile", "recipe", "models"]
    assert parameters["kind"].annotation == "Literal['hard', 'easy']"
    assert parameters["learning_rate"].default == 1e-3


def test_good_values_pass(notebook):
    values = {"recipe": "deeplense_1", "models": ["resnet18"], "learning_rate": 1, "kind": "hard", "sizes": [1, 2]}
    assert check(notebook(), values) == values


def test_a_recipe_may_be_a_file_of_the_user(notebook, tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    check(notebook(), {"recipe": str(tmp_path / "mine.yaml")})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 1}, "unknown parameter .* 'epoch': did you mean epochs.* valid choices: .*learning_rate"),
        ({"seed": "abc"}, "'seed' must be int, not 'abc'"),
        ({"seed": 1.5}, "'seed' must be int"),
        ({"epochs": True}, "'epochs' must be int, not True"),
        ({"learning_rate": "fast"}, "'learning_rate' must be float"),
        ({"learning_rate": float("nan")}, "'learning_rate' must be float"),
        ({"noise": 1}, "'noise' must be bool"),
        ({"sizes": [64, "a"]}, r"'sizes' must be list\[int\]"),
        ({"sizes": 64}, r"'sizes' must be list\[int\]"),
        ({"kind": "soft"}, "'kind' must be .*hard.*easy"),
        ({"profile": None}, "'profile' must be str"),
        ({"recipe": "deeplense1"}, "unknown recipe 'deeplense1': did you mean deeplense_1"),
        ({"models": ["small_cnn", "resnet"]}, "unknown model 'resnet': did you mean resnet18"),
        ({"train_count": 0}, "'train_count' must be greater than 0"),
        ({"epochs": -1}, "'epochs' must be greater than 0"),
        ({"seed": -1}, "'seed' must not be negative"),
    ],
)
def test_bad_values_stop_before_the_start(notebook, tmp_path, values, message):
    path = notebook("raise SystemError('it ran')")
    with pytest.raises(InputError, match=message) as error:
        execute(path, tmp_path / "out.ipynb", values, tmp_path / "log.ipynb")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "log.ipynb").exists()


@pytest.mark.parametrize(
    "parameters",
    ["seed = 1", "seed: int", "seed: Path = 1", "seed: int = make()", "seed: list[object] = []", "seed: = 1"],
)
def test_a_parameters_cell_that_cannot_be_checked_is_refused(notebook, parameters):
    with pytest.raises(InputError, match="some.ipynb"):
        inspect(notebook(parameters=parameters))


def test_files_that_are_no_notebooks_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such notebook"):
        inspect(tmp_path / "none.ipynb")
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    with pytest.raises(InputError, match="not a notebook"):
        inspect(tmp_path / "torn.ipynb")


def test_text_becomes_what_the_annotation_asks_for(notebook):
    texts = {
        "profile": "1e3",
        "seed": "7",
        "learning_rate": "1e-3",
        "noise": "false",
        "sizes": "[1, 2]",
        "kind": "hard",
    }
    expected = {"profile": "1e3", "seed": 7, "learning_rate": 1e-3, "noise": False, "sizes": [1, 2], "kind": "hard"}
    assert from_text(notebook(), texts) == expected


def test_an_executed_notebook_holds_its_parameters_and_output(notebook, tmp_path):
    output, log = tmp_path / "deep" / "out.ipynb", tmp_path / "logs" / "out.ipynb"
    execute(notebook("print(seed + 1, sizes)"), output, {"seed": 41, "sizes": [3]}, log)
    run = read(output)
    assert run.cells[-1].outputs[0].text.strip() == "42 [3]"
    assert run.metadata.papermill.parameters == {"seed": 41, "sizes": [3]}
    assert not log.exists()
    assert [path.name for path in output.parent.iterdir()] == ["out.ipynb"]


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("1 / 0", NotebookError, "ZeroDivisionError: division by zero"),
        ("from lenslib.errors import InputError\nraise InputError('no such folder')", InputError, "no such folder"),
        ("import os\nos.kill(os.getpid(), 9)", NotebookError, "the kernel died (killed, or out of memory?)"),
    ],
)
def test_after_an_error_only_the_log_remains_and_tells_it(notebook, tmp_path, source, error, said):
    output, log = tmp_path / "out.ipynb", tmp_path / "logs" / "out.ipynb"
    with pytest.raises(error, match=str(log)) as raised:
        execute(notebook(source), output, {}, log)
    assert "\n" not in str(raised.value)
    assert not output.exists()
    (told,) = overview(tmp_path, log.parent)
    assert told.state == "failed"
    assert said in told.note


def test_cells_beside_the_seal_do_not_stand_for_those_of_the_notebook(notebook, tmp_path):
    content, path = read(notebook("1 + 1")), tmp_path / "kept.ipynb"
    keep(content, path)
    assert read_whole(path).cells[-1].source == "1 + 1"
    content.metadata["lenslib"]["cells"] = copy.deepcopy(content.cells)
    content.cells[-1].source = "1 + 2"
    nbformat.write(content, path)
    with pytest.raises(InputError, match="altered"):
        read_whole(path)


@pytest.mark.parametrize("ours", [[1], "text", 3, None])
def test_a_seal_that_is_none_is_refused(notebook, tmp_path, ours):
    content = read(notebook())
    content.metadata["lenslib"] = ours
    nbformat.write(content, tmp_path / "odd.ipynb")
    with pytest.raises(InputError, match=r"odd\.ipynb") as error:
        read_whole(tmp_path / "odd.ipynb")
    assert "\n" not in str(error.value)


def test_the_command_takes_a_file_and_overrides(notebook, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("lenslib.notebooks.execute", lambda *given: seen.update(values=given[2], log=given[3]))
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    (tmp_path / "p.yaml").write_text("learning_rate: 1e-3\nseed: 1\n")
    line = ["run", str(notebook()), "out.ipynb", "--parameters", str(tmp_path / "p.yaml"), "-p", "seed", "2"]
    arguments = parser.parse_args(line)
    assert arguments.handler(arguments) == 0
    assert seen["values"] == {"learning_rate": 1e-3, "seed": 2}
    (tmp_path / "p.yaml").write_text("- seed")
    with pytest.raises(InputError, match="must map parameter names"):
        arguments.handler(arguments)
