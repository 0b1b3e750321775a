"""Anomalies: what was never shown is given back badly, no label is used, and trivia are recognised as such."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lenslib import anomaly
from lenslib.dataset import write_dataset
from lenslib.errors import InputError
from lenslib.models import create_model, list_models
from lenslib.settings import Settings

QUICK = Settings(epochs=8, batch_size=16, learning_rate=3e-3, augment="none", ema=0.8)


def rings(count, seed, dent=False):
    """Rings of any size; a dented one has a bright spot beside it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] - 7.5
    images = np.exp(-((np.hypot(x, y) - rng.uniform(3, 5, (count, 1, 1))) ** 2) / 2)
    if dent:
        side = rng.uniform(-6, 6, (2, count, 1, 1))
        images = images + np.exp(-((x - side[0]) ** 2 + (y - side[1]) ** 2) / 2)
    images = images + rng.normal(0, 0.05, images.shape)
    return torch.from_numpy(images[:, None].astype(np.float32))


@pytest.fixture(scope="module")
def trained():
    return anomaly.train_autoencoder(rings(320, 0), "ae", 4, QUICK, device="cpu")


def test_what_was_never_shown_is_given_back_badly(trained):
    scores = anomaly.errors(trained.model, torch.cat([rings(60, 1), rings(60, 2, dent=True)]))
    assert roc_auc_score(np.repeat([0, 1], 60), scores) > 0.9


def test_the_error_is_that_of_the_image_given_back(trained):
    images = rings(5, 3)
    squared = (anomaly.given_back(trained.model, images) - images).square().mean((1, 2, 3))
    np.testing.assert_allclose(anomaly.errors(trained.model, images), squared, rtol=1e-5)


def test_the_epoch_is_that_which_gives_held_out_images_back_best(trained):
    assert trained.best["val_loss"] == min(row["val_loss"] for row in trained.history)
    held_out = anomaly.errors(trained.model, rings(320, 0)[-32:]).mean()
    assert held_out == pytest.approx(trained.best["val_loss"], rel=1e-4)


@pytest.mark.parametrize("name", list_models("autoencoder"))
def test_every_autoencoder_trains_on_the_sum_of_its_losses(name):
    torch.manual_seed(0)
    network, images = anomaly.Reconstructor(create_model(name, 4, 16)), rings(8, 4)
    torch.manual_seed(1)
    pieces = network.autoencoder.losses(images)
    torch.manual_seed(1)
    torch.testing.assert_close(network(images).sum(), sum(pieces.values()))
    history = anomaly.train_autoencoder(rings(48, 5), name, 4, Settings(2, 16, augment="none"), device="cpu").history
    assert len(history) == 2
    assert np.isfinite([row["train_loss"] for row in history]).all()


def test_a_one_class_machine_finds_what_is_far_from_all_it_saw():
    score = anomaly.one_class_svm(rings(200, 0), 4)
    scores = score(torch.cat([rings(50, 1), 3 * rings(50, 1)]))
    assert roc_auc_score(np.repeat([0, 1], 50), scores) > 0.95


def test_aucs_are_those_of_another_library_and_blind_to_the_scale_of_the_score():
    rng = np.random.default_rng(0)
    labels, scores = np.repeat([0, 1, 2], 40), rng.normal(size=120)
    scores[labels == 2] += 1
    metrics = anomaly.anomaly_metrics(labels, scores, ("no_sub", "cdm", "vortex"), resamples=50)
    assert metrics["auc"]["value"] == pytest.approx(roc_auc_score(labels > 0, scores))
    mine = labels != 1
    assert metrics["auc_vortex"]["value"] == pytest.approx(roc_auc_score(labels[mine] > 0, scores[mine]))
    assert metrics == anomaly.anomaly_metrics(labels, np.exp(scores), ("no_sub", "cdm", "vortex"), resamples=50)
    turned = anomaly.anomaly_metrics(labels, -scores, ("no_sub", "cdm", "vortex"), resamples=50)
    assert turned["auc"]["value"] == pytest.approx(1 - metrics["auc"]["value"])


def _features(count, seed):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"flux": rng.lognormal(size=count), "noise": rng.normal(size=count)})


def test_unlikeness_grows_outwards_and_does_not_know_units():
    normal = _features(400, 0)
    others = pd.DataFrame({"flux": [1.0, 1.0, 1.0], "noise": [0.0, 1.0, 3.0]})
    far = anomaly.unlikeness(normal, others)
    assert (np.diff(far) > 0).all()
    units = {"flux": 1e3, "noise": 1.0}
    np.testing.assert_allclose(anomaly.unlikeness(normal * units, others * units), far, rtol=1e-6)


def test_a_score_that_is_trivia_leaves_nothing_and_one_that_is_not_stays():
    normal, others = _features(400, 0), _features(300, 1)
    own = np.random.default_rng(2).normal(size=300)
    left, share = anomaly.beyond_trivia(normal, np.log(normal.flux.to_numpy()), others, np.log(others.flux.to_numpy()))
    assert share > 0.9
    assert np.std(left) < 0.3 * np.std(np.log(others.flux))
    left, share = anomaly.beyond_trivia(normal, np.random.default_rng(3).normal(size=400), others, own)
    assert share < 0.1
    assert np.corrcoef(left, own)[0, 1] > 0.9


def test_only_lenses_without_substructure_are_normal(small_matched, tmp_path):
    data = write_dataset(small_matched({}), 12, 0, tmp_path / "set", progress=False)
    np.testing.assert_array_equal(anomaly.normal_rows(data), np.flatnonzero(data.labels == 0))


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: anomaly.train_autoencoder(rings(8, 0), "small_cnn", 4, QUICK), "gives back no images"),
        (lambda: anomaly.train_autoencoder(rings(1, 0), "ae", 4, QUICK), "too few"),
        (lambda: anomaly.anomaly_metrics(np.zeros(4, int), np.ones(4), ("no_sub", "cdm")), "with and without"),
        (lambda: anomaly.anomaly_metrics(np.arange(2), np.array([0, np.nan]), ("no_sub", "cdm")), "not finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(work, said):
    with pytest.raises(InputError, match=said):
        work()
