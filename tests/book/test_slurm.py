"""The workflow on a Slurm cluster: what it asks of Slurm, and, where there is one, that jobs which are stopped go on.

A Slurm of one node can be had from Debian's packages (as root):

    tests/book/slurm.sh start /tmp/slurm && export PATH=/tmp/slurm/bin:$PATH
    LENSLIB_SLURM=small python -m pytest tests/book/test_slurm.py
    tests/book/slurm.sh stop /tmp/slurm

`LENSLIB_SLURM=test` also runs the whole profile `test` there, which takes as long as the rest of the tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from lenslib.notebooks import read
from lenslib.records import load_run

REPOSITORY = Path(__file__).parents[2]
WANTED = os.environ.get("LENSLIB_SLURM", "")
RUN = "classification/deeplense_1/small_cnn/seed0"
EPOCHS = 60
SMALL = f"""
profile: test
data_sets:
  deeplense_1: {{train: {{count: 96, seed: 1}}, test: {{count: 96, seed: 2}}}}
runs:
  - {{task: classification, recipe: deeplense_1, model: small_cnn, seeds: [0], crop: 96, image_size: 32, epochs: {EPOCHS}, batch_size: 32, learning_rate: 0.003, augment: half_turn}}
chapters:
  explorer:
"""  # noqa: E501
TABLE_OF_CONTENTS = """
format: jb-book
root: book/intro
chapters:
  - file: notebooks/explorer
  - file: book/records
