"""The scores of a test set, checked, and its bootstrap: what else a figure could have been with other lenses.

A resample draws as many lenses as there are, with replacement (Efron & Tibshirani 1993, An Introduction to the
Bootstrap, chapter 13). It is kept as counts, how often each lens was drawn, so that the scores are sorted once for all
resamples, and two networks can be judged on the same ones.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binomtest, norm

from lenslib.errors import InputError

RESAMPLES = 2000

# counts [resamples, lenses] -> one figure a resample, [resamples] or [resamples, figures]
Statistic = Callable[[np.ndarray], np.ndarray]


def check_scores(labels: np.ndarray, scores: np.ndarray) -> None:
    """InputError unless `scores` [n, classes] are probabilities for `labels` [n]."""
    if scores.ndim != 2 or len(labels) != len(scores) or len(labels) == 0:
        raise InputError(f"scores must be [images, classes] for {len(labels)} labels, not {scores.shape}")
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).any(1).sum())} images have scores that are not finite")
    if np.abs(scores.sum(1) - 1).max() > 1e-3 or scores.min() < -1e-3:
        raise InputError("scores do not sum to one over the classes, or are negative: pass probabilities")
    check_labels(labels, scores.shape[1])


def check_labels(labels: np.ndarray, classes: int) -> None:
    """InputError unless `labels` are whole numbers in 0..classes - 1."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels must lie in 0..{classes - 1}, as whole numbers")


class Resampled:
    """Bootstrap resamples of `n` lenses; the same for every statistic, and for every call with the same `seed`."""

    def __init__(self, n: int, seed: int, resamples: int):
        self.n, self.seed, self.resamples = n, seed, resamples

    def over(self, *statistics: Statistic) -> list[np.ndarray]:
        """Each statistic in every resample; first axis [resamples]."""
        rng, parts = np.random.default_rng(self.seed), [[] for _ in statistics]
        # half a million counts are 4 MB: blocks that stay in the cache take a third of the time
        block = max(1, 500_000 // self.n)
        for first in range(0, self.resamples, block):
            size = min(block, self.resamples - first)
            picks = rng.integers(0, self.n, (size, self.n)) + self.n * np.arange(size)[:, None]
            counts = np.bincount(picks.ravel(), minlength=size * self.n).reshape(size, self.n).astype(np.float64)
            for part, statistic in zip(parts, statistics, strict=True):
                part.append(statistic(counts))
        return [np.concatenate(part) for part in parts]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean of values [n] in each resample."""
        return self.over(mean(values))[0]

    def auc(self, positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Area under the ROC curve in each resample, see `roc`."""
        return self.over(roc(positive, scores, len(scores) // self.n))[0][:, 0]


def once(n: int, statistic: Statistic) -> np.ndarray:
    """The statistic of the test set itself, every one of its `n` lenses counted once."""
    return statistic(np.ones((1, n)))[0]


def mean(values: np.ndarray) -> Statistic:
    """The mean of values [n]."""
    return lambda counts: counts @ values.astype(np.float64) / len(values)


def roc(positive: np.ndarray, scores: np.ndarray, copies: int = 1, rates: Sequence[float] = ()) -> Statistic:
    """[resamples, 1 + rates]: the area under the ROC curve, and the true-positive rate at false-positive rates.

    positive: bool [n * copies]; scores: [n * copies], where each lens stands for `copies` neighbouring values. Ties
    count half in the area (it is the Mann-Whitney statistic). The true-positive rate is the largest that a threshold
    reaches while the false-positive rate is at most `rate`: an operating point that exists, not one between two. NaN
    where a resample lacks one of the two classes.
    """
    falling = -np.asarray(scores, dtype=np.float64)
    order = np.argsort(falling, kind="stable")
    positive, falling, lens = positive[order], falling[order], order // copies
    right, wrong = falling[positive], falling[~positive]
    right_lens, wrong_lens = lens[positive], lens[~positive]
    above, at_least = (np.searchsorted(wrong, right, side) for side in ("left", "right"))
    tied = (above != at_least).any()
    # positives that a threshold just above each negative lets through; all of them once no negative is left
    found_above = np.append(np.searchsorted(right, wrong, "left"), len(right))

    def statistic(counts: np.ndarray) -> np.ndarray:
        weights, passed = counts.take(right_lens, axis=1), _cumulated(counts.take(wrong_lens, axis=1))
        ahead = (passed.take(above, axis=1) + passed.take(at_least, axis=1)) / 2 if tied else passed.take(above, axis=1)
        positives, negatives = weights.sum(1), passed[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            figures = [1 - np.einsum("ij,ij->i", weights, ahead) / (positives * negatives)]
            found = _cumulated(weights) if rates else None
            for rate in rates:
                # 0.1 * 30 is not quite 3 in floating point
                allowed = (passed[:, 1:] <= rate * negatives[:, None] + 1e-9).sum(1)
                share = found[np.arange(len(counts)), found_above[allowed]] / positives
                figures.append(np.where(negatives > 0, share, np.nan))
        return np.stack(figures, axis=1)

    return statistic


def macro(labels: np.ndarray, scores: np.ndarray, rates: Sequence[float] = ()) -> Statistic:
    """[resamples, 1 + rates]: `roc` of each class against the rest, averaged over the classes present."""
    parts = [roc(labels == k, scores[:, k], rates=rates) for k in classes_present(labels, scores.shape[1])]
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


def classes_present(labels: np.ndarray, classes: int) -> list[int]:
    """The classes that have an AUC: some images of them, and some of others."""
    return [k for k in range(classes) if 0 < (labels == k).sum() < len(labels)]


def interval(value: float, draws: np.ndarray) -> dict[str, float]:
    """{"value", "low", "high"}: the 2.5 and 97.5 percentiles of the resamples in which the figure exists."""
    low, high = np.percentile(draws[np.isfinite(draws)], [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def share(chosen: np.ndarray) -> dict[str, float]:
    """{"value", "low", "high"}: the share of true in bool [n], with Wilson's 95 % interval."""
    limits = binomtest(int(np.sum(chosen)), len(chosen)).proportion_ci(method="wilson")
    return {"value": float(np.mean(chosen)), "low": float(limits.low), "high": float(limits.high)}


def room_at_one(right: float, wrong: float) -> float:
    """How far below one an AUC may lie although all of `right` images of one class stand before `wrong` of the other.

    There neither a bootstrap nor DeLong's variance leaves any room. The end of the 95 % score interval of Newcombe 2006
    (Statistics in Medicine 25, 559), method 5, to first order; for two classes of n / 2 it is Wilson's for n of n.
    """
    square = norm.ppf(0.975) ** 2
    return float(square / (square + 4 * right * wrong / (right + wrong)))


def macro_room(labels: np.ndarray, present: Sequence[int]) -> float:
    """`room_at_one` of a macro AUC: the mean over the classes `present`, each against the rest of `labels` [n]."""
    return float(np.mean([room_at_one((labels == k).sum(), (labels != k).sum()) for k in present]))


def no_surer(figure: dict[str, float], room: float) -> dict[str, float]:
    """`figure` with an interval that comes no nearer to one, or to zero, than `room`, see `room_at_one`."""
    return figure | {"low": min(figure["low"], 1 - room), "high": max(figure["high"], room)}


def _cumulated(counts: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, .. all columns."""
    sums = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums
