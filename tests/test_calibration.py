"""Calibration against torchmetrics and scikit-learn, by recovery, and by laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from lenslib import plotting
from lenslib.calibration import (
    apply_temperature,
    brier_losses,
    brier_score,
    calibrated_errors,
    calibration_error,
    fit_temperature,
    reliability,
)
from lenslib.errors import InputError


def _calibrated(n, seed=0, spread=1.5, classes=3):
    """Labels drawn from the very probabilities that are the scores; and their logits."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.normal(size=(n, classes))
    scores = softmax(logits, axis=1)
    labels = (rng.random((n, 1)) > scores.cumsum(1)).sum(1).clip(max=classes - 1)
    return labels, scores, logits


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_torchmetrics(bins):
    labels, scores, _ = _calibrated(500)
    scores = softmax(3 * np.log(scores), axis=1)
    expected = multiclass_calibration_error(
        torch.tensor(scores), torch.tensor(labels), num_classes=3, n_bins=bins, norm="l1"
    )
    assert calibration_error(labels, scores, bins) == pytest.approx(expected.item(), abs=1e-6)


def test_the_brier_score_is_scikit_learns():
    labels, scores, _ = _calibrated(300, classes=4)
    assert brier_score(labels, scores) == pytest.approx(brier_score_loss(labels, scores, labels=range(4)))
    assert brier_losses(np.array([0, 1]), np.array([[1.0, 0, 0], [1, 0, 0]])).tolist() == [0, 2]


def test_the_error_of_calibrated_scores_lies_within_its_sampling_error():
    held, sizes = 0, []
    for seed in range(60):
        labels, scores, _ = _calibrated(1000, seed)
        expected = calibrated_errors(scores, draws=200, seed=seed)
        low, high = np.percentile(expected, [2.5, 97.5])
        held += low <= calibration_error(labels, scores) <= high
        sizes.append(expected.mean())
    # 57 expected, deviation 1.7
    assert held >= 51
    # it falls as one over the root of the images: sixteen times as many, a quarter of the error
    many = calibrated_errors(_calibrated(16000)[1], draws=200).mean()
    assert many == pytest.approx(np.mean(sizes) / 4, rel=0.1)


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_scores_at_a_wrong_temperature_are_seen_to_be_so(temperature):
    labels, scores, _ = _calibrated(2000)
    wrong = apply_temperature(scores, temperature)
    assert calibration_error(labels, wrong) > 3 * np.percentile(calibrated_errors(wrong), 97.5)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_recovered(temperature, logits):
    labels, _, truth = _calibrated(20000)
    given = truth * temperature
    found = fit_temperature(labels, given if logits else softmax(given, axis=1), logits=logits)
    # the log-likelihood's curvature here puts one standard deviation at about 1 %
    assert found == pytest.approx(temperature, rel=0.04)
    cured = apply_temperature(given, found, logits=True)
    assert calibration_error(labels, cured) < np.percentile(calibrated_errors(cured), 99.9)


def test_no_other_temperature_is_likelier():
    labels, scores, _ = _calibrated(400, seed=3)
    found = fit_temperature(labels, scores)
    best = log_loss(labels, apply_temperature(scores, found), labels=range(3))
    for factor in (0.3, 0.9, 0.99, 1.01, 1.1, 3):
        assert log_loss(labels, apply_temperature(scores, found * factor), labels=range(3)) > best


