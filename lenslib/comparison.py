"""Which of two networks is better? Tests that use that both judged the same lenses, corrected for how many are asked.

Two intervals that overlap do not show that two networks are alike: both saw the same easy and hard lenses, so their
difference varies less than either. Each test here looks at the difference itself.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, rankdata

from lenslib.errors import InputError
from lenslib.records import Run, load_run
from lenslib.resampling import (
    RESAMPLES,
    Resampled,
    check_scores,
    classes_present,
    interval,
    macro,
    no_surer,
    once,
    roc,
    room_at_one,
)


def delong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs [k] of k classifiers on the same n images, and their covariance [k, k].

    labels: bool or 0/1 [n]; scores: [k, n], higher for 1. DeLong et al. 1988 (Biometrics 44, 837), section 2, by the
    mid-ranks of Sun & Xu 2014 (IEEE Signal Processing Letters 21, 1389), theorem 1: a sort instead of all pairs.
    InputError unless there are two images of each class.
    """
    scores, positive = np.atleast_2d(np.asarray(scores, dtype=np.float64)), np.asarray(labels).astype(bool)
    if scores.ndim != 2 or scores.shape[1] != len(positive) or not np.isfinite(scores).all():
        raise InputError(f"scores must be finite [classifiers, {len(positive)} images], not {scores.shape}")
    if not np.isin(labels, (0, 1)).all() or min(positive.sum(), (~positive).sum()) < 2:
        raise InputError("DeLong's test needs labels of 0 and 1, and two images or more of each")
    right, wrong = scores[:, positive], scores[:, ~positive]
    count, other = right.shape[1], wrong.shape[1]
    ranks = rankdata(scores, axis=1)
    # of each image the share of the other class that it beats, or that beats it; a tie is half a win
    beaten = (ranks[:, positive] - rankdata(right, axis=1)) / other
    ahead = 1 - (ranks[:, ~positive] - rankdata(wrong, axis=1)) / count
    covariance = np.cov(beaten) / count + np.cov(ahead) / other
    return beaten.mean(1), np.atleast_2d(covariance)


