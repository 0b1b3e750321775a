"""Doubt and what it is worth: against closed forms, scikit-learn, and laws."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import chi2, kstest
from torch import nn

from lenslib import create_model, load_recipe
from lenslib.calibration import calibration_error, calibration_interval
from lenslib.errors import InputError
from lenslib.shift import (
    Distance,
    common_crop,
    encode,
    encoded,
    kept,
    risk_coverage,
    threshold,
    turn_agreement,
    unsure,
)

ROOT = np.array([[2.0, 0, 0], [1.0, 0.5, 0], [0.3, 0, 1.5]])


def gaussians(n, seed=0, dimension=3):
    """Features of three classes of one covariance, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    return 30.0 * np.eye(3)[labels] + rng.normal(size=(n, 3)) @ ROOT.T, labels


def scored(n, seed=0, sharpness=1.0):
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 3))
    labels = (rng.random((n, 1)) > softmax(logits, axis=1).cumsum(1)).sum(1).clip(max=2)
    return labels, softmax(sharpness * logits, axis=1)


def test_distances_of_the_trained_on_follow_chi_square():
    distance = Distance.fitted(*gaussians(20000))
    assert kstest(distance(gaussians(2000, seed=1)[0]), chi2(3).cdf).pvalue > 0.01


def test_the_distance_is_the_closed_form():
    distance = Distance.fitted(*gaussians(100_000))
    point = np.array([[30.0, 0, 0]]) + [[1.0, -2.0, 0.5]]
    expected = [1.0, -2.0, 0.5] @ np.linalg.inv(ROOT @ ROOT.T) @ [1.0, -2.0, 0.5]
    assert distance(point)[0] == pytest.approx(expected, rel=0.05)


def test_a_feature_that_never_varied_tells_when_it_does():
    features, labels = gaussians(300)
    distance = Distance.fitted(np.hstack([features, np.zeros((300, 1))]), labels)
    inside = distance(np.hstack([features, np.zeros((300, 1))]))
    outside = distance(np.hstack([features, np.full((300, 1), 9.0)]))
    assert np.isfinite(inside).all()
    assert (outside > inside.max()).mean() > 0.9


def test_a_distance_needs_images():
    with pytest.raises(InputError, match="two images"):
        Distance.fitted(np.zeros((1, 3)), np.zeros(1, int))


def test_what_the_last_layer_sees_gives_the_logits():
    network = create_model("small_cnn", 3, 16).eval()
    images = torch.randn(5, 1, 16, 16)
    features, logits = encoded(network, images)
    assert torch.allclose(network.head(features), logits)
    assert torch.allclose(logits, network(images))
    seen, scores = encode(network, images, batch_size=2)
    assert np.allclose(seen, features.detach().numpy(), atol=1e-5)
    assert np.allclose(scores, logits.softmax(1).detach().numpy(), atol=1e-5)
    assert not network.head._forward_pre_hooks


def test_withholding_by_a_threshold_keeps_what_it_says():
    labels, scores = scored(4000)
    doubt = unsure(scores)
    most = threshold(doubt, 0.8)
    found = kept(labels, scores, doubt, most)
    assert found["coverage"]["value"] == pytest.approx(0.8, abs=1e-3)
    inside = doubt <= most
    assert found["accuracy"]["value"] == (scores.argmax(1) == labels)[inside].mean()
    # calibrated scores: the sure are right more often
    assert found["accuracy"]["low"] > (scores.argmax(1) == labels).mean()
    assert "accuracy" not in kept(labels, scores, doubt, -1.0)


@pytest.mark.parametrize("share", [0.0, 1.0, -2.0])
def test_a_threshold_needs_a_share(share):
    with pytest.raises(InputError, match="share"):
        threshold(np.arange(5.0), share)


def test_risk_at_full_coverage_is_the_error_and_perfect_doubt_puts_it_last():
    labels, scores = scored(500)
    wrong = scores.argmax(1) != labels
    coverage, risk = risk_coverage(labels, scores, wrong.astype(float))
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(wrong.mean())
    right = len(wrong) - wrong.sum()
    assert (risk[:right] == 0).all()
    assert risk[right] == pytest.approx(1 / (right + 1))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_interval_is_about_the_calibration_error(sharpness):
    labels, scores = scored(600, sharpness=sharpness)
    found = calibration_interval(labels, scores, resamples=300)
    assert found["value"] == pytest.approx(calibration_error(labels, scores))
    assert found["low"] < found["value"] or sharpness == 1.0
    assert found["low"] < found["high"]


def test_the_interval_is_as_wide_as_other_test_sets_scatter():
    errors = [calibration_error(*scored(600, seed=k, sharpness=3.0)) for k in range(1, 200)]
    found = calibration_interval(*scored(600, sharpness=3.0))
    assert found["high"] - found["low"] == pytest.approx(np.diff(np.quantile(errors, [0.025, 0.975]))[0], rel=0.3)


def test_a_network_that_sums_all_pixels_agrees_with_itself_and_one_that_looks_left_does_not():
    class Total(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.weights, self.head = weights, nn.Linear(1, 2, bias=False)
            self.head.weight.data = torch.tensor([[1.0], [-1.0]])

        def forward(self, images):
            return self.head((images * self.weights).sum((1, 2, 3))[:, None])

    images = torch.randn(200, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double().float()
    left = torch.zeros(6, 6)
    left[:, :3] = 1
    assert turn_agreement(Total(torch.ones(6, 6)), images)["value"] > 0.98
    assert turn_agreement(Total(left), images)["value"] < 0.5


@pytest.mark.parametrize(
    ("name", "field", "crop"),
    [("deeplense_1", 4.8, 96), ("deeplense_2", 4.8, 48), ("matched_euclid", 4.8, 48), ("matched_hst", 5.0, 100)],
)
def test_a_field_in_pixels(name, field, crop):
    assert common_crop(load_recipe(name), field) == crop


def test_a_field_that_an_image_does_not_show_is_refused():
    with pytest.raises(InputError, match="less than the 7 asked"):
        common_crop(load_recipe("matched_hst"), 7.0)