@given(seed=st.integers(0, 2**31), temperature=st.floats(0.25, 10), shift=st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_laws_of_temperature(seed, temperature, shift):
    labels, scores, logits = _calibrated(50, seed)
    cooled = apply_temperature(scores, temperature)
    np.testing.assert_allclose(cooled.sum(1), 1)
    # no image changes its class
    np.testing.assert_array_equal(cooled.argmax(1), scores.argmax(1))
    # there and back; a constant added to an image's logits means nothing
    np.testing.assert_allclose(apply_temperature(cooled, 1 / temperature), scores, atol=1e-6)
    np.testing.assert_allclose(apply_temperature(logits + shift, temperature, logits=True), cooled, atol=1e-9)
    # the temperature fitted scales as the logits do
    assert fit_temperature(labels, temperature * logits, logits=True) == pytest.approx(
        temperature * fit_temperature(labels, logits, logits=True), rel=1e-4
    )


@given(seed=st.integers(0, 2**31), order=st.permutations(range(3)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_images_and_classes_means_nothing(seed, order):
    labels, scores, _ = _calibrated(60, seed)
    shuffled = np.random.default_rng(seed).permutation(60)
    renumbered = np.empty_like(scores)
    renumbered[:, order] = scores
    for figure in (brier_score, calibration_error, fit_temperature):
        expected = pytest.approx(figure(labels, scores))
        assert figure(labels[shuffled], scores[shuffled]) == expected
        assert figure(np.array(order)[labels], renumbered) == expected


def test_the_diagram_adds_up_to_the_error_and_its_intervals_hold_the_truth():
    labels, scores, _ = _calibrated(3000, seed=1)
    scores = apply_temperature(scores, 0.6)
    bins = reliability(labels, scores)
    assert bins["images"].sum() == 3000
    assert (bins["images"] * bins["accuracy"]).sum() == pytest.approx((scores.argmax(1) == labels).sum())
    assert ((bins["from"] <= bins["confidence"]) & (bins["confidence"] <= bins["to"])).all()
    gaps = bins["images"] * (bins["accuracy"] - bins["confidence"]).abs()
    assert gaps.sum() / 3000 == pytest.approx(calibration_error(labels, scores))
    held = []
    for seed in range(40):
        calibrated = reliability(*_calibrated(2000, seed=100 + seed)[:2])
        held.extend(calibrated["low"].le(calibrated["confidence"]) & calibrated["high"].ge(calibrated["confidence"]))
    # some 400 bins; 95 % expected, deviation 1 %
    assert 0.92 <= np.mean(held) <= 0.98


def test_a_confidence_on_an_edge_belongs_below():
    scores = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert reliability(np.array([0, 0, 0]), scores, bins=4)[["from", "to", "images"]].to_numpy().tolist() == [
        [0.25, 0.5, 1],
        [0.5, 0.75, 1],
        [0.75, 1.0, 1],
    ]


def test_the_figure_shows_every_bin():
    labels, scores, _ = _calibrated(200)
    bins = reliability(labels, scores)
    figure = plotting.reliability({"a": bins, "b": reliability(labels, apply_temperature(scores, 3))})
    above, below = figure.axes
    points = above.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, bins[["confidence", "accuracy"]])
    assert len(below.collections) == 2


@pytest.mark.parametrize("figure", [brier_score, calibration_error, reliability, fit_temperature])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda scores: np.where(scores > 0.9, np.nan, scores), "not finite"),
        (lambda scores: scores * 2, "sum to one"),
        (lambda scores: scores[:-1], "labels"),
        (lambda scores: scores[:, :2] / scores[:, :2].sum(1, keepdims=True), "labels must lie"),
    ],
)
def test_what_are_no_probabilities_is_refused(figure, change, said):
    labels, scores, _ = _calibrated(200)
    with pytest.raises(InputError, match=said):
        figure(labels, change(scores))


def test_what_no_temperature_can_mend_is_refused():
    labels, scores, logits = _calibrated(50)
    with pytest.raises(InputError, match="right every time"):
        fit_temperature(scores.argmax(1), scores)
    with pytest.raises(InputError, match="no better"):
        fit_temperature(scores.argmin(1), scores)
    with pytest.raises(InputError, match="finite"):
        fit_temperature(labels, np.where(logits > 2, np.inf, logits), logits=True)
    with pytest.raises(InputError, match="positive"):
        apply_temperature(scores, 0.0)
    with pytest.raises(InputError, match="bins"):
        calibration_error(labels, scores, bins=0)
