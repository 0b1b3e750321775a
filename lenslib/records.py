"""Run records: what a run was, what it measured, and how the book looks a number up.

A run is a folder `results/<profile>/<task>/<recipe>/<model>/seed<k>/` whose `record.json` is written last:
a folder without one is no run. Nothing here is ever unpickled.
"""

import csv
import hashlib
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lenslib.errors import InputError, unknown
from lenslib.npy_files import read_npz
from lenslib.provenance import STARTED, git_commit, library_version, peak_memory_mb, source_digest
from lenslib.seals import SEAL, check_seal, seal
from lenslib.untrusted import parse_json

SCHEMA = 1
PROFILES = ("full", "desk", "laptop", "test")  # the best first
PARTS = ("value", "low", "high", "seed_sd")
# `best` is chosen on validation images, so that the test images stay unseen; larger is better
SELECTION_METRICS = ("val_macro_auc", "val_score")
# what lies in the folder of a run that is not over; the second is the history where an older run has one
CHECKPOINT, UNFINISHED = "checkpoint.bin", "history.unfinished.csv"

_NAME = re.compile(r"[A-Za-z0-9_-]+")  # no dot (it separates the parts of a key), no slash (paths stay inside results)
_PLACE = ("profile", "task", "recipe", "model")
_TYPES = {"seed": int, "parameters": dict, "metrics": dict, "datasets": dict, "seconds": dict, "files": dict}
_TYPES |= dict.fromkeys(("device", "source_digest", "started", "library_version"), str)
_JSON = {int: "a whole number", dict: "a JSON object", str: "a text"}
_REQUIRED = {"schema", "git_commit", "images_per_second", *_PLACE, *_TYPES} - {"files", "library_version"}


@dataclass(frozen=True)
class Run:
    """One run: its folder and the content of its `record.json`."""

    folder: Path
    record: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name == "record" or name not in self.record:
            raise AttributeError(name)
        return self.record[name]

    def path(self, name: str) -> Path:
        """The path of one of the run's files; InputError if it is missing or not the one that the run wrote."""
        if not _is_plain(name):
            raise InputError(f"{self.folder}: '{name}' is no file of a run: its files lie in its folder")
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; run again what wrote {self.folder}")
        if self.record.get("files", {}).get(name) != hashlib.sha256(path.read_bytes()).hexdigest():
            raise InputError(f"{path}: altered since its record was written; run it again")
        return path

    def predictions(self) -> dict[str, np.ndarray]:
        """The arrays of `predictions.npz`, as the run wrote them."""
        return read_npz(self.path("predictions.npz"))

    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        path = self.path("history.csv")
        try:
            return pd.read_csv(path)
        except (ValueError, OSError):
            raise InputError(f"{path}: not a table; run it again") from None


def run_folder(results: str | Path, profile: str, task: str, recipe: str, model: str, seed: int) -> Path:
    """`results/<profile>/<task>/<recipe>/<model>/seed<k>`. InputError for a name that would lead elsewhere."""
    for kind, name in zip(_PLACE, (profile, task, recipe, model), strict=True):
        if not _NAME.fullmatch(str(name)):
            raise InputError(f"{kind} {name!r} must be letters, digits, '_' and '-': it names a folder of results")
    return Path(results) / profile / task / recipe / model / f"seed{seed}"


