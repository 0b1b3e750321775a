"""What every notebook in the repository must be before it runs."""

from pathlib import Path

import pytest
import yaml

from lenslib.notebooks import check, inspect, read

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = sorted(REPOSITORY.glob("notebooks/*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem not in ("train", "regress")]
PROFILES = sorted(REPOSITORY.glob("workflow/*.yaml"))


def name(path):
    return path.stem


def test_the_table_of_contents_lists_every_chapter_once():
    toc = (REPOSITORY / "book/_toc.yml").read_text()
    listed = [line.split("notebooks/")[1].strip() for line in toc.splitlines() if "notebooks/" in line]
    assert sorted(listed) == sorted(path.stem for path in CHAPTERS)
    for profile in PROFILES:
        assert sorted(yaml.safe_load(profile.read_text())["chapters"]) == sorted(listed), profile.name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_no_output_is_stored(notebook):
    cells = [cell for cell in read(notebook).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert "papermill" not in read(notebook).metadata


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_it_opens_with_one_title(notebook):
    cells = read(notebook).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    lines = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert sum(line.startswith("# ") for line in lines) == 1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_no_backslash_was_taken_for_an_escape(notebook):
    """Written from Python, LaTeX such as \\binom easily turns into a control character and the rest of its name."""
    text = "".join(cell.source for cell in read(notebook).cells)
    assert all(character == "\n" or character.isprintable() for character in text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_its_own_defaults_are_good_parameters(notebook):
    parameters = inspect(notebook)
    assert {"profile", "results", "seed"} <= set(parameters)
    check(notebook, {parameter.name: parameter.default for parameter in parameters.values()})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_it_runs_on_any_computer_that_has_the_environment(notebook):
    assert read(notebook).metadata.kernelspec.name == "python3"
    code = "\n".join(cell.source for cell in read(notebook).cells if cell.cell_type == "code")
    assert "pip install" not in code
    assert "/home/" not in code


@pytest.mark.parametrize("profile", PROFILES, ids=name)
def test_the_parameters_of_every_profile_are_good(profile):
    config = yaml.safe_load(profile.read_text())
    for run in config["runs"]:
        values = {key: value for key, value in run.items() if key not in ("task", "notebook", "seeds")}
        for seed in run["seeds"]:
            check(REPOSITORY / f"notebooks/{run.get('notebook', 'train')}.ipynb", values | {"seed": seed})
    for chapter, settings in config["chapters"].items():
        check(REPOSITORY / f"notebooks/{chapter}.ipynb", (settings or {}).get("parameters", {}))
