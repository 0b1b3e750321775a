"""Anomalies: what is unlike the lenses without substructure, which alone are shown in training; no label is learned.

trained = train_autoencoder(images, "vae", code=16, settings=Settings(augment="none"))
scores = errors(trained.model, others)              # the larger, the less like the images of training
anomaly_metrics(labels, scores, classes)            # any substructure against none, and each class

What a score owes to brightness, noise or the size of the ring is asked by `unlikeness` and `beyond_trivia`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lenslib.classification import VALIDATION_SHARE
from lenslib.dataset import DataSet
from lenslib.errors import InputError
from lenslib.models import create_model, model_info
from lenslib.resampling import RESAMPLES, Resampled, interval, once, roc
from lenslib.settings import Settings
from lenslib.tasks import Reconstruction
from lenslib.training import Trained, predict_logits, train

NORMAL = "no_sub"


class Reconstructor(nn.Module):
    """An autoencoder as the training loop knows networks: images [n, c, h, w] to the pieces of its loss [pieces] in
    training, and to the error of each image [n, 1] in evaluation."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return torch.stack(list(self.autoencoder.losses(images).values()))
        return (self.autoencoder(images) - images).square().mean((1, 2, 3))[:, None]


def normal_rows(data: DataSet) -> np.ndarray:
    """The rows of the lenses without substructure. InputError where no class is called so, or has two lenses."""
    if NORMAL not in data.classes:
        raise InputError(f"'{data.folder}' has no class {NORMAL}: there is nothing to call normal")
    rows = np.flatnonzero(data.labels == data.classes.index(NORMAL))
    if len(rows) < 2:
        raise InputError(f"'{data.folder}' holds {len(rows)} lenses without substructure: simulate a larger --count")
    return rows


def train_autoencoder(
    images: Tensor, model: str, code: int, settings: Settings, device: str = "auto", folder=None, **options
) -> Trained:
    """Train a registered autoencoder, whose code has so many numbers, on images [n, c, s, s] of lenses without
    substructure; the last tenth of them chooses the epoch, by how well they are given back.

    `options` go to the model, such as `beta` of the variational one. Raises InputError for a model of another kind and
    for fewer than two images, and what `lenslib.training.train` raises.
    """
    info = model_info(model)
    if info.family != "autoencoder":
        raise InputError(f"{model} gives back no images: choose an autoencoder")
    if len(images) < 2:
        raise InputError(f"{len(images)} images are too few: one to train on and one to choose by")
    torch.manual_seed(settings.seed)
    network = Reconstructor(create_model(model, code, images.shape[-1], images.shape[1], **options))
    held_out = max(1, int(len(images) * VALIDATION_SHARE))
    # the loop wants labels; there are none to learn
    parts = [(part, torch.zeros(len(part))) for part in images.split([len(images) - held_out, held_out])]
    return train(network, *parts, settings, Reconstruction(), device, info.channels_last, folder=folder)


def errors(network: Reconstructor, images: Tensor) -> np.ndarray:
    """Mean squared error [n] of images [n, c, s, s] as they are given back: the score of an anomaly."""
    return predict_logits(network, images)[:, 0].double().numpy()


@torch.no_grad()
def given_back(network: Reconstructor, images: Tensor) -> Tensor:
    """The images as the network gives them back."""
    return network.eval().autoencoder(images)


def one_class_svm(images: Tensor, components: int, nu: float = 0.1, seed: int = 0) -> Callable[[Tensor], np.ndarray]:
    """A one-class support vector machine (Schoelkopf et al. 2001, Neural Computation 13, 1443) on principal components,
    each scaled to a deviation of 1; returns the score [n] of images [n, c, s, s]. `nu` is about the share of the images
    of training that is left outside.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import OneClassSVM

    components = min(components, len(images) - 1)
    scaled = PCA(components, whiten=True, svd_solver="randomized", random_state=seed)
    found = make_pipeline(scaled, OneClassSVM(nu=nu, gamma="scale")).fit(images.flatten(1).numpy())
    return lambda others: -found.decision_function(others.flatten(1).numpy())


def anomaly_metrics(
    labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float]]:
    """`auc` of any substructure against none, `auc_<class>` of each class, and the true-positive rate of any at a
    false-positive rate of 10 %, with 95 % intervals over resampled lenses. An AUC below one half is left as it is: the
    direction of a score may not be chosen by labels.

    Raises InputError for scores that are not finite, and where one side has no lens.
    """
    normal = labels == list(classes).index(NORMAL)
    if not np.isfinite(scores).all():
        raise InputError(f"{int((~np.isfinite(scores)).sum())} lenses have a score that is not finite")
    if normal.all() or not normal.any():
        raise InputError("lenses with and without substructure are needed, to tell them apart")
    metrics = _judged(~normal, scores, seed, resamples, ("auc", "tpr_at_fpr_10"))
    for label, name in enumerate(classes):
        mine = normal | (labels == label)
        if name != NORMAL and (labels == label).any():
            metrics |= _judged(~normal[mine], scores[mine], seed, resamples, (f"auc_{name}",))
    return metrics


def _judged(positive, scores, seed, resamples, names) -> dict[str, dict[str, float]]:
    statistic = roc(positive, scores, rates=(0.1,))
    value, draws = once(len(scores), statistic), Resampled(len(scores), seed, resamples).over(statistic)[0]
    return {name: interval(value[k], draws[:, k]) for k, name in enumerate(names)}


def unlikeness(normal: pd.DataFrame, features: pd.DataFrame) -> np.ndarray:
    """How far features [n rows] lie from those of lenses without substructure, in standard deviations of all of them
    together (Mahalanobis 1936): what an anomaly can be told by without a look at the image."""
    from sklearn.covariance import LedoitWolf
    from sklearn.preprocessing import QuantileTransformer

    scaled = QuantileTransformer(n_quantiles=min(200, len(normal)), output_distribution="normal").fit(normal)
    return np.sqrt(LedoitWolf().fit(scaled.transform(normal)).mahalanobis(scaled.transform(features)))


def beyond_trivia(
    normal: pd.DataFrame, normal_scores: np.ndarray, features: pd.DataFrame, scores: np.ndarray
) -> tuple[np.ndarray, float]:
    """Scores [n] less what features foretell of them, as learned from lenses without substructure that the network was
    not trained on; and the share of these lenses' own variance that features foretell (by cross-validation).

    Scores are taken as logarithms where all are positive: an error is a product of noise and more.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, QuantileTransformer

    if min(normal_scores.min(), scores.min()) > 0:
        normal_scores, scores = np.log(normal_scores), np.log(scores)
    # a fold of the cross-validation has fewer
    quantiles = QuantileTransformer(n_quantiles=min(200, len(normal) // 2), output_distribution="normal")
    model = make_pipeline(quantiles, PolynomialFeatures(2), RidgeCV(np.logspace(-1, 5, 13)))
    apart = cross_val_predict(model, normal, normal_scores, cv=min(5, len(normal)))
    share = 1 - float(np.mean((apart - normal_scores) ** 2) / max(normal_scores.var(), 1e-30))
    return scores - model.fit(normal, normal_scores).predict(features), share