def write_run(
    folder: str | Path,
    *,
    profile: str,
    task: str,
    recipe: str,
    model: str,
    seed: int,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    datasets: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    images_per_second: float | None = None,
    device: str = "cpu",
    predictions: Mapping[str, np.ndarray] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    weights: Mapping[str, Any] | None = None,
    weights_metadata: Mapping[str, str] | None = None,
) -> Run:
    """Write a run folder, `record.json` last, so that a killed run never counts as one; its checkpoint goes.

    A metric is a number, a text, or a mapping with `value`, `low` and `high`. `datasets` maps `train` and `test` to
    digests, `seconds` a stage to its duration. `predictions` are the arrays of `predictions.npz`, `history` its rows,
    `weights` a state dict of tensors. Memory is the peak of the process (of the GPU if it ran there), in MB.

    Raises InputError if a name or a metric cannot be recorded (a metric must be finite: leave out what is undefined),
    or the folder cannot be written.
    """
    folder = Path(folder)
    record = {
        "schema": SCHEMA,
        **{"profile": profile, "task": task, "recipe": recipe, "model": model, "seed": int(seed)},
        **{"parameters": dict(parameters), "datasets": dict(datasets or {}), "metrics": dict(metrics)},
        **{"git_commit": git_commit(), "library_version": library_version(), "source_digest": source_digest()},
        **{"device": str(device), "started": STARTED.isoformat(timespec="seconds")},
        **{"seconds": dict(seconds or {}), "images_per_second": images_per_second},
        "peak_memory_mb": peak_memory_mb(str(device)),
    }
    record = json.loads(json.dumps(record, default=_plain))
    _validate(record, folder)
    contents = _contents(predictions, history, weights, weights_metadata)
    record["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    record[SEAL] = seal(record)
    contents["record.json"] = (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "record.json").unlink(missing_ok=True)
        for name, content in contents.items():
            write_whole(folder / name, content)
        for path in (folder / CHECKPOINT, folder / UNFINISHED, *folder.glob(f".{CHECKPOINT}.*.part")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the run cannot be written to '{folder}' ({error.strerror}): make room there") from None
    return Run(folder, record)


def load_run(folder: str | Path) -> Run:
    """Read and validate one run folder; InputError names the file that is missing, torn or wrong."""
    path = Path(folder) / "record.json"
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run it again or delete its folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable record ({error}); run it again or delete its folder") from None
    _validate(record, Path(folder))
    check_seal(record, path)
    return Run(Path(folder), record)


def load_runs(results: str | Path, whole: bool = True) -> list[Run]:
    """All runs under a `results` folder, in the order of their paths.

    With `whole`, a folder that holds predictions or a notebook but no record has lost it: an InputError, not a smaller
    list. Without, it is passed over: while other runs are at work, it is one that is being written.
    """
    pattern = "*/*/*/*/seed*/"
    files = ("record.json", "predictions.npz", "notebook.ipynb") if whole else ("record.json",)
    folders = {path.parent for name in files for path in Path(results).glob(pattern + name)}
    return [load_run(folder) for folder in sorted(folders)]


@dataclass(frozen=True)
class Found:
    """The answer to one key: its value and the runs (one a seed) that it was taken from."""

    value: float | int | str
    runs: tuple[Run, ...]


class Records:
    """Look-up over all runs under `results`; see `lookup` for the keys."""

    def __init__(self, results: str | Path, profiles: Sequence[str] = PROFILES):
        self.results = Path(results)
        self.profiles = tuple(profiles)

    @cached_property
    def runs(self) -> list[Run]:
        return [run for run in load_runs(self.results, whole=False) if run.profile in self.profiles]

    def lookup(self, key: str) -> float | int | str:
        """The value of `task.recipe.model.field[.part]`.

        `model` may be `best`: the highest mean validation AUC or score (never the test metric) among the models of the
        best profile that has the task and recipe. `field` is a metric, or a field of the record such as
        `images_per_second`, `seconds.train`, `parameters.train_count`, `seeds` (how many). `part` is `value`
        (default), `low`, `high` (means over seeds) or `seed_sd` (standard deviation over seeds).
        """
        return self.find(key).value

    def find(self, key: str) -> Found:
        """As `lookup`, with the runs that the value came from."""
        names = key.split(".")
        if len(names) < 4 or not all(names):
            raise InputError(f"record key '{key}': expected task.recipe.model.field or task.recipe.model.field.part")
        runs = self.select(*names[:3])
        try:
            return Found(_combine(runs, names[3:]), tuple(runs))
        except KeyError:
            fields = {*runs[0].metrics, *runs[0].record, "seeds"}
            raise InputError(f"record key '{key}': {unknown('field', '.'.join(names[3:]), fields)}") from None

    def select(self, task: str, recipe: str, model: str) -> list[Run]:
        """The runs (one a seed) of one model on one recipe, from the best profile that has them."""
        runs = [run for run in self.runs if run.task == task and run.recipe == recipe]
        if not runs:
            raise InputError(f"no record of '{task}.{recipe}' under {self.results}; run the workflow that makes it")
        if model == "best":
            runs = self._best_profile(runs)
            model = _best_model(runs)
        chosen = [run for run in runs if run.model == model]
        if not chosen:
            raise unknown(f"model in the records of {task}.{recipe}", model, {run.model for run in runs})
        return self._best_profile(chosen)

    def with_file(self, task: str, recipe: str, model: str, name: str) -> Run:
        """The first run of one model on one recipe, of the best profile down, that has a file: not every record comes
        with its network's weights."""
        self.select(task, recipe, model)
        place = {"task": task, "recipe": recipe, "model": model}
        found = [run for run in self.runs if all(getattr(run, key) == value for key, value in place.items())]
        if not (having := [run for run in found if (run.folder / name).is_file()]):
            raise InputError(f"no record of {task}.{recipe}.{model} has {name}; run the workflow that makes it")
        return min(having, key=lambda run: self.profiles.index(run.profile))

    def table(self, task: str | None = None) -> pd.DataFrame:
        """One row a run: profile, task, recipe, model, seed, device, and each metric (`x`, `x_low`, `x_high`)."""
        rows = []
        for run in self.runs:
            if task in (None, run.task):
                row = {name: run.record[name] for name in (*_PLACE, "seed", "device", "images_per_second")}
                for name, metric in run.metrics.items():
                    parts = metric if isinstance(metric, dict) else {"value": metric}
                    row |= {name if part == "value" else f"{name}_{part}": value for part, value in parts.items()}
                rows.append(row)
        return pd.DataFrame(rows)

    def _best_profile(self, runs: list[Run]) -> list[Run]:
        best = min((run.profile for run in runs), key=self.profiles.index)
        return [run for run in runs if run.profile == best]


def _best_model(runs: Iterable[Run]) -> str:
    scores: dict[str, list[float]] = {}
    for run in runs:
        for name in SELECTION_METRICS:
            if name in run.metrics:
                scores.setdefault(run.model, []).append(_part(run.metrics[name], "value"))
                break
    if not scores:
        raise InputError(
            f"no run has the metric {' or '.join(SELECTION_METRICS)}, by which 'best' is chosen; name the model"
        )
    return max(sorted(scores), key=lambda model: statistics.mean(scores[model]))


def _combine(runs: Sequence[Run], names: Sequence[str]) -> Any:
    """One value for all seeds: what they share, else the mean (the standard deviation for `seed_sd`)."""
    if list(names) == ["seeds"]:
        return len(runs)
    if names[0] in runs[0].metrics and len(names) <= 2:
        part = names[1] if len(names) == 2 else "value"
        if part == "seed_sd":
            values = [_part(run.metrics[names[0]], "value") for run in runs]
            if len(values) < 2:
                raise InputError(f"'{names[0]}.seed_sd' needs two seeds or more; {runs[0].folder} is the only run")
            return statistics.stdev(values)
        values = [_part(run.metrics[names[0]], part) for run in runs]
    else:
        values = [_field(run.record, names) for run in runs]
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, int | float) for value in values):
        return statistics.mean(values)
    return ", ".join(sorted({str(value) for value in values}))


