"""A user's own model beside the networks on record: the same test images, the same intervals, paired tests.

judged = benchmark("mine.py", "results", recipes=["matched_hst"])      # as `lenslib benchmark mine.py` does

`mine.py` defines `model(recipe)`, which returns either a torch network or a function from images, float32 [n, c, h, w]
in the recipe's units, to probabilities [n, classes]; `recipe` is a `lenslib.benchmark_worker.Task`. An ONNX file needs
one input of such images and one output of such probabilities. Either is run in a process of its own, which is shown the
images in an order that tells nothing, and no labels.
"""

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lenslib.benchmark_process import Answers, Failed, Submitted, ask
from lenslib.comparison import compare_scores
from lenslib.dataset import prepare
from lenslib.errors import InputError, unknown
from lenslib.metrics import classification_metrics, macro_auc_interval
from lenslib.records import PROFILES, Records, Run, run_folder, write_run
from lenslib.redraw import TestSet, redraw

TASK = "benchmark"
YOURS = "yours: "


@dataclass
class Judged:
    """What became of a model on one recipe. `failed`: why it has no scores, "" where it has. `rows`: it, unless it
    failed, and the networks on record, the best first, each with `model`, macro AUC as `value`, `low` and `high`,
    `weights` and `images_per_second` (None where unknown). `pairs`: it against each of them, as `compare_scores` gives,
    or None. `exact`: whether the test images have the digest of the record."""

    recipe: str
    profile: str
    rows: list[dict] = field(default_factory=list)
    pairs: pd.DataFrame | None = None
    failed: str = ""
    exact: bool = True


def benchmark(
    model: Submitted | str | Path,
    results: str | Path,
    recipes: Sequence[str] | None = None,
    profile: str | None = None,
    name: str | None = None,
    data: str | Path = "data",
    image_size: int | None = None,
    crop: int | None = None,
    first: int | None = None,
    progress: bool = True,
) -> list[Judged]:
    """Judge a model on the test sets of the networks on record, and write a record of its own for each.

    recipes: of which there are records (default: all), each of the best `profile` that has it. `image_size`, `crop`:
    the model is shown what the networks of this library are (see `lenslib.dataset.prepare`), not the images as they
    are. `data`: the folder of the workflow's data sets; what is not there is drawn again. With `first`, it is judged on
    so many images only, and no record is written.
    A model that fails on a recipe has that as its row and its record. InputError for what is no file of a model, and
    for recipes without records.
    """
    model = model if isinstance(model, Submitted) else Submitted(Path(model))
    if not model.file.is_file() or model.file.suffix not in (".py", ".onnx"):
        raise InputError(f"'{model.file}' is no model: give an ONNX file, or a Python file with model(recipe)")
    name = name or re.sub(r"[^A-Za-z0-9_-]", "_", model.file.stem)
    records = Records(results, (profile,) if profile else PROFILES)
    known = sorted({run.recipe for run in records.runs if run.task == "classification"})
    if not known:
        raise InputError(f"no records of classification under '{results}': train a network, or name another --results")
    if missing := [recipe for recipe in recipes or () if recipe not in known]:
        raise unknown("recipe among the records", missing[0], known)
    shown = image_size, crop
    return [_on(recipe, model, name, records, Path(data), shown, first, progress) for recipe in recipes or known]


def _on(recipe: str, model, name: str, records: Records, data: Path, shown, first, progress) -> Judged:
    runs = same_test_set(records, recipe)
    judged, found = Judged(recipe, runs[0].profile), None
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        folder = data / runs[0].profile / recipe / "test"
        try:
            test = redraw(runs, Path(scratch), folder, first, progress)
            batches = _batches(test, *shown)
        except InputError as error:  # no fault of the model's, so that nothing is recorded of it
            judged.failed = f"not asked, because {error}"
            _compare(judged, name, None, runs, first)
            return judged
        try:
            found = test, ask(model, test.data.recipe, len(test.labels), batches, progress)
        except Failed as error:
            judged.failed = str(error)
        _compare(judged, name, found and found[1], runs, first)
        if found is not None:
            judged.exact = test.exact
        if first is None:
            _record(records.results, judged, name, model, shown, runs[0], found)
    return judged