"""
PAGE = "# A small book\n\nA score of {rec}`classification.deeplense_1.best.macro_auc:ci.4f`, see [](records).\n"
# what differs from run to run, whatever happens to them; which code ran is in the digest of the source
PASSING = ("git_commit", "started", "seconds", "images_per_second", "peak_memory_mb", "files", "seal")


PROFILE = (REPOSITORY / "workflow/profiles/slurm/config.yaml").read_text()


@dataclass(frozen=True)
class Cluster:
    """A folder that all nodes see, with the project in it."""

    root: Path
    environment: dict

    def start(self, profile: str, *targets: str, **places: str) -> subprocess.Popen:
        """The workflow, as the command that users type; what it says is in `said`."""
        command = [sys.executable, "workflow/run.py", profile, "--profile", "cluster", *targets]
        command += ["--config", *(f"{name}={place}" for name, place in places.items())] if places else []
        with (self.root / "said").open("w") as said:
            return subprocess.Popen(
                command, cwd=self.root, stdout=said, stderr=subprocess.STDOUT, env=os.environ | self.environment
            )

    def finish(self, process: subprocess.Popen) -> str:
        """What it said in the end."""
        code = process.wait()
        said = (self.root / "said").read_text()
        assert code == 0, said[-8000:]
        return said

    def queue(self, columns: str, *options: str) -> list[list[str]]:
        """Rows of squeue, of jobs in the folder."""
        command = ["squeue", "--me", "--noheader", f"--format=%Z|{columns}", *options]
        lines = subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()
        return [cells for folder, *cells in (line.split("|") for line in lines) if folder == str(self.root)]


def lay_out(root: Path, profile: dict, environment: dict | None = None) -> Cluster:
    """The project with a book of two pages; `profile` in the place of the shipped one."""
    (root / "cluster").mkdir(parents=True)
    (root / "cluster/config.yaml").write_text(yaml.safe_dump(profile))
    for name in ("lenslib", "workflow", "notebooks", "_config.yml"):
        (root / name).symlink_to(REPOSITORY / name)
    (root / "small.yaml").write_text(SMALL)
    shutil.copytree(REPOSITORY / "book", root / "book", ignore=shutil.ignore_patterns("*.md", "*.png"))
    shutil.copy(REPOSITORY / "book/records.md", root / "book")
    (root / "book/_toc.yml").write_text(TABLE_OF_CONTENTS)
    (root / "book/intro.md").write_text(PAGE)
    return Cluster(root, environment or {})


def test_each_attempt_asks_slurm_for_what_the_profile_says_and_for_more_memory(tmp_path):
    """A Slurm that refuses every job sees all attempts. The lines that users are to fill in are taken as they stand."""
    folder = tmp_path / "project"
    for name in ("sbatch", "sinfo", "squeue", "scontrol", "sacct", "sacctmgr", "sshare"):
        (tmp_path / name).write_text(
            f'#!/bin/sh\n[ {name} != sbatch ] || {{ echo "$@" >>{tmp_path}/asked; exit 1; }}\n'
        )
        (tmp_path / name).chmod(0o755)
    filled_in = yaml.safe_load(re.sub(r"# (slurm_partition|slurm_account|gpu_model):", r"\1:", PROFILE))
    filled_in["slurm-init-seconds-before-status-checks"] = 1  # no job is ever there to be asked about
    cluster = lay_out(folder, filled_in, {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    for part in ("train", "test"):  # as if simulated
        (folder / "data/test/deeplense_1" / part).mkdir(parents=True)
    done = cluster.start("small.yaml", f"results/test/{RUN}/record.json", "results/test/chapters/explorer.ipynb").wait()
    assert done == 1
    asked = (tmp_path / "asked").read_text().splitlines()
    for rule, wanted in (
        ("train", "-A lensing -p gpu -t 600 --mem {0}000 --requeue --cpus-per-task=8 .*--gpus=a100:1 "),
        ("chapter_explorer", "-A lensing -p cpu -t {1} --mem {2}000 --requeue --ntasks=1 --cpus-per-task=1 "),
    ):
        lines = [line for line in asked if f"--comment rule_{rule}" in line]
        assert len(lines) == 1 + filled_in["retries"]
        for attempt, line in enumerate(lines, 1):
            assert re.search(wanted.format(32 * attempt, 120 * attempt, 16 * attempt), re.sub(" +", " ", line)), line


def test_what_starts_anew_gets_more_time_at_each_attempt():
    asked = yaml.safe_load(PROFILE)["set-resources"]
    assert {rule for rule, settings in asked.items() if "attempt" not in str(settings["runtime"])} == {"train"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Cluster:
    """The shipped profile, cut to what a node without a GPU has, and asking more often how jobs are."""
    if not WANTED or not shutil.which("sbatch"):
        pytest.skip("needs a Slurm: see the head of this file, and set LENSLIB_SLURM=small")
    profile = yaml.safe_load(PROFILE) | {"latency-wait": 20, "slurm-init-seconds-before-status-checks": 5}
    if subprocess.run(["sacct"], capture_output=True, check=False).returncode:
        profile["slurm-status-command"] = "squeue"  # no accounting
    profile["default-resources"]["mem_mb"] = "2000 * attempt"
    profile["set-threads"] = dict.fromkeys(profile["set-threads"], 2)
    for settings in profile["set-resources"].values():
        if settings.pop("gpu", 0):
            settings["mem_mb"] = "4000 * attempt"
    return lay_out(tmp_path_factory.mktemp("slurm"), profile)


@pytest.fixture(scope="module")
def undisturbed(cluster) -> Cluster:
    cluster.finish(cluster.start("small.yaml"))
    return cluster


def wait_for(what: Callable, process: subprocess.Popen, where: Path, seconds: float = 900):
    """The first true answer of `what`."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert process.poll() is None, (where / "said").read_text()[-8000:]
        assert time.monotonic() < end, f"waited {seconds} s for it"
        time.sleep(0.05)
    return answer


def epochs(folder: Path, least: float = 0) -> int:
    """How many are done of a training that is not over, if more than `least`, else 0."""
    try:
        done = len((folder / "history.csv").read_text().splitlines()) - 1
    except FileNotFoundError:
        return 0
    return done if done > least else 0


