"""Metrics against scikit-learn and closed forms, intervals against DeLong and by coverage."""

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lenslib.errors import InputError
from lenslib.metrics import Resampled, classification_metrics, macro_auc

CLASSES = ("no_sub", "cdm", "vortex")


def _three_classes(n=600, seed=0, decimals=None):
    """Labels and softmax scores of a fair classifier; rounding makes ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + 1.2 * (labels[:, None] == np.arange(3))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if decimals is not None:
        scores[:, :2] = scores[:, :2].round(decimals)
        scores[:, 2] = 1 - scores[:, :2].sum(1)
    return labels, scores


def _two_classes(positives, negatives, auc, rng):
    """Binormal scores, for which the AUC is the normal distribution's value at d / sqrt 2."""
    labels = np.repeat([1, 0], [positives, negatives])
    raw = rng.normal(size=labels.size) + labels * np.sqrt(2) * ndtri(auc)
    right = 1 / (1 + np.exp(-raw))
    return labels, np.stack([1 - right, right], 1)


@pytest.mark.parametrize("decimals", [None, 1])
def test_values_are_scikit_learns(decimals):
    labels, scores = _three_classes(decimals=decimals)
    metrics = classification_metrics(labels, scores, CLASSES, resamples=50)
    one_hot = np.eye(3)[labels]
    expected = {f"auc_{name}": roc_auc_score(one_hot[:, k], scores[:, k]) for k, name in enumerate(CLASSES)}
    expected["macro_auc"] = roc_auc_score(one_hot, scores, average="macro")
    expected["micro_auc"] = roc_auc_score(one_hot, scores, average="micro")
    expected["accuracy"] = np.mean(scores.argmax(1) == labels)
    assert {name: metric["value"] for name, metric in metrics.items()} == pytest.approx(expected)
    assert macro_auc(labels, scores) == pytest.approx(expected["macro_auc"])
    for metric in metrics.values():
        assert metric["low"] < metric["value"] < metric["high"]


@pytest.mark.parametrize("decimals", [None, 1])
def test_a_resample_is_a_weighted_sample(decimals):
    labels, scores = _three_classes(n=150, decimals=decimals)
    draws = Resampled(len(labels), seed=3, resamples=100)
    counts = draws._over(lambda counts: counts)
    assert counts.shape == (100, 150)
    assert (counts.sum(1) == 150).all()
    expected = [roc_auc_score(labels == 1, scores[:, 1], sample_weight=weights) for weights in counts]
    np.testing.assert_allclose(draws.auc(labels == 1, scores[:, 1]), expected)
    right = scores.argmax(1) == labels
    np.testing.assert_allclose(draws.mean(right), counts @ right / 150, rtol=1e-5)
    # the micro average lets a lens keep all of its scores together
    one_hot = np.eye(3)[labels].astype(bool)
    expected = [roc_auc_score(one_hot.ravel(), scores.ravel(), sample_weight=np.repeat(w, 3)) for w in counts]
    np.testing.assert_allclose(draws.repeated(3).auc(one_hot.ravel(), scores.ravel()), expected)


def _delong_interval(labels, scores):
    """95 % interval of the AUC (DeLong et al. 1988, Biometrics 44, 837), from the placements of each score."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    return wins.mean() + np.array([-1, 1]) * norm.ppf(0.975) * np.sqrt(variance)


def test_the_interval_is_delongs():
    labels, scores = _two_classes(700, 900, 0.8, np.random.default_rng(1))
    low, high = _delong_interval(labels, scores[:, 1])
    metric = classification_metrics(labels, scores, ("a", "b"), resamples=4000)["macro_auc"]
    # 4000 resamples place a percentile to a few per cent of the width
    assert metric["low"] == pytest.approx(low, abs=0.08 * (high - low))
    assert metric["high"] == pytest.approx(high, abs=0.08 * (high - low))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        labels, scores = _two_classes(60, 60, 0.8, rng)
        metric = classification_metrics(labels, scores, ("a", "b"), resamples=300)["macro_auc"]
        held += metric["low"] <= 0.8 <= metric["high"]
    # 190 expected, deviation 3
    assert 180 <= held <= 198


def test_a_perfect_and_a_blind_classifier():
    labels = np.tile(np.arange(3), 500)
    perfect = classification_metrics(labels, np.eye(3)[labels] * 0.97 + 0.01, CLASSES, resamples=100)
    for metric in perfect.values():
        assert metric == {"value": 1.0, "low": 1.0, "high": 1.0}
    blind = np.random.default_rng(0).dirichlet(np.ones(3), 1500)
    metrics = classification_metrics(labels, blind, CLASSES, resamples=500)
    assert metrics["macro_auc"]["low"] < 0.5 < metrics["macro_auc"]["high"]
    assert metrics["accuracy"]["low"] < 1 / 3 < metrics["accuracy"]["high"]
    alike = classification_metrics(labels, np.full((1500, 3), 1 / 3), CLASSES, resamples=50)
    assert alike["macro_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_a_class_without_images_is_left_out_of_the_macro():
    labels, scores = _three_classes()
    labels, scores = labels[labels != 2], scores[labels != 2]
    metrics = classification_metrics(labels, scores, CLASSES, resamples=50)
    assert "auc_vortex" not in metrics
    expected = [roc_auc_score(labels == k, scores[:, k]) for k in (0, 1)]
    assert metrics["macro_auc"]["value"] == macro_auc(labels, scores) == pytest.approx(np.mean(expected))


def test_of_one_class_alone_there_is_no_auc():
    scores = np.full((5, 3), 1 / 3)
    metrics = classification_metrics(np.zeros(5, int), scores, CLASSES, resamples=20)
    assert list(metrics) == ["accuracy"]
    assert macro_auc(np.zeros(5, int), scores) == 0.5


def test_a_class_that_some_resamples_lack_still_has_an_interval():
    labels, scores = np.array([0] * 30 + [1]), np.linspace(0.1, 0.9, 31)
    metrics = classification_metrics(labels, np.stack([1 - scores, scores], 1), ("a", "b"), resamples=200)
    assert metrics["macro_auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels, scores: (labels, np.where(scores > 0.9, np.nan, scores)), "not finite"),
        (lambda labels, scores: (labels, scores * 2), "sum to one"),
        (lambda labels, scores: (labels, np.log(scores)), "probabilities"),
        (lambda labels, scores: (labels, scores + [0.8, 0.2, -1.0]), "probabilities"),
        (lambda labels, scores: (labels[:-1], scores), "labels"),
        (lambda labels, scores: (labels[:0], scores[:0]), "labels"),
        (lambda labels, scores: (labels, scores[:, 0]), "images, classes"),
        (lambda labels, scores: (labels + 1, scores), "labels must lie"),
        (lambda labels, scores: (labels - 1, scores), "labels must lie"),
        (lambda labels, scores: (labels % 2, scores[:, :2] / scores[:, :2].sum(1, keepdims=True)), "classes"),
    ],
)
def test_what_are_no_probabilities_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        classification_metrics(*change(*_three_classes()), CLASSES)
