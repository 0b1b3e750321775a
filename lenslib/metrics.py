"""Classification metrics with 95 % intervals from a bootstrap over lenses."""

from collections.abc import Sequence

import numpy as np

from lenslib.calibration import brier_losses, calibrated_errors, calibration_error
from lenslib.errors import InputError
from lenslib.resampling import (
    RESAMPLES,
    Resampled,
    check_scores,
    classes_present,
    interval,
    macro,
    macro_room,
    mean,
    no_surer,
    once,
    roc,
    room_at_one,
)

RATES = {"tpr_at_fpr_10": 0.1, "tpr_at_fpr_01": 0.01}
UNDEFINED = "undefined"  # a record holds no NaN

__all__ = ["RATES", "UNDEFINED", "Resampled", "check_scores", "classification_metrics", "macro_auc"]


def classification_metrics(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float] | str]:
    """AUC and true-positive rates (each class against the rest, macro), micro AUC, accuracy, Brier score, ECE.

    labels: int [n]; scores: probabilities [n, classes]. A metric is {"value", "low", "high"}: the 2.5 and 97.5
    percentiles over resampled test sets, of rates and areas no nearer to one than a perfect result allows (see
    `room_at_one`). `tpr_at_fpr_10` and `_01` are the largest true-positive rates at a false-positive rate of at most 10
    and 1 %. A class without images (or with all of them) has no curve: its metrics read "undefined", and the text
    `macro_classes` names the classes that the macro figures average.

    `ece` has a value only: its bootstrap would be an interval about a figure that already leans upwards. What to hold
    it against is `ece_if_calibrated`: the ECE that scores as confident as these would show on as many images if they
    were right as often as they say, with its 95 % range.
    """
    check_scores(labels, scores)
    if scores.shape[1] != len(classes):
        raise InputError(
            f"{scores.shape[1]} scores an image do not fit the {len(classes)} classes {', '.join(classes)}"
        )
    present, names = classes_present(labels, len(classes)), ["auc", *RATES]
    statistics = {k: roc(labels == k, scores[:, k], rates=tuple(RATES.values())) for k in present}
    statistics |= {"accuracy": mean(scores.argmax(1) == labels), "brier": mean(brier_losses(labels, scores))}
    if len(present) > 2:
        one_hot = labels[:, None] == np.arange(len(classes))
        statistics["micro_auc"] = roc(one_hot.ravel(), scores.ravel(), copies=len(classes))
    draws = dict(zip(statistics, Resampled(len(labels), seed, resamples).over(*statistics.values()), strict=True))
    values = {name: once(len(labels), statistic) for name, statistic in statistics.items()}

    rooms = {k: _rooms(labels == k) for k in present}
    metrics: dict[str, dict[str, float] | str] = {}
    for place, name in enumerate(names):
        for k, label in enumerate(classes):
            own = f"{name}_{label}"
            metrics[own] = UNDEFINED
            if k in present:
                metrics[own] = no_surer(interval(values[k][place], draws[k][:, place]), rooms[k][place])
        if present:
            average, averages = (np.mean([of[k][..., place] for k in present], axis=0) for of in (values, draws))
            room = float(np.mean([rooms[k][place] for k in present]))
            metrics["macro_auc" if name == "auc" else name] = no_surer(interval(average, averages), room)
    metrics["macro_classes"] = ", ".join(classes[k] for k in present) or UNDEFINED
    wilson = room_at_one(len(labels) / 2, len(labels) / 2)
    if "micro_auc" in statistics:
        metrics["micro_auc"] = no_surer(interval(values["micro_auc"][0], draws["micro_auc"][:, 0]), wilson)
    metrics["accuracy"] = no_surer(interval(values["accuracy"], draws["accuracy"]), wilson)
    metrics["brier"] = interval(values["brier"], draws["brier"])
    expected = calibrated_errors(scores, seed=seed)
    metrics["ece"] = {"value": calibration_error(labels, scores)}
    metrics["ece_if_calibrated"] = interval(expected.mean(), expected)
    return metrics


def macro_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean one-vs-rest AUC over the classes that have an AUC; 0.5 where none has (too few images to tell)."""
    if not classes_present(labels, scores.shape[1]):
        return 0.5
    return float(once(len(labels), macro(labels, scores))[0])


def macro_auc_interval(labels: np.ndarray, scores: np.ndarray, seed: int = 0) -> dict[str, float]:
    """{"value", "low", "high"}: the `macro_auc` of `classification_metrics`; InputError where it is undefined."""
    check_scores(labels, scores)
    present, statistic = classes_present(labels, scores.shape[1]), macro(labels, scores)
    if not present:
        raise InputError("images of one class alone have no AUC")
    draws = Resampled(len(labels), seed, RESAMPLES).over(statistic)[0][:, 0]
    return no_surer(interval(once(len(labels), statistic)[0], draws), macro_room(labels, present))


def _rooms(positive: np.ndarray) -> list[float]:
    """What the intervals of an AUC and of the rates of `RATES` leave below one, see `room_at_one`."""
    right, wrong = positive.sum(), (~positive).sum()
    return [room_at_one(right, wrong)] + [room_at_one(right / 2, right / 2)] * len(RATES)
