"""A workflow as small as it goes, from a recipe to a book of three pages: to be killed, and measured, as a whole.

It is laid out in a folder of its own with this checkout's library, Snakefile and training notebook: two data sets, a
training of several epochs, a chapter that collects from it and writes a record, and the book.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml

from lenslib.dataset import open_dataset
from lenslib.errors import InputError
from lenslib.notebooks import read_whole, verify_run
from lenslib.records import load_runs

REPOSITORY = Path(__file__).parents[1]
RECIPE = "deeplense_1_small"
# what the workflow says when a step begins
STAGES = {"simulate": "simulate ", "train": "train ", "collect": "chapter ", "book": "render the book"}
CHAPTER = (
    "# Chapter\n\nWhat the images are like, and how well they were told apart.",
    """
profile: str = "test"
results: str = "results"
seed: int = 0
data: str = "data"
""",
    f"""
from pathlib import Path

from lenslib import open_dataset
from lenslib.leaks import audit_dataset
from lenslib.records import Records, run_folder, write_run

test = open_dataset(Path(data) / "{RECIPE}" / "test")
audit = audit_dataset(test, seed=seed)
place = {{"profile": profile, "task": "leaks", "recipe": "{RECIPE}", "model": "audit", "seed": seed}}
auc = Records(results).lookup("classification.{RECIPE}.small_cnn.macro_auc")
metrics = audit.metrics() | {{"macro_auc": auc}}
write_run(run_folder(results, **place), **place, parameters={{}}, metrics=metrics, datasets={{"test": test.digest}})
audit.table
""",
    f"Trees reach {{rec}}`leaks.{RECIPE}.audit.morphology:ci.3f`.",
)
TOC = "format: jb-book\nroot: book/intro\nchapters:\n  - file: notebooks/chapter\n  - file: book/records\n"
INTRO = f"# Small\n\nA network reaches {{rec}}`classification.{RECIPE}.small_cnn.macro_auc:ci.3f`.\n"


def plan(seeds: int = 1, epochs: int = 8, chapter: bool = True) -> dict:
    """The profile of the small workflow, with one training run a seed."""
    run = {"task": "classification", "recipe": RECIPE, "model": "small_cnn", "seeds": list(range(seeds))}
    run |= {"crop": 32, "image_size": 32, "epochs": epochs, "batch_size": 16, "train_count": 60}
    sets = {"train": {"count": 60, "seed": 1}, "test": {"count": 60, "seed": 2}}
    sets |= {"recipe": "deeplense_1", "set": {"instrument.pixels": 32, "instrument.pixel_scale": 0.15}}
    reads = {"data": [RECIPE], "runs": ["*"], "records": [f"leaks/{RECIPE}/audit/seed0"]}
    return {"profile": "test", "data_sets": {RECIPE: sets}, "runs": [run]} | {
        "chapters": {"chapter": reads} if chapter else {}
    }


class SmallWorkflow:
    """The small workflow in the folder `root`, which is made, one job at a time."""

    def __init__(self, root: Path, profile: dict):
        if not (REPOSITORY / "workflow/Snakefile").is_file():
            raise InputError(f"'{REPOSITORY}' holds no workflow: run this from a checkout of the repository")
        self.root, self.log = root, root / "log.txt"
        for name in ("lenslib", "workflow", "book/_ext", "book/_static"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("_config.yml", "book/records.md", "book/references.bib"):
            shutil.copy(REPOSITORY / name, root / name)
        (root / "notebooks").mkdir()
        shutil.copy(REPOSITORY / "notebooks/train.ipynb", root / "notebooks")
        nbformat.write(_chapter(), root / "notebooks/chapter.ipynb")
        (root / "book/_toc.yml").write_text(TOC)
        (root / "book/intro.md").write_text(INTRO)
        (root / "profile.yaml").write_text(yaml.safe_dump(profile))

    def start(self, *options: str) -> subprocess.Popen:
        """Begin, or go on; a process in a group of its own."""
        # compiled kernels take longer than the jobs
        more = {"PYTHONPATH": str(self.root), "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "workflow/run.py", "profile.yaml", "--cores", "1", *options]
        with self.log.open("w") as log:
            return subprocess.Popen(
                command, cwd=self.root, env=os.environ | more, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self, *options: str) -> float:
        """Run to the end; the seconds it took. InputError with the last lines of what it said where it fails."""
        begun = time.perf_counter()
        if self.start(*options).wait():
            raise InputError(f"the workflow failed: {' | '.join(self.log.read_text().splitlines()[-12:])}")
        return time.perf_counter() - begun

    def kill_after(self, seconds: float) -> str | None:
        """Start, and kill all its processes after so many seconds; the stage that was at work, None if it was over."""
        import psutil

        process = self.start()
        try:
            process.wait(seconds)
            return None
        except subprocess.TimeoutExpired:
            stage, own = self.stage(), psutil.Process(process.pid)
            # a notebook's kernel is in no group but its own; what is stopped starts no other
            for one in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.suspend()
            for one in (*own.children(recursive=True), own):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
            return stage

    def date_ahead(self, seconds: float) -> None:
        """Date all data sets so many seconds ahead, as if the clock had gone back since they were written."""
        for path in (self.root / "data").rglob("*"):
            os.utime(path, (time.time() + seconds,) * 2)

    def stage(self) -> str:
        """The step that began last."""
        said = self.log.read_text()
        places = {stage: max(said.rfind(f": {words}"), said.rfind(f"\n{words}")) for stage, words in STAGES.items()}
        last = max(places, key=places.get)
        return last if places[last] >= 0 else "plan"

    def time_jobs(self) -> Path:
        """Have every job to come note when it began and ended, in the file whose path this gives."""
        note = f"date +%s.%N >> '{self.root}/jobs.txt'"
        with (self.root / "workflow/Snakefile").open("a") as file:
            file.write(f'\nshell.prefix("""{note}; trap "{note}" EXIT; """)\n')
        return self.root / "jobs.txt"

    def facts(self) -> dict[str, object]:
        """All that does not depend on when and where it ran, by the file that says it, every byte checked."""
        facts: dict[str, object] = {}
        for path in sorted(self.root.glob("data/*/*/*/dataset.json")):
            facts[str(path.relative_to(self.root))] = open_dataset(path.parent).digest
        for run in load_runs(self.root / "results"):
            facts[str(run.folder.relative_to(self.root))] = _run_facts(run.folder)
        for path in sorted(self.root.glob("results/*/chapters/*.ipynb")):
            cells = [cell for cell in read_whole(path).cells if cell.cell_type == "code"]
            facts[str(path.relative_to(self.root))] = [cell.execution_count for cell in cells]
        html = self.root / "_build/html"
        facts["html"] = sorted(str(path.relative_to(html)) for path in html.rglob("*") if path.is_file())
        shown = html / "book/intro.html"
        facts["quoted"] = re.findall(r'<a class="rec"[^>]*>[^<]*', shown.read_text()) if shown.is_file() else []
        return facts

    def leftovers(self) -> list[str]:
        """Files and folders that were begun and belong to nothing."""
        places = (self.root / "data", self.root / "results", self.root / "_build")
        found = (path for place in places for path in place.rglob(".*") if path.suffix in (".part", ".partial"))
        return sorted(str(path.relative_to(self.root)) for path in found)


def _chapter() -> nbformat.NotebookNode:
    title, parameters, code, words = CHAPTER
    cells = [nbformat.v4.new_markdown_cell(title), nbformat.v4.new_code_cell(parameters.strip())]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [nbformat.v4.new_code_cell(code.strip()), nbformat.v4.new_markdown_cell(words)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _run_facts(folder: Path) -> dict[str, object]:
    """Of a run: its record without times and host, predictions, history and weights."""
    from safetensors.torch import load_file

    run = verify_run(folder)
    named = ("schema", "profile", "task", "recipe", "model", "seed", "parameters", "datasets", "source_digest")
    facts: dict[str, object] = {name: run.record[name] for name in named}
    facts["metrics"] = {name: value for name, value in run.metrics.items() if not name.endswith("_per_second")}
    for name in run.record["files"]:
        if name == "history.csv":
            facts[name] = run.history().drop(columns="seconds").to_json(double_precision=15)
        elif name == "weights.safetensors":
            # the order of what it says of itself differs from run to run
            tensors = sorted(load_file(run.path(name)).items())
            facts[name] = [(key, hashlib.sha256(value.numpy().tobytes()).hexdigest()) for key, value in tensors]
        else:
            facts[name] = {key: value.tolist() for key, value in run.predictions().items()}
    return facts


def differences(facts: dict[str, object], expected: dict[str, object]) -> list[str]:
    """Names of what differs, or is on one side alone."""
    return sorted(name for name in {*facts, *expected} if _text(facts.get(name)) != _text(expected.get(name)))


def _text(fact: object) -> str:
    return json.dumps(fact, sort_keys=True)