def same_test_set(records: Records, recipe: str) -> list[Run]:
    """The first seed of each network on record for a recipe, of its best profile, as far as they share the test set
    that most of them have."""
    runs = [run for run in records.runs if run.task == "classification" and run.recipe == recipe]
    best = min((run.profile for run in runs), key=records.profiles.index)
    runs = [run for run in runs if run.profile == best]
    (digest, _), *_ = Counter(run.datasets.get("test") for run in runs).most_common(1)
    firsts: dict[str, Run] = {}
    for run in runs:
        if run.datasets.get("test") == digest:
            firsts.setdefault(run.model, run)
    return list(firsts.values())


def _batches(test: TestSet, image_size: int | None, crop: int | None):
    def batch(rows: np.ndarray) -> np.ndarray:
        images = np.asarray(test.data.images[np.sort(rows)])[np.argsort(np.argsort(rows))]
        if image_size is None and crop is None:
            return images
        return prepare(images, image_size or crop, crop, test.data.units).numpy()

    batch(np.arange(1))  # a size that does not fit is refused here
    return batch


def _compare(judged: Judged, name: str, answers: Answers | None, runs: list[Run], first: int | None) -> None:
    labels, yours = runs[0].predictions()["labels"][:first], YOURS + name
    scores = {run.model: run.predictions()["scores"][:first].astype(np.float64) for run in runs}
    metrics = {run.model: run.metrics for run in runs}
    if answers is not None:
        scores[yours] = answers.scores
        metrics[yours] = {"weight_count": answers.weights, "test_images_per_second": answers.images_per_second}
        judged.pairs = compare_scores(labels, scores, against=yours)
    for model, own in scores.items():
        said = {"weights": metrics[model].get("weight_count")}
        said["images_per_second"] = metrics[model].get("test_images_per_second")
        judged.rows.append({"model": model} | macro_auc_interval(labels, own) | said)
    judged.rows.sort(key=lambda row: -row["value"])


def _record(results: Path, judged: Judged, name: str, model: Submitted, shown, run: Run, found) -> None:
    """The record that the chapter on the benchmark shows: of a failure too."""
    place = {"profile": judged.profile, "task": TASK, "recipe": judged.recipe, "model": name}
    parameters = {"file": model.file.name, "file_sha256": hashlib.sha256(model.file.read_bytes()).hexdigest()}
    parameters |= {"logits": model.logits, "timeout": model.timeout, "memory": model.memory}
    parameters |= {"image_size": shown[0], "crop": shown[1], "classes": run.parameters["classes"]}
    metrics, datasets, predictions = {"failed": judged.failed}, {"stands_for": run.datasets["test"]}, None
    if found is not None:
        test, answers = found
        parameters["test_count"] = len(test.labels)
        metrics = classification_metrics(test.labels, answers.scores, run.parameters["classes"])
        metrics["test_images_per_second"] = answers.images_per_second
        metrics |= {} if answers.weights is None else {"weight_count": answers.weights}
        datasets["test"] = test.data.digest
        predictions = {"labels": test.labels, "scores": answers.scores.astype(np.float32)}
    write_run(
        run_folder(results, *place.values(), 0), **place, seed=0, parameters=parameters, metrics=metrics,
        datasets=datasets, predictions=predictions,
    )  # fmt: skip


def figure(judged: Sequence[Judged], ceilings=None):
    """The macro AUC of every model by recipe, with the user's marked; see `lenslib.plotting.forest`."""
    from lenslib import plotting

    panels = {title(one): [(row["model"], row, row["model"].startswith(YOURS)) for row in one.rows] for one in judged}
    return plotting.forest(panels, "macro AUC, 95 % interval", ceilings)


def title(one: Judged) -> str:
    """Of the panel of a recipe."""
    return f"{one.recipe} ({one.profile})" + (": yours has no scores" if one.failed else "")
