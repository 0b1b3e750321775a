"""`lenslib bench faults`: a small workflow killed at many moments, and faults of disks, clocks and memory.

A kill is SIGKILL to all processes of the workflow. It is called again, and all that it leaves must equal what an
undisturbed one left, but for times and what the host is. In one run with it, what the workflow takes beside its
jobs, and how long it plans a large profile.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lenslib.bench_options import add_output, check_counts, say
from lenslib.errors import InputError

COUNTS = ("kills", "sweep", "planned")
PLACE = {"task": "bench", "recipe": "deeplense_1", "model": "faults"}
JOBS = 8  # of which one is killed
# what the record counts, in words
FAULTS = {
    "corrupted_byte": "one byte changed, in any file of a run or a data set",
    "truncated": "any file of a run or a data set cut short",
    "disk_full": "disk full while a data set, a run, a checkpoint or a notebook is written",
    "read_only": "folder that cannot be written to",
    "two_at_once": "two at once on one run's folder, or on one data set's",
    "clock_back": "clock that went back by a day",
    "clock_workflow": "clock that went back by a day, before a finished workflow was called again",
    "out_of_memory": "one of eight jobs killed for want of memory",
}
STAGES = {
    "plan": "before the first step",
    "simulate": "simulating",
    "train": "training",
    "collect": "in a chapter",
    "book": "rendering the book",
}


def add_parser(commands) -> None:
    """Add `faults` to the subparsers of `lenslib bench`."""
    summary = "kills, full disks, changed bytes and other faults: what is survived, detected or lost"
    parser = commands.add_parser("faults", help=summary, description=summary)
    parser.set_defaults(handler=_bench)
    parser.add_argument("--kills", type=int, default=30, help="how often the small workflow is killed; 0: never")
    parser.add_argument("--sweep", type=int, default=20, help="training runs whose overhead is measured; 0: none")
    parser.add_argument("--planned", type=int, default=10000, help="runs that a dry run plans; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)


def _bench(options) -> None:
    from lenslib.tables import print_table

    given = {name: getattr(options, name) for name in COUNTS}
    metrics = bench_faults(**given, seed=options.seed, step=say)
    run = record_bench(options.results, options.profile, metrics, given, options.seed)
    if options.json:
        print(json.dumps({"metrics": metrics, "record": str(run.folder)}, indent=1))
        return
    print_table([{"what": name, "found": value} for name, value in metrics.items()], False)
    print(f"\n{run.folder}")


def bench_faults(kills: int, sweep: int, planned: int, seed: int = 0, step: Callable[[str], None] = print) -> dict:
    """The metrics of the record: of each fault `<fault>_tried`, `_detected`, `_harmless` and `_unnoticed`, of kills
    also `kills_<stage>` and `kills_<stage>_survived`; `overhead` (of the run time of the sweep, with its `value` alone)
    and `planning_seconds`. What differed after a kill is told to `step`.

    Raises InputError for counts below 0 and a workflow that fails undisturbed.
    """
    check_counts(dict(zip(COUNTS, (kills, sweep, planned), strict=True)), least=0)
    from lenslib.faults import make_faults

    metrics = {}
    for name, outcome in make_faults(seed, step).items():
        metrics |= _counts(name, outcome.tried, outcome.detected, outcome.harmless)
    with tempfile.TemporaryDirectory(prefix="lenslib-bench-") as folder:
        if kills:
            metrics |= kill(Path(folder), kills, seed, step)
        if sweep:
            metrics |= measure_sweep(Path(folder, "sweep"), sweep, step)
        if planned:
            step(f"planning {planned} runs")
            metrics["planning_seconds"] = planning_seconds(Path(folder, "planned"), planned)
    return metrics


def _counts(fault: str, tried: int, detected: int, harmless: int) -> dict[str, int]:
    unnoticed = tried - detected - harmless
    counts = {"tried": tried, "detected": detected, "harmless": harmless, "unnoticed": unnoticed}
    return {f"{fault}_{name}": count for name, count in counts.items()}


def kill(root: Path, kills: int, seed: int, step: Callable[[str], None]) -> dict[str, float]:
    """Kill a new small workflow at one moment in each of `kills` equal parts of its length, and call it again."""
    from lenslib.faults import DAY
    from lenslib.faults_workflow import SmallWorkflow, differences, plan

    step("the small workflow, undisturbed")
    whole = SmallWorkflow(root / "whole", plan())
    seconds, expected = whole.finish(), whole.facts()
    moments = seconds * (np.arange(kills) + np.random.default_rng(seed).random(kills)) / kills
    metrics = {"kills": 0, "kills_survived": 0, "leftovers": 0, "undisturbed_seconds": seconds}
    for number, moment in enumerate(moments):
        step(f"kill {number + 1} of {kills}, after {moment:.1f} of {seconds:.1f} s")
        with tempfile.TemporaryDirectory(dir=root) as folder:
            workflow, stage = _killed(Path(folder), moment)
            try:
                workflow.finish()
                wrong = differences(workflow.facts(), expected)
            except InputError as error:
                wrong = [str(error)]
            left = len(workflow.leftovers())
        step(f"killed in {stage}: " + (", ".join(wrong) or "survived"))
        metrics["leftovers"] += left
        for name in ("kills", f"kills_{stage}"):
            metrics[name] = metrics.get(name, 0) + 1
            metrics[f"{name}_survived"] = metrics.get(f"{name}_survived", 0) + (not wrong)
    step("its files dated a day ahead")
    whole.date_ahead(DAY)
    whole.finish()
    return metrics | _counts("clock_workflow", 1, 0, int(not differences(whole.facts(), expected)))


def _killed(root: Path, moment: float):
    """A new small workflow in a folder of `root`, killed after so many seconds or, where it was over by then, sooner;
    and the stage that was at work."""
    from lenslib.faults_workflow import SmallWorkflow, plan

    stage, tries = None, 0
    while stage is None:
        workflow, tries = SmallWorkflow(root / f"killed{tries}", plan()), tries + 1
        stage, moment = workflow.kill_after(moment), 0.9 * moment
    return workflow, stage


def measure_sweep(root: Path, runs: int, step: Callable[[str], None]) -> dict[str, float]:
    """Overhead of the workflow over the jobs of a sweep, the share of its time in which none was at work; and what
    becomes of eight of its runs, made again, when the process of one is killed as for want of memory."""
    from lenslib.faults_workflow import SmallWorkflow, differences, plan

    step(f"a sweep of {runs} runs")
    workflow = SmallWorkflow(root, plan(runs, chapter=False))
    noted = workflow.time_jobs()
    seconds = workflow.finish("--until", "train")
    # jobs follow one another: each notes its beginning and its end
    times = np.array([float(line) for line in noted.read_text().split()]).reshape(-1, 2)
    worked = float((times[:, 1] - times[:, 0]).sum())
    metrics = {"sweep_seconds": seconds, "sweep_jobs": len(times), "overhead": (seconds - worked) / seconds}
    if runs < JOBS:
        return metrics
    step("one of eight jobs killed for want of memory")
    expected = workflow.facts()
    records = sorted(root.glob("results/*/*/*/*/seed*/record.json"))[:JOBS]
    for record in records:
        record.unlink()
    process = workflow.start("--until", "train")
    _kill_kernel(process, records[JOBS // 2].parent.name)
    failed = process.wait() != 0
    others = sum(record.is_file() for record in records)
    workflow.finish("--until", "train")
    survived = failed and others == JOBS - 1 and not differences(workflow.facts(), expected)
    return metrics | _counts("out_of_memory", 1, int(survived), 0)


def _kill_kernel(workflow, seed: str) -> None:
    """Kill the kernel that runs the notebook of one seed, as the system does when memory runs out."""
    import psutil

    while workflow.poll() is None:
        for process in psutil.Process(workflow.pid).children(recursive=True):
            try:
                words = process.parent().cmdline()
                if "ipykernel_launcher" in process.cmdline() and any(f"/{seed}/" in word for word in words):
                    process.send_signal(signal.SIGKILL)
                    return
            except (psutil.NoSuchProcess, AttributeError):
                continue
        time.sleep(0.2)
    raise InputError(f"the workflow ended before the process of {seed} could be killed: run the benchmark again")


def planning_seconds(root: Path, runs: int) -> float:
    """Seconds of a dry run of so many training runs."""
    from lenslib.faults_workflow import SmallWorkflow, plan

    return SmallWorkflow(root, plan(runs, chapter=False)).finish("--dry-run")


def record_bench(results_folder, profile: str, metrics: dict, given: dict, seed: int):
    """Write the run record."""
    from lenslib.records import run_folder, write_run

    place = {"profile": profile, **PLACE, "seed": seed}
    parameters = given | {"cores": os.cpu_count()}
    return write_run(run_folder(results_folder, **place), **place, parameters=parameters, metrics=metrics)
