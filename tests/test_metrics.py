"""Metrics against scikit-learn and closed forms, intervals against DeLong and by coverage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest, norm
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve
from torchmetrics.functional.classification import binary_sensitivity_at_specificity

from lenslib.calibration import calibrated_errors, calibration_error
from lenslib.comparison import delong_interval
from lenslib.errors import InputError
from lenslib.metrics import RATES, Resampled, classification_metrics, macro_auc, macro_auc_interval
from lenslib.records import load_run, run_folder, write_run
from lenslib.resampling import macro, once, roc, room_at_one

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
    expected["brier"] = brier_score_loss(labels, scores, labels=range(3))
    for name, rate in RATES.items():
        curves = [roc_curve(labels == k, scores[:, k], drop_intermediate=False) for k in range(3)]
        rates = [right[wrong <= rate].max() for wrong, right, _ in curves]
        expected |= {f"{name}_{label}": rates[k] for k, label in enumerate(CLASSES)} | {name: np.mean(rates)}
    assert metrics.pop("macro_classes") == "no_sub, cdm, vortex"
    assert metrics.pop("ece") == {"value": calibration_error(labels, scores)}
    expected["ece_if_calibrated"] = calibrated_errors(scores).mean()
    assert {name: metric["value"] for name, metric in metrics.items()} == pytest.approx(expected)
    assert macro_auc(labels, scores) == pytest.approx(expected["macro_auc"])
    for name, metric in metrics.items():
        inside = metric["low"] < metric["value"] < metric["high"]
        # with scores of one digit few thresholds are left, and with them few rates
        assert inside or (decimals and metric["low"] <= metric["value"] <= metric["high"]), name


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.07])
def test_the_true_positive_rate_is_torchmetrics_sensitivity(rate):
    labels, scores = _three_classes(n=1000, seed=4)
    found = once(1000, roc(labels == 0, scores[:, 0], rates=[rate]))[1]
    expected, _ = binary_sensitivity_at_specificity(
        torch.tensor(scores[:, 0]), torch.tensor(labels == 0).int(), min_specificity=1 - rate
    )
    assert found == pytest.approx(expected.item(), abs=1e-6)


def test_the_true_positive_rate_of_binormal_scores_is_known():
    # P(score > t) where t leaves the rate of the negatives: Phi(d + Phi^-1(rate))
    labels, scores = _two_classes(40000, 40000, 0.8, np.random.default_rng(6))
    _, ten, one = once(80000, roc(labels == 1, scores[:, 1], rates=(0.1, 0.01)))
    distance = np.sqrt(2) * ndtri(0.8)
    # four standard deviations of the share of 40,000, and of the threshold
    assert ten == pytest.approx(ndtr(distance + ndtri(0.1)), abs=0.02)
    assert one == pytest.approx(ndtr(distance + ndtri(0.01)), abs=0.02)


@pytest.mark.parametrize("decimals", [None, 1])
def test_a_resample_is_a_weighted_sample(decimals):
    labels, scores = _three_classes(n=150, decimals=decimals)
    draws = Resampled(len(labels), seed=3, resamples=100)
    (counts,) = draws.over(lambda counts: counts)
    assert counts.shape == (100, 150)
    assert (counts.sum(1) == 150).all()
    expected = [roc_auc_score(labels == 1, scores[:, 1], sample_weight=weights) for weights in counts]
    np.testing.assert_allclose(draws.auc(labels == 1, scores[:, 1]), expected)
    right = scores.argmax(1) == labels
    np.testing.assert_allclose(draws.mean(right), counts @ right / 150)
    (rates,) = draws.over(roc(labels == 1, scores[:, 1], rates=[0.1]))
    for weights, found in zip(counts[:20], rates, strict=False):
        wrong, share, _ = roc_curve(labels == 1, scores[:, 1], sample_weight=weights, drop_intermediate=False)
        assert found[1] == pytest.approx(share[wrong <= 0.1 + 1e-9].max())
    # the micro average lets a lens keep all of its scores together
    one_hot = np.eye(3)[labels].astype(bool)
    expected = [roc_auc_score(one_hot.ravel(), scores.ravel(), sample_weight=np.repeat(w, 3)) for w in counts]
    np.testing.assert_allclose(draws.auc(one_hot.ravel(), scores.ravel()), expected)


def test_the_interval_is_delongs():
    labels, scores = _two_classes(700, 900, 0.8, np.random.default_rng(1))
    low, high = (delong_interval(labels, scores[:, 1])[part] for part in ("low", "high"))
    metric = classification_metrics(labels, scores, ("a", "b"), resamples=4000)["macro_auc"]
    # 4000 resamples place a percentile to a few per cent of the width
    assert metric["low"] == pytest.approx(low, abs=0.08 * (high - low))
    assert metric["high"] == pytest.approx(high, abs=0.08 * (high - low))


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    """200 experiments, of which 184 to 196 (92 to 98 %) hold the truth: 190 expected, deviation 3."""
    rng, distances = np.random.default_rng(2), np.sqrt(2) * ndtri([0.8, 0.7])
    truths = {"two classes": 0.8, "macro": 0.8, "difference": 0.1, "tpr_at_fpr_10": ndtr(distances[0] + ndtri(0.1))}
    held = dict.fromkeys(truths, 0)
    for _ in range(200):
        labels, scores = _two_classes(100, 100, 0.8, rng)
        found = {"two classes": classification_metrics(labels, scores, ("a", "b"), resamples=400)["macro_auc"]}
        # two networks whose scores for each class are binormal, and share part of their noise
        labels = np.repeat(np.arange(3), 150)
        noise = (rng.normal(size=(450, 3)) + rng.normal(size=(2, 450, 3))) / np.sqrt(2)
        first, second = (own + d * np.eye(3)[labels] for own, d in zip(noise, distances, strict=True))
        one, two = Resampled(450, 0, 400).over(macro(labels, first, rates=[0.1]), macro(labels, second))
        figures = {"macro": one[:, 0], "difference": one[:, 0] - two[:, 0], "tpr_at_fpr_10": one[:, 1]}
        found |= {
            name: dict(zip(("low", "high"), np.percentile(own, [2.5, 97.5]), strict=True))
            for name, own in figures.items()
        }
        for name, truth in truths.items():
            held[name] += found[name]["low"] <= truth <= found[name]["high"]
    assert all(184 <= count <= 196 for count in held.values()), held


def test_the_room_is_newcombes():
    """Method 5 of Newcombe 2006, solved at an AUC of one."""
    right, wrong, square = 300, 700, norm.ppf(0.975) ** 2
    half = (right + wrong) / 2 - 1

    def excess(auc):
        factor = 1 + half * ((1 - auc) / (2 - auc) + auc / (1 + auc))
        return (1 - auc) ** 2 - square * auc * (1 - auc) * factor / (right * wrong)

    low = brentq(excess, 0.5, 1 - 1e-9)
    assert room_at_one(right, wrong) == pytest.approx(1 - low, rel=0.02)


def test_perfect_scores_are_not_certain_ones():
    labels = np.repeat([0, 1, 2], 40)
    metrics = classification_metrics(labels, np.eye(3)[labels], CLASSES)
    assert metrics["macro_auc"] == macro_auc_interval(labels, np.eye(3)[labels])
    assert metrics["accuracy"]["low"] == pytest.approx(binomtest(120, 120).proportion_ci(method="wilson").low)
    assert metrics["tpr_at_fpr_10_cdm"]["low"] == pytest.approx(binomtest(40, 40).proportion_ci(method="wilson").low)
    for name in ("macro_auc", "micro_auc", "auc_cdm", "tpr_at_fpr_01"):
        assert 0.9 < metrics[name]["low"] < 0.98 < metrics[name]["value"] == metrics[name]["high"] == 1


def test_the_macro_area_alone_is_that_among_the_rest():
    labels, scores = _three_classes(n=150)
    assert macro_auc_interval(labels, scores, 3) == classification_metrics(labels, scores, CLASSES, 3)["macro_auc"]
    with pytest.raises(InputError, match="one class"):
        macro_auc_interval(np.zeros(150, int), scores)


def test_a_perfect_and_a_blind_classifier():
    labels = np.tile(np.arange(3), 500)
    perfect = classification_metrics(labels, np.eye(3)[labels] * 0.97 + 0.01, CLASSES, resamples=100)
    for name in (
        "macro_auc",
        "micro_auc",
        "auc_cdm",
        "tpr_at_fpr_10",
        "tpr_at_fpr_01",
        "tpr_at_fpr_01_cdm",
        "accuracy",
    ):
        assert 0.98 < perfect[name]["low"] < perfect[name]["value"] == perfect[name]["high"] == 1
    # right every time at a confidence of 0.98
    assert perfect["ece"]["value"] == pytest.approx(0.02)
    assert perfect["brier"]["value"] == pytest.approx(0.02**2 + 2 * 0.01**2)
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
    for name in ("auc", *RATES):
        assert metrics[f"{name}_vortex"] == "undefined"
    assert metrics["macro_classes"] == "no_sub, cdm"
    expected = [roc_auc_score(labels == k, scores[:, k]) for k in (0, 1)]
    assert metrics["macro_auc"]["value"] == macro_auc(labels, scores) == pytest.approx(np.mean(expected))


def test_of_one_class_alone_there_is_no_auc():
    scores = np.full((5, 3), 1 / 3)
    metrics = classification_metrics(np.zeros(5, int), scores, CLASSES, resamples=20)
    assert {metrics[f"auc_{name}"] for name in CLASSES} == {metrics["macro_classes"]} == {"undefined"}
    assert not {"macro_auc", "micro_auc", "tpr_at_fpr_10"} & set(metrics)
    assert metrics["accuracy"]["value"] == 1
    assert macro_auc(np.zeros(5, int), scores) == 0.5


def test_every_metric_can_be_recorded(tmp_path):
    labels, scores = _three_classes()
    place = {"profile": "test", "task": "classification", "recipe": "deeplense_1", "model": "net", "seed": 0}
    metrics = classification_metrics(labels % 2, scores, CLASSES, resamples=20)
    folder = run_folder(tmp_path, **place)
    write_run(folder, **place, parameters={}, metrics=metrics)
    assert load_run(folder).metrics == metrics


def test_a_class_that_some_resamples_lack_still_has_an_interval():
    labels, scores = np.array([0] * 30 + [1]), np.linspace(0.1, 0.9, 31)
    metrics = classification_metrics(labels, np.stack([1 - scores, scores], 1), ("a", "b"), resamples=200)
    # one image of a class says little, even a perfect order
    assert metrics["macro_auc"]["value"] == metrics["macro_auc"]["high"] == 1
    assert metrics["macro_auc"]["low"] < 0.6


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


@given(seed=st.integers(0, 2**31), power=st.sampled_from([1 / 3, 3, 5]), digits=st.sampled_from([1, 12]))
@settings(max_examples=30, deadline=None)
def test_a_curve_knows_the_order_of_scores_only(seed, power, digits):
    rng = np.random.default_rng(seed)
    positive, scores = rng.random(80) < 0.4, rng.integers(-(10**digits), 10**digits, 80) / 10**digits
    draws, rates = Resampled(80, seed, 20), (0.1, 0.01)
    found = draws.over(roc(positive, scores, rates=rates))[0]
    # monotone: the same; upside down, with the classes exchanged: the same area
    np.testing.assert_allclose(
        draws.over(roc(positive, np.sign(scores) * np.abs(scores) ** power, rates=rates))[0], found
    )
    np.testing.assert_allclose(draws.auc(~positive, -scores), found[:, 0])
    np.testing.assert_allclose(draws.auc(positive, -scores), 1 - found[:, 0])


@given(seed=st.integers(0, 2**31), order=st.permutations(range(3)))
@settings(max_examples=30, deadline=None)
def test_how_classes_are_numbered_does_not_matter(seed, order):
    labels, scores = _three_classes(n=60, seed=seed)
    renumbered, names = np.empty_like(scores), np.empty(3, dtype=object)
    renumbered[:, order], names[order] = scores, CLASSES
    found = classification_metrics(np.array(order)[labels], renumbered, list(names), resamples=20)
    expected = classification_metrics(labels, scores, CLASSES, resamples=20)
    assert sorted(found.pop("macro_classes").split(", ")) == sorted(expected.pop("macro_classes").split(", "))
    # the same up to the order of sums
    assert found == {name: pytest.approx(metric) for name, metric in expected.items()}
