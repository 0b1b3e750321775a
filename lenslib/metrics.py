"""Classification metrics with 95 % intervals from a bootstrap over lenses."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from lenslib.errors import InputError

RESAMPLES = 2000


def check_scores(labels: np.ndarray, scores: np.ndarray) -> None:
    """InputError unless `scores` [n, classes] are probabilities for `labels` [n]."""
    if scores.ndim != 2 or len(labels) != len(scores) or len(labels) == 0:
        raise InputError(f"scores must be [images, classes] for {len(labels)} labels, not {scores.shape}")
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).any(1).sum())} images have scores that are not finite")
    if np.abs(scores.sum(1) - 1).max() > 1e-3 or scores.min() < -1e-3:
        raise InputError("scores do not sum to one over the classes, or are negative: pass probabilities")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise InputError(f"labels must lie in 0..{scores.shape[1] - 1}")


def classification_metrics(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float]]:
    """Macro, micro and per-class one-vs-rest AUC, and accuracy.

    labels: int [n]; scores: probabilities [n, classes]. Each metric is {"value", "low", "high"}: the 2.5 and 97.5
    percentiles over resampled test sets. A class without images has no AUC, and the macro is over those that have one.
    """
    check_scores(labels, scores)
    if scores.shape[1] != len(classes):
        raise InputError(
            f"{scores.shape[1]} scores an image do not fit the {len(classes)} classes {', '.join(classes)}"
        )
    one_hot = labels[:, None] == np.arange(len(classes))
    present = [k for k in range(len(classes)) if 0 < one_hot[:, k].sum() < len(labels)]
    draws = Resampled(len(labels), seed, resamples)
    per_class = {k: draws.auc(one_hot[:, k], scores[:, k]) for k in present}
    value = {k: roc_auc_score(one_hot[:, k], scores[:, k]) for k in present}
    metrics = {f"auc_{classes[k]}": _interval(value[k], per_class[k]) for k in present}
    if present:
        metrics["macro_auc"] = _interval(
            float(np.mean([value[k] for k in present])), np.mean([per_class[k] for k in present], axis=0)
        )
    if len(present) > 2:
        micro = draws.repeated(len(classes)).auc(one_hot.ravel(), scores.ravel())
        metrics["micro_auc"] = _interval(roc_auc_score(one_hot.ravel(), scores.ravel()), micro)
    right = scores.argmax(1) == labels
    metrics["accuracy"] = _interval(float(right.mean()), draws.mean(right))
    return metrics


def macro_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean one-vs-rest AUC over the classes that have an AUC; 0.5 where none has (too few images to tell)."""
    one_hot = labels[:, None] == np.arange(scores.shape[1])
    present = [k for k in range(scores.shape[1]) if 0 < one_hot[:, k].sum() < len(labels)]
    return float(np.mean([roc_auc_score(one_hot[:, k], scores[:, k]) for k in present])) if present else 0.5


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(draws[np.isfinite(draws)], [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


class Resampled:
    """Bootstrap resamples of `n` lenses as counts, so that one sort of the scores serves all of them."""

    def __init__(self, n: int, seed: int, resamples: int, copies: int = 1):
        self.n, self.seed, self.resamples, self.copies = n, seed, resamples, copies

    def repeated(self, copies: int) -> "Resampled":
        """The same resamples where each lens stands for `copies` neighbouring values."""
        return Resampled(self.n, self.seed, self.resamples, copies)

    def _over(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        # blocks bound the memory: 64 resamples of 45,000 values are 12 MB
        parts = []
        for first in range(0, self.resamples, 64):
            size = min(64, self.resamples - first)
            picks = rng.integers(0, self.n, (size, self.n)) + self.n * np.arange(size)[:, None]
            counts = np.bincount(picks.ravel(), minlength=size * self.n).reshape(size, self.n)
            parts.append(statistic(np.repeat(counts, self.copies, axis=1).astype(np.float32)))
        return np.concatenate(parts)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean of values [n] in each resample."""
        return self._over(lambda counts: counts @ values.astype(np.float32) / self.n)

    def auc(self, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Area under the ROC curve in each resample; ties count half. NaN where a resample lacks one of the classes."""
        order = np.argsort(scores, kind="stable")
        ordered, positive = scores[order], positive[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

        def area(counts: np.ndarray) -> np.ndarray:
            counts = counts[:, order].astype(np.float64)
            negatives = np.add.reduceat(counts * ~positive, starts, axis=1)
            positives = np.add.reduceat(counts * positive, starts, axis=1)
            below = negatives.cumsum(1) - negatives / 2
            with np.errstate(invalid="ignore"):
                return (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1))

        return self._over(area)