def _part(metric: Any, part: str) -> Any:
    if isinstance(metric, dict):
        return metric[part]
    if part != "value":
        raise KeyError(part)
    return metric


def _field(record: Any, names: Sequence[str]) -> Any:
    for name in names:
        if not isinstance(record, dict):
            raise KeyError(name)
        record = record[name]
    if record is None or isinstance(record, dict | list):
        raise KeyError(names[-1])
    return record


def _is_plain(name: str) -> bool:
    """Whether a file's name leads nowhere else."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _validate(record: Any, folder: Path) -> None:
    """InputError unless `record` is whole, and is the record of this folder."""
    path = folder / "record.json"
    if not isinstance(record, dict) or _REQUIRED - set(record):
        missing = sorted(_REQUIRED - set(record)) if isinstance(record, dict) else "a JSON object"
        raise InputError(f"{path}: not a run record, it lacks {missing}; run it again or delete its folder")
    if record["schema"] != SCHEMA:
        raise InputError(f"{path}: schema {record['schema']!r:.80}; this version reads schema {SCHEMA}")
    for name in _PLACE:
        if not isinstance(record[name], str) or not _NAME.fullmatch(record[name]):
            raise InputError(f"{path}: {name} {record[name]!r:.80} must be letters, digits, '_' and '-'")
    place = (*(record[name] for name in _PLACE), f"seed{record['seed']}")
    if folder.resolve().parts[-5:] != place:
        raise InputError(f"{path}: is a record of {'/'.join(place)}; a run must lie in the folder of that name")
    for name, kind in _TYPES.items():
        if name in record and type(record[name]) is not kind:
            raise InputError(f"{path}: {name} {record[name]!r:.80} is not {_JSON[kind]}; run it again")
    if stray := [name for name in record.get("files", {}) if not _is_plain(name)]:
        raise InputError(f"{path}: names files outside its folder, such as {stray[0]!r:.80}; delete that folder")
    if not all(isinstance(value, int | float) for value in record["seconds"].values()):
        raise InputError(f"{path}: seconds must be numbers; run it again")
    for name, metric in record["metrics"].items():
        _validate_metric(path, name, metric)


def _validate_metric(path: Path, name: str, metric: Any) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{path}: metric name {name!r:.80} must be letters, digits, '_' and '-'")
    if isinstance(metric, str):
        return
    parts = metric if isinstance(metric, dict) else {"value": metric}
    if "value" not in parts or not set(parts) <= {"value", "low", "high"}:
        raise InputError(f"{path}: metric '{name}' must be a number or have value, low and high, not {sorted(parts)}")
    for part, value in parts.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise InputError(f"{path}: metric '{name}' has {part} {value!r:.80}, not a finite number; leave it out")


def _contents(predictions, history, weights, weights_metadata) -> dict[str, bytes]:
    """The bytes of each file of a run, by name."""
    contents = {}
    if predictions is not None:
        arrays = {name: np.asarray(array) for name, array in predictions.items()}
        if objects := [name for name, array in arrays.items() if array.dtype.hasobject]:
            raise InputError(f"predictions {objects} hold Python objects, which only pickle could store; pass numbers")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        contents["predictions.npz"] = buffer.getvalue()
    if history:
        contents["history.csv"] = history_csv(history)
    if weights is not None:
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        contents["weights.safetensors"] = save(tensors, metadata=dict(weights_metadata or {}))
    return contents


def history_csv(history: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows of a history as CSV, under the names of all of them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in history for name in row)))
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """JSON for numpy numbers, tensors of one number, and paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise InputError(f"{value!r} ({type(value).__name__}) cannot be recorded; pass numbers, texts, lists or mappings")
