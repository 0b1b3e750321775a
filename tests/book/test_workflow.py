"""Every notebook runs with the test profile, through the workflow that readers use, and the book is built from that."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lenslib.models import model_info
from lenslib.notebooks import read
from lenslib.records import Records, load_runs

REPOSITORY = Path(__file__).parents[2]
CONFIG = yaml.safe_load((REPOSITORY / "workflow/test.yaml").read_text())
CHAPTERS = sorted(CONFIG["chapters"])
ROLE = re.compile(r"\{rec\}`([^`]+)`")


def build_book(results: Path, build: Path, *records: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "workflow/book.py", "--profile", "test"]
    command += ["--results", str(results), "--build", str(build), "--records", *records]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture
def results(workflow, tmp_path) -> Path:
    """A copy of the results (without weights, which the book does not read), to be damaged."""
    return shutil.copytree(workflow.results, tmp_path / "results", ignore=shutil.ignore_patterns("*.safetensors"))


def test_every_planned_run_and_chapter_record_is_there_and_no_other(workflow):
    planned = {
        f"{run['task']}/{run['recipe']}/{run['model']}/seed{seed}" for run in CONFIG["runs"] for seed in run["seeds"]
    }
    for chapter in CONFIG["chapters"].values():
        planned |= set((chapter or {}).get("records", []))
    runs = [run for run in load_runs(workflow.results) if run.profile == CONFIG["profile"]]
    found = {run.folder.relative_to(workflow.results / "test").as_posix() for run in runs}
    assert found == planned


def test_training_runs_keep_all_their_files(workflow):
    for run in load_runs(workflow.results):
        if run.task in ("classification", "regression", "amplitudes"):
            assert len(run.history()) == run.parameters["epochs"]
            for name in ("predictions.npz", "weights.safetensors"):
                run.path(name)
            assert not any(output.output_type == "error" for cell in read(run.folder / "notebook.ipynb").cells
                           for output in cell.get("outputs", []))  # fmt: skip


def test_failed_notebooks_would_be_in_the_logs_and_none_is(workflow):
    assert not list((workflow.root / "logs").rglob("*.ipynb"))


def test_a_second_call_has_nothing_to_do(workflow):
    assert "Nothing to be done" in workflow.run("--dry-run").stdout


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_a_page_without_tracebacks(workflow, chapter):
    page = (workflow.html / "notebooks" / f"{chapter}.html").read_text()
    assert "output traceback" not in page
    assert "Traceback (most recent call last)" not in page


def test_every_quoted_number_is_rendered_with_its_origin(workflow):
    quoted = 0
    for source in (workflow.root / "build/src").glob("*/*.*"):
        if source.suffix not in (".md", ".ipynb"):
            continue
        keys = ROLE.findall(prose(source))
        page = (workflow.html / source.relative_to(workflow.root / "build/src")).with_suffix(".html").read_text()
        spans = re.findall(r'<a class="rec" href="[^"]+" title="([^"]+)">([^<]*)</a>', page)
        quoted += len(keys)
        assert len(spans) >= len(keys), source.name
        assert all(title.startswith(("profile test, ", "profile desk, bench/")) and text for title, text in spans)
        for key in keys:
            name, _, spec = key.partition(":")
            if " " in name:  # a sum with a record
                continue
            value = Records(workflow.results).lookup(name)
            expected = str(value) if isinstance(value, str) else format(value, spec.removeprefix("ci"))
            assert any(html.unescape(text).startswith(expected) for _, text in spans), key
    assert quoted > 0


def test_the_book_holds_every_record_and_chapters_say_how_they_were_run(workflow):
    runs = load_runs(workflow.results)
    places = {f"{run.profile}/{run.task}/{run.recipe}/{run.model}/seed{run.seed}.json": run for run in runs}
    shown = (workflow.html / "book/records.html").read_text()
    for place, run in places.items():
        assert (workflow.html / "records" / place).read_bytes() == (run.folder / "record.json").read_bytes()
        assert f'href="../records/{place}"' in shown
    for chapter in CHAPTERS:
        page = (workflow.html / f"notebooks/{chapter}.html").read_text()
        (origin,) = re.findall(r'<p class="origin">(.*?)</p>', page)
        assert "with profile test, seed 0" in origin
        notebook = re.search(r'href="\.\./(_sources/[^"]+\.ipynb)"', origin)[1]
        assert any(cell.get("outputs") for cell in read(workflow.html / notebook).cells)


def prose(source: Path) -> str:
    if source.suffix == ".md":
        return source.read_text()
    return "\n".join(cell.source for cell in read(source).cells if cell.cell_type == "markdown")


def test_the_book_fails_without_the_records_it_quotes(workflow, results, tmp_path):
    shutil.rmtree(results / "test/classification/deeplense_1")
    done = build_book(results, tmp_path / "build")
    assert done.returncode == 2
    assert "no record of 'classification.deeplense_1'" in done.stdout + done.stderr
    assert not (tmp_path / "build/html").exists()


def test_the_book_fails_when_any_record_file_is_gone(workflow, results, tmp_path):
    record = next((results / "test/classification/matched_hst").rglob("record.json"))
    record.unlink()
    done = build_book(results, tmp_path / "build")
    assert done.returncode == 2
    assert str(record) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_book_fails_without_a_record_that_no_page_quotes(workflow, results, tmp_path):
    gone = "equivariance/deeplense_1/vit_tiny/seed0"
    shutil.rmtree(results / "test" / gone)
    done = build_book(results, tmp_path / "build", gone)
    assert done.returncode == 2
    assert gone in done.stderr


@pytest.mark.parametrize("damage", ["error output", "exception", "not run", "a warning"])
def test_the_book_refuses_a_chapter_that_did_not_run_to_its_end(workflow, results, tmp_path, damage):
    import nbformat

    path = results / "test/chapters" / f"{CHAPTERS[0]}.ipynb"
    notebook = read(path)
    if damage == "error output":
        error = nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=["x"])
        next(cell for cell in notebook.cells if cell.cell_type == "code").outputs.append(error)
    elif damage == "a warning":
        stream = nbformat.v4.new_output("stream", name="stderr", text="x.py:1: DeprecationWarning: old")
        next(cell for cell in notebook.cells if cell.cell_type == "code").outputs.append(stream)
    elif damage == "exception":
        notebook.metadata.papermill.exception = True
    else:
        del notebook.metadata["papermill"]
    nbformat.write(notebook, path)
    done = build_book(results, tmp_path / "build")
    assert done.returncode == 2
    assert CHAPTERS[0] in done.stderr


def planned(tmp_path, profile, *targets):
    """What Snakemake would do in an empty folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run", "--nolock"]
    command += [*targets, "--configfile", f"workflow/{profile}.yaml", "--cores", "2"]
    command += ["--config", *(f"{name}={tmp_path / name}" for name in ("results", "data", "build", "logs"))]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("profile", ["laptop", "desk", "full"])
