"""What fresh images say of trained weights: how sure they may be, and which images are like those they know.

`lenslib validate WEIGHTS DATA` fits both on images that were neither trained nor judged on, and writes a record beside
that of the weights. Probabilities are calibrated by one temperature (Guo et al. 2017, arXiv:1706.04599). Images are
compared by what can be measured on any frame as the network sees it: a range of each feature, a little wider than seen.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lenslib.calibration import apply_temperature, brier_score, calibration_error, fit_temperature
from lenslib.errors import InputError
from lenslib.records import Run, load_run, run_folder, write_run

LEAST = 200  # images
# share of a feature's range that it may lie beyond its ends
_WIDER = 0.1


@dataclass(frozen=True)
class Validation:
    """`temperature`: None where none was fitted. `ranges`: the ends of each feature. `words`: what was found."""

    temperature: float | None
    ranges: dict[str, tuple[float, float]]
    words: str

    def calibrated(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities [n, classes] at the fitted temperature."""
        return probabilities if self.temperature is None else apply_temperature(probabilities, self.temperature)

    def strange(self, prepared: np.ndarray) -> list[list[str]]:
        """Of each image [n, c, h, w] as the network sees it, the features in which it is unlike all it knows."""
        found = features(prepared)
        beside = {name: (found[name] < low) | (found[name] > high) for name, (low, high) in self.ranges.items()}
        return [[name for name, out in beside.items() if out.iloc[k]] for k in range(len(found))]


def features(prepared: np.ndarray) -> pd.DataFrame:
    """What is measured of images [n, c, h, w] as a network sees them: brightness in their own deviations, lengths in
    pixels; of the first channel."""
    from lenslib.leaks import trivial_features

    found = trivial_features(np.asarray(prepared)[:, 0], 1.0)
    return found.rename(columns=lambda name: name.split(": ")[1])


def validate(network, run: Run, data) -> dict:
    """The metrics of the record: of a classifier, where any fits, its `temperature` and, on the test images of its run,
    the calibration error and Brier score before and after; of every network the `ranges` of features on one half of the
    images, and the share `unlike` of the other half that they would call strange.

    network: a `Classifier` or `Estimator`; data: a data set of its recipe. InputError for fewer than 200 images, and
    for ones that it was trained or judged on.
    """
    if data.digest in run.datasets.values():
        raise InputError(f"{run.model} was trained or judged on these images: simulate others, with another --seed")
    if data.recipe.name != run.recipe:
        raise InputError(f"{run.model} was trained on {run.recipe}, and these are images of {data.recipe.name}")
    if len(data) < LEAST:
        raise InputError(f"{len(data)} images are too few: validate on {LEAST} or more")
    found = features(data.prepared(network.image_size, crop=network.crop)[0].numpy())
    half = len(data) // 2
    low, high = found[:half].min(), found[:half].max()
    low, high = low - _WIDER * (high - low), high + _WIDER * (high - low)
    unlike = ((found[half:] < low) | (found[half:] > high)).any(axis=1).mean()
    metrics = {"count": len(data), "unlike": float(unlike)}
    metrics |= {
        f"range_{name.replace(' ', '_')}": {
            "value": float(found[name].median()),
            "low": float(low[name]),
            "high": float(high[name]),
        }
        for name in found
    }
    if hasattr(network, "classes"):
        metrics |= _calibration(network, run, data)
    return metrics


def _calibration(classifier, run: Run, data) -> dict:
    if tuple(data.classes) != tuple(classifier.classes):
        raise InputError(
            f"{run.model} tells {', '.join(classifier.classes)}, and the images are {', '.join(data.classes)}"
        )
    try:
        temperature = fit_temperature(data.labels, classifier.probabilities(data.images[:]))
    except InputError:  # a network that tells nothing apart has none
        return {}
    judged = run.predictions()
    after = apply_temperature(judged["scores"], temperature)
    return {
        "temperature": temperature,
        "ece_before": calibration_error(judged["labels"], judged["scores"]),
        "ece_after": calibration_error(judged["labels"], after),
        "brier_before": brier_score(judged["labels"], judged["scores"]),
        "brier_after": brier_score(judged["labels"], after),
    }


def validation_folder(run: Run) -> Path:
    """Where the record of a run's validation lies, or would."""
    parts = run.folder.resolve().parents
    if len(parts) < 5:
        raise InputError(f"'{run.folder}' is no run of a results folder: PROFILE/TASK/RECIPE/MODEL/SEED")
    results = parts[4]
    return run_folder(results, run.profile, f"{run.task}_validation", run.recipe, run.model, run.seed)


def record_validation(network, weights: Path, data) -> Run:
    """Validate, and write the record beside that of the weights."""
    run = load_run(weights.parent)
    metrics = validate(network, run, data)
    place = {"profile": run.profile, "task": f"{run.task}_validation", "recipe": run.recipe, "model": run.model}
    return write_run(
        validation_folder(run), **place, seed=run.seed, parameters={"seed": data.seed}, metrics=metrics,
        datasets={"validation": data.digest},
    )  # fmt: skip


def load_validation(weights: Path) -> Validation | None:
    """What was found for the weights of a run, if they were validated."""
    try:
        run = load_run(weights.parent)
        found = load_run(validation_folder(run)).metrics
    except InputError:
        return None
    ranges = {
        name.removeprefix("range_").replace("_", " "): (ends["low"], ends["high"])
        for name, ends in found.items()
        if name.startswith("range_")
    }
    half = found["count"] - found["count"] // 2
    words = f"Of {half:,} fresh images of the recipe {found['unlike']:.1%} are called unlike those trained on."
    if "temperature" in found:
        sure = f"At a temperature of {found['temperature']:.3f}, fitted on {found['count']:,} fresh images,"
        errors = f"{found['ece_after']:.4f}; it was {found['ece_before']:.4f}"
        words = f"{sure} the calibration error on the test images is {errors}. {words}"
    return Validation(found.get("temperature"), ranges, words)
