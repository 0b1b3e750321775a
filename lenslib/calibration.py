"""Calibration: is a network that says "90 %" right nine times in ten? Its error, its diagram, its remedy."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from lenslib.errors import InputError
from lenslib.resampling import RESAMPLES, Resampled, check_labels, check_scores, interval, once, share

BINS = 15


def brier_losses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[n]: squared distance of each image's probabilities from its one-hot label; their mean is the Brier score.

    Brier 1950 (Monthly Weather Review 78, 1): summed over the classes, so 0 is best, 2 is worst, and
    2/3 is what equal probabilities for three classes give.
    """
    return ((scores - (labels[:, None] == np.arange(scores.shape[1]))) ** 2).sum(1)


def brier_score(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean of `brier_losses`; labels int [n], scores probabilities [n, classes], else InputError."""
    check_scores(labels, scores)
    return float(brier_losses(labels, scores).mean())


def calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (ECE): |accuracy - confidence|, averaged over images by bins of confidence.

    Guo et al. 2017 (arXiv:1706.04599), equation 3: confidence is the largest probability, bins are `bins` equal
    widths (l, u] of 0 to 1. labels int [n], scores probabilities [n, classes], else InputError. Never below zero, so a
    perfectly calibrated network has a positive ECE too: see `calibrated_errors`.
    """
    check_scores(labels, scores)
    surplus = (scores.argmax(1) == labels) - scores.max(1)
    places = _bin(scores.max(1), bins)
    return float(np.abs(np.bincount(places, weights=surplus)).sum() / len(labels))


def calibration_interval(
    labels: np.ndarray, scores: np.ndarray, bins: int = BINS, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, float]:
    """Expected calibration error with its 95 % bootstrap interval.

    The error of a resample leans upwards, as that of the set itself does: see `calibrated_errors`.
    """
    check_scores(labels, scores)
    places = _bin(scores.max(1), bins)
    surplus = ((scores.argmax(1) == labels) - scores.max(1))[:, None] * (places[:, None] == np.arange(bins))

    def statistic(counts: np.ndarray) -> np.ndarray:
        return np.abs(counts @ surplus).sum(1) / len(labels)

    return interval(once(len(labels), statistic), Resampled(len(labels), seed, resamples).over(statistic)[0])


def calibrated_errors(scores: np.ndarray, bins: int = BINS, draws: int = 500, seed: int = 0) -> np.ndarray:
    """[draws]: the ECE of these scores if they were calibrated, on test sets of this size.

    The labels are drawn from the scores themselves (Broecker & Smith 2007, Weather and Forecasting 22, 651): what
    counts is whether the likeliest class came true, which happens as often as the confidence says.
    """
    confidence = scores.max(1)
    places = _bin(confidence, bins)
    order = np.argsort(places, kind="stable")
    confidence, starts = confidence[order], np.flatnonzero(np.diff(places[order], prepend=-1))
    rng, errors = np.random.default_rng(seed), []
    for _ in range(draws):
        surplus = (rng.random(len(confidence)) < confidence) - confidence
        errors.append(np.abs(np.add.reduceat(surplus, starts)).sum() / len(confidence))
    return np.array(errors)


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Reliability diagram (DeGroot & Fienberg 1983): one row for each bin of confidence that holds images.

    Columns: `from`, `to` (the bin, as in `calibration_error`), `images`, `confidence` (mean), `accuracy`, and its
    95 % interval `low`, `high` (Wilson 1927). labels int [n], scores probabilities [n, classes], else InputError.
    """
    check_scores(labels, scores)
    confidence, right = scores.max(1), scores.argmax(1) == labels
    places, rows = _bin(confidence, bins), []
    for place in np.unique(places):
        inside = places == place
        of_these = share(right[inside])
        rows.append(
            {"from": place / bins, "to": (place + 1) / bins, "images": int(inside.sum())}
            | {"confidence": confidence[inside].mean(), "accuracy": of_these.pop("value")}
            | of_these
        )
    return pd.DataFrame(rows)


def fit_temperature(labels: np.ndarray, scores: np.ndarray, logits: bool = False) -> float:
    """The temperature that makes validation scores likeliest (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    labels: int [n]; scores: probabilities [n, classes], or any real logits if `logits`. Fit it on validation images:
    a test set that chose its own temperature cannot tell whether it is calibrated. The likelihood is concave in
    1 / temperature, so there is one maximum at most. InputError when there is none: every image is right, so that any
    sharpening helps, or the scores are no better than equal ones, so that any flattening does.
    """
    scores = _as_logits(labels, scores, logits)
    own = scores[np.arange(len(labels)), labels]
    # where the loss falls without end as 1 / temperature grows, and where it rises from 1 / temperature = 0 on
    if (own >= scores.max(1)).all() or own.mean() <= scores.mean():
        raise InputError(
            "no temperature fits these validation scores: they are right every time, or no better than equal ones; "
            "validate on more images, or train longer"
        )

    def loss(log_sharpness: float) -> float:
        sharpness = np.exp(log_sharpness)
        return float(np.mean(logsumexp(sharpness * scores, axis=1) - sharpness * own))

    return float(np.exp(-minimize_scalar(loss, bracket=(-1, 1)).x))


def apply_temperature(scores: np.ndarray, temperature: float, logits: bool = False) -> np.ndarray:
    """Probabilities [n, classes] at a temperature: above 1 less confident, below 1 more. No image changes its class.

    scores: probabilities, or logits if `logits`, as for `fit_temperature`. InputError unless temperature is positive.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"a temperature must be positive, not {temperature}")
    return softmax(_as_logits(np.zeros(len(scores), int), scores, logits) / temperature, axis=1)


def _as_logits(labels: np.ndarray, scores: np.ndarray, logits: bool) -> np.ndarray:
    """Log-probabilities [n, classes], which are logits up to a constant an image; InputError for bad scores."""
    scores = np.asarray(scores, dtype=np.float64)
    if not logits:
        check_scores(labels, scores)
        # a softmax in single precision rounds the rarest to zero
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    if scores.ndim != 2 or len(scores) != len(labels) or len(scores) == 0 or not np.isfinite(scores).all():
        raise InputError(f"logits must be finite [images, classes] for {len(labels)} labels, not {scores.shape}")
    check_labels(labels, scores.shape[1])
    return log_softmax(scores, axis=1)


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin (l, u] of each confidence, counted from 0."""
    if bins < 1:
        raise InputError(f"bins must be at least 1, not {bins}")
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