def test_the_other_profiles_plan_without_an_error(tmp_path, profile):
    done = planned(tmp_path, profile)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_chapter_comes_after_those_whose_records_it_reads(tmp_path):
    done = planned(tmp_path, "laptop", str(tmp_path / "results/laptop/chapters/14_benchmark.ipynb"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chapter_03_degeneracy" in done.stdout
    assert "chapter_02_roulettes" not in done.stdout


def test_the_test_profile_has_every_training_that_the_text_quotes():
    """Otherwise the number would have no record when the tests build the book."""
    pages = [*REPOSITORY.glob("book/**/*.md"), *REPOSITORY.glob("notebooks/*.ipynb")]
    names = [name.split(".") for page in pages for name in ROLE.findall(page.read_text())]
    planned = {(run["task"], run["recipe"], run["model"]) for run in CONFIG["runs"]}
    tasks = {task for task, _, _ in planned}
    quoted = {tuple(name[:3]) for name in names if name[0] in tasks and name[2] != "best"}
    assert ("classification", "deeplense_1", "c8_steerable") in quoted
    assert quoted <= planned


@pytest.mark.parametrize("profile", ["laptop", "desk", "full"])
def test_the_test_profile_trains_what_the_others_train(profile):
    """Every family of classifiers, every chapter; not every model, which would take an hour."""
    config = yaml.safe_load((REPOSITORY / f"workflow/{profile}.yaml").read_text())
    small, large = (
        {model_info(run["model"]).family for run in each["runs"] if run["task"] == "classification"}
        for each in (CONFIG, config)
    )
    assert large <= small
    assert any(run["task"] == "regression" for run in CONFIG["runs"])
    assert list(config["chapters"]) == list(CONFIG["chapters"])
    assert config["profile"] == profile


def test_two_runs_in_one_folder_are_refused(tmp_path):
    import fcntl

    (tmp_path / ".snakemake").mkdir()
    with (tmp_path / ".snakemake/run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, str(REPOSITORY / "workflow/run.py"), str(REPOSITORY / "workflow/test.yaml")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: another run is at work in this folder; wait for it or stop it\n"