def test_the_workflow_reaches_the_rendered_book(undisturbed):
    score = load_run(undisturbed.root / "results/test" / RUN).metrics["macro_auc"]["value"]
    assert re.search(rf'class="rec"[^>]*>{score:.4f}', (undisturbed.root / "_build/html/book/intro.html").read_text())
    assert (undisturbed.root / "_build/html/notebooks/explorer.html").is_file()
    done = {comment for comment, state in undisturbed.queue("%k|%T", "--states=all") if state == "COMPLETED"}
    assert {"rule_book", "rule_chapter_explorer"} <= done
    assert sum(comment.startswith("rule_simulate") for comment in done) == 2
    assert sum(comment.startswith("rule_train") for comment in done) == 1


def test_a_training_that_is_requeued_and_then_cancelled_ends_as_one_that_was_not(undisturbed):
    cluster, folder = undisturbed, undisturbed.root / "disturbed/test" / RUN
    known = {job for (job,) in cluster.queue("%i", "--states=all")}
    process = cluster.start("small.yaml", f"disturbed/test/{RUN}/record.json", results="disturbed", build="other")
    try:
        for command, share in ((["scontrol", "requeue"], 0.2), (["scancel"], 0.5)):
            stopped = wait_for(lambda least=share * EPOCHS: epochs(folder, least), process, cluster.root)
            (job,) = {job for (job,) in cluster.queue("%i", "--states=running")}
            subprocess.run([*command, job], check=True)
            wait_for(lambda: not cluster.queue("%i", "--states=running,completing"), process, cluster.root)
            assert (folder / "checkpoint.bin").is_file()
            assert not (folder / "record.json").exists()
            (folder / "history.csv").unlink(missing_ok=True)  # as Snakemake does before the next attempt
            # the last of them again, if its checkpoint was not yet whole
            assert wait_for(lambda: epochs(folder), process, cluster.root) >= stopped
        said = cluster.finish(process)
    finally:
        process.kill()
        for (job,) in cluster.queue("%i"):
            subprocess.run(["scancel", job], check=True)
    jobs = {job: rest for job, *rest in cluster.queue("%i|%T|%m", "--states=all") if job not in known}
    assert sorted(state for state, _ in jobs.values()) == ["CANCELLED", "COMPLETED"]  # the first was requeued as it was
    assert jobs[max(jobs, key=int)][1] == "8000M", "the second attempt asks for twice the memory"
    assert "Trying to restart" in said
    outputs = [output for cell in read(folder / "notebook.ipynb").cells for output in cell.get("outputs", [])]
    assert any("training goes on where it stopped" in output.get("text", "") for output in outputs)
    assert_same(load_run(folder), load_run(cluster.root / "results/test" / RUN))


def assert_same(run, other) -> None:
    """All that two runs found, to the bit, but not how long it took them."""
    assert run.path("predictions.npz").read_bytes() == other.path("predictions.npz").read_bytes()
    # of these, the file's head is written in any order
    weights, wanted = (load_file(one.path("weights.safetensors")) for one in (run, other))
    assert {name: tensor.tobytes() for name, tensor in weights.items()} == {
        name: tensor.tobytes() for name, tensor in wanted.items()
    }
    history, expected = (one.history().drop(columns="seconds") for one in (run, other))
    np.testing.assert_array_equal(history, expected)
    found, wanted = (json.loads((one.folder / "record.json").read_text()) for one in (run, other))
    for record in (found, wanted):
        del record["metrics"]["test_images_per_second"]
        for name in PASSING:
            del record[name]
    assert found == wanted


@pytest.mark.skipif(WANTED != "test", reason="takes as long as the rest of the tests: set LENSLIB_SLURM=test")
def test_the_whole_test_profile_reaches_the_rendered_book(cluster, tmp_path):
    profile = yaml.safe_load((cluster.root / "cluster/config.yaml").read_text())
    whole = lay_out(tmp_path / "project", profile)
    shutil.rmtree(whole.root / "book")
    (whole.root / "book").symlink_to(REPOSITORY / "book")
    # what is measured apart from the workflow comes with the repository
    shutil.copytree(REPOSITORY / "results/desk/bench", whole.root / "results/desk/bench")
    whole.finish(whole.start("workflow/test.yaml"))
    assert (whole.root / "_build/html/index.html").is_file()
