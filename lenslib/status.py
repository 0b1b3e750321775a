"""What ran, what is at work, what failed and what remains: read from the files that runs leave, and changing none.

A run that is over has a record, and an executed chapter its notebook. One that is not has left its log, a notebook that
grows as it runs and holds the traceback if it failed, or a history that grows by a line an epoch.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lenslib.errors import InputError
from lenslib.records import CHECKPOINT, UNFINISHED, Run, load_runs
from lenslib.untrusted import parse_json, parse_yaml

DONE, FAILED, BEGUN, PLANNED = "done", "failed", "begun", "planned"
_CHAPTERS = "chapters"


@dataclass(frozen=True)
class Status:
    """Of one run or chapter: its folder under results, its state, when it began, how long it took, the AUC of one that
    has any, and a word more."""

    run: str
    state: str
    started: str = ""
    took: str = ""
    macro_auc: float | str = ""
    note: str = ""


def overview(results: str | Path, logs: str | Path = "logs", plan: str | Path | None = None) -> list[Status]:
    """Every run under `results` and every log of one that is not over; with `plan`, a YAML file of workflow/, also what
    of it has not begun. Sorted by name.

    Raises InputError for folders and plans that are none, and for records that cannot be read.
    """
    results, logs = Path(results), Path(logs)
    planned = _planned(Path(plan)) if plan else []
    if not results.is_dir() and not planned:
        raise InputError(f"no results folder '{results}': `make book` or `lenslib train` makes one")
    found = {}
    for path in results.glob(f"*/{_CHAPTERS}/*.ipynb"):
        found[_name(path.with_suffix(""), results)] = _executed(path, results)
    for run in load_runs(results, whole=False):
        found[_name(run.folder, results)] = _done(run, results)
    for path in results.glob(f"*/*/*/*/seed*/{CHECKPOINT}"):
        name = _name(path.parent, results)
        found.setdefault(name, Status(name, BEGUN, note=_sign_of_life(path.parent)))
    for path in sorted(logs.rglob("*.ipynb")):
        name = _name(path.with_suffix(""), logs)
        # the folder of a run tells more than its log, unless that has failed
        status = _logged(path, name)
        if name not in found or status.state == FAILED:
            found[name] = status
    return [found.get(name, Status(name, PLANNED)) for name in sorted({*found, *planned})]


def summary(statuses: list[Status]) -> str:
    """One line: how many of each state."""
    counts = {state: sum(one.state == state for one in statuses) for state in (DONE, BEGUN, FAILED, PLANNED)}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "nothing has run"


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _planned(plan: Path) -> list[str]:
    try:
        config = parse_yaml(plan.read_text(encoding="utf-8"), aliases=True)
        runs = [
            f"{run['task']}/{Path(run['recipe']).stem}/{run['model']}/seed{seed}"
            for run in config["runs"]
            for seed in run["seeds"]
        ]
        chapters = [f"{_CHAPTERS}/{name}" for name in config["chapters"]]
        return [f"{config['profile']}/{name}" for name in (*runs, *chapters)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"'{plan}' is no profile of the workflow ({reason}): name one of workflow/*.yaml") from None


def _done(run: Run, results: Path) -> Status:
    auc = run.metrics.get("macro_auc", "")
    auc = auc["value"] if isinstance(auc, dict) else auc
    return Status(_name(run.folder, results), DONE, run.started, _spell(run.seconds.values()), auc, run.device)


def _executed(path: Path, results: Path) -> Status:
    notebook = _notebook(path)
    took = _spell([_papermill(notebook).get("duration")])
    return Status(_name(path.with_suffix(""), results), DONE, _began(notebook), took)


def _logged(path: Path, name: str) -> Status:
    """Of a run whose log is still there: failed, if that holds an error."""
    notebook = _notebook(path)
    for output in _outputs(notebook):
        if output.get("output_type") == "error":
            note = f"{_last_line(output)}; its traceback is in {path}"
            return Status(name, FAILED, _began(notebook), note=note)
    return Status(name, BEGUN, _began(notebook), note=_sign_of_life(path))


def _last_line(error: dict) -> str:
    """What an exception is, and the last line of what it says."""
    said = [line for line in str(error.get("evalue") or "").splitlines() if line.strip()]
    return ": ".join([str(error.get("ename") or "error"), *(line.strip() for line in said[-1:])])


def _notebook(path: Path) -> dict:
    """Its JSON; nothing of one that is being written at this moment."""
    try:
        return _mapping(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _papermill(notebook: dict) -> dict:
    return _mapping(_mapping(notebook.get("metadata")).get("papermill"))


def _began(notebook: dict) -> str:
    return str(_papermill(notebook).get("start_time") or "")[:19]


def _outputs(notebook: dict) -> Iterator[dict]:
    for cell in _list(notebook.get("cells")):
        yield from map(_mapping, _list(_mapping(cell).get("outputs")))


# a notebook may be of anyone's making


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _sign_of_life(place: Path) -> str:
    """How long ago the file, or any in the folder, changed; and how many epochs are done."""
    try:
        files = [place] if place.is_file() else [path for path in place.iterdir() if path.is_file()]
        age = max(0.0, time.time() - max(path.stat().st_mtime for path in files))
        note = f"last sign of life {_spell([age])} ago"
        for path in files:
            if path.name in ("history.csv", UNFINISHED):
                note = f"{len(path.read_bytes().splitlines()) - 1} epochs; {note}"
        return note
    except (OSError, ValueError):  # it ended at this moment, and its files are gone
        return ""


def _spell(seconds: Iterable[Any]) -> str:
    """The sum, in hours, minutes and seconds; nothing for none, and for what is no time."""
    try:
        durations = list(seconds)
        return str(timedelta(seconds=round(sum(durations)))) if durations else ""
    except (TypeError, ValueError, OverflowError):
        return ""