def delong_interval(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """{"value", "low", "high"}: AUC of scores [n] with DeLong's 95 % interval, see `delong`; it ends at 0 and 1, and
    leaves the room of a perfect order (`room_at_one`), where DeLong's variance is none."""
    (auc,), ((variance,),) = delong(labels, scores)
    low, high = np.clip(auc + norm.ppf([0.025, 0.975]) * np.sqrt(variance), 0, 1)
    right = np.sum(labels)
    return no_surer(
        {"value": float(auc), "low": float(low), "high": float(high)}, room_at_one(right, len(labels) - right)
    )


def two_views_auc(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, float]:
    """{"value", "low", "high"}: AUC of the first against the second of two scores [n] of each of n lenses.

    The 95 % interval is a bootstrap over lenses, which keeps the two scores of a lens together.
    """
    pairs = np.stack([first, second], 1).astype(np.float64)
    statistic, n = roc(np.tile([True, False], len(pairs)), pairs.ravel(), copies=2), len(pairs)
    draws = Resampled(n, seed, RESAMPLES).over(statistic)[0][:, 0]
    return no_surer(interval(once(n, statistic)[0], draws), room_at_one(n, n))


def delong_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Difference of two AUCs (first - second) on the same images, 95 % interval, z and two-sided p; see `delong`."""
    aucs, covariance = delong(labels, np.stack([first, second]))
    difference = float(aucs[0] - aucs[1])
    error = float(np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0)))
    # without any scatter (two perfect classifiers) only equality is no difference
    z = difference / error if error > 0 else float(np.sign(difference)) * np.inf if difference else 0.0
    low, high = difference + norm.ppf([0.025, 0.975]) * error
    return {"value": difference, "low": float(low), "high": float(high), "z": z, "p": float(2 * norm.sf(abs(z)))}


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of "no difference" from paired resamples: how often the difference changes its sign.

    Twice the smaller share of resamples at or beyond zero, the observed sample counted as one of them (Davison &
    Hinkley 1997, Bootstrap Methods and their Application, chapter 4): B resamples never claim less than 2 / (B + 1).
    """
    differences = differences[np.isfinite(differences)]
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(differences) + 1)))


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Exact McNemar test of two accuracies on the same images: `only_first`, `only_second`, two-sided `p`.

    first, second: bool [n], whether each was right. Only images that one alone got right speak; if both are as good,
    each of these falls to either with probability one half (McNemar 1947, Psychometrika 12, 153, in binomial form).
    """
    if first.shape != second.shape:
        raise InputError(f"{len(first)} and {len(second)} answers: McNemar's test compares two on the same images")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    either = only_first + only_second
    p = float(binomtest(only_first, either, 0.5).pvalue) if either else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values, in the order given (Holm 1979, Scandinavian Journal of Statistics 6, 65).

    The smallest of m is multiplied by m, the next by m - 1, .., and none is less than one before it: the chance of even
    one false claim among all of them stays below the level, however they depend on each other.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def compare(runs: Sequence[Run | str | Path], seed: int = 0, resamples: int | None = None) -> pd.DataFrame:
    """Every pair of classification runs on one test set, one row each, Holm-corrected over all pairs of the table.

    runs: two or more, each a `Run`, its folder or its `predictions.npz` (with the `record.json` beside it). Columns:
    `first` and `second` (the higher macro AUC first); `difference` of their macro AUCs with `low` and `high` from
    paired resamples; `p_bootstrap`; `only_first` and `only_second` (images that one alone got right) and `p_mcnemar`;
    of two classes also `p_delong`; of each p also its Holm-adjusted `.._holm`. `resamples` is 2,000, or 200 a pair if
    that is more: fewer could not tell anything apart in a long table.

    InputError if the runs were not judged on the same images (digest in the record, labels, classes), or one is given
    twice. Scatter over random starts is no part of this: it compares these networks, not their recipes of training.
    """
    runs = [run if isinstance(run, Run) else load_run(_folder(run)) for run in runs]
    return compare_scores(*_same_test_set(runs), seed, resamples)


def compare_scores(
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    seed: int = 0,
    resamples: int | None = None,
    against: str | None = None,
) -> pd.DataFrame:
    """As `compare`, of scores [n, classes] by name for the same n labels; each pair once, or only those of one name,
    `against`, which is then the first of each. InputError for what are no probabilities."""
    for own in scores.values():
        check_scores(labels, own)
    statistics = {name: macro(labels, own) for name, own in scores.items()}
    value = {name: float(once(len(labels), statistic)[0]) for name, statistic in statistics.items()}
    best_first = sorted(scores, key=value.get, reverse=True)
    pairs = list(combinations(best_first, 2))
    if against is not None:
        pairs = [(against, name) for name in best_first if name != against]
    # Holm multiplies the least p that B resamples can show, 2 / (B + 1), by the number of pairs: here 0.01 at most
    resamples = resamples or max(RESAMPLES, 200 * len(pairs))
    draws = dict(zip(scores, Resampled(len(labels), seed, resamples).over(*statistics.values()), strict=True))
    right = {name: own.argmax(1) == labels for name, own in scores.items()}
    rows = []
    for a, b in pairs:
        differences, tested = (draws[a] - draws[b])[:, 0], mcnemar(right[a], right[b])
        bounds = interval(value[a] - value[b], differences)
        row = {"first": a, "second": b, "difference": bounds["value"], "low": bounds["low"], "high": bounds["high"]}
        row |= {"p_bootstrap": bootstrap_p(differences), "only_first": tested["only_first"]}
        row |= {"only_second": tested["only_second"], "p_mcnemar": tested["p"]}
        if scores[a].shape[1] == 2:
            row["p_delong"] = delong_test(labels, scores[a][:, 1], scores[b][:, 1])["p"]
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in [name for name in table if name.startswith("p_")]:
        table.insert(table.columns.get_loc(name) + 1, f"{name}_holm", holm(table[name]))
    return table


def run_name(run: Run) -> str:
    """What a table calls the model of a run: one that `lenslib benchmark` judged is the reader's own."""
    return f"yours: {run.model}" if run.task == "benchmark" else run.model


def _folder(path: str | Path) -> Path:
    path = Path(path)
    return path.parent if path.name == "predictions.npz" else path


def _same_test_set(runs: Sequence[Run]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The labels, and the scores of each run by a name of its own; InputError unless all are of one test set."""
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run to compare: give two or more")
    models = [run.model for run in runs]
    labels, scores = None, {}
    for run in runs:
        arrays = run.predictions()
        if not {"labels", "scores"} <= set(arrays):
            raise InputError(f"{run.folder}: its predictions hold no labels and scores of classes")
        check_scores(arrays["labels"], arrays["scores"])
        if labels is None:
            labels = arrays["labels"]
        _check_alike(runs[0], run, labels, arrays["labels"])
        name = run_name(run) if models.count(run.model) == 1 else f"{run_name(run)} seed {run.seed}"
        if name in scores:
            raise InputError(f"{run.folder}: {name} is already among the runs; give each once")
        scores[name] = arrays["scores"].astype(np.float64)
    if not classes_present(labels, next(iter(scores.values())).shape[1]):
        raise InputError(f"{runs[0].folder}: its test set holds one class, of which there is no AUC to compare")
    return labels, scores


def _judged_on(run: Run) -> str | None:
    """The digest of a run's test set; of one that was drawn again, that of the set which it stands for."""
    return run.datasets.get("stands_for", run.datasets.get("test"))


def _check_alike(first: Run, run: Run, labels: np.ndarray, others: np.ndarray) -> None:
    for what, one, two in (
        ("test set", _judged_on(first), _judged_on(run)),
        ("classes", first.parameters.get("classes"), run.parameters.get("classes")),
    ):
        if one is None or one != two:
            raise InputError(f"{run.folder}: not the {what} of {first.folder}; only answers on the same images compare")
    if not np.array_equal(labels, others):
        raise InputError(f"{run.folder}: its labels are not those of {first.folder}, in their order")
