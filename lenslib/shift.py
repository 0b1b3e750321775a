"""When not to believe a classifier: how far an image lies from those it was trained on, and what is left if the
doubtful are withheld.

Two scores, higher for more doubt: one minus the largest probability (Hendrycks & Gimpel 2017, arXiv:1610.02136), which
any classifier has, and the distance of what its last layer sees from what it saw of the training images (Lee et al.
2018, arXiv:1807.03888). A threshold belongs to validation images of the recipe that was trained on, never to others.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lenslib import resampling
from lenslib.augmentation import AUGMENTATIONS, turn_images
from lenslib.errors import InputError
from lenslib.models.heads import heads


def common_crop(recipe, field: float) -> int:
    """Central pixels of a recipe's images that span `field` arcsec, to the nearest even or odd number as the image has,
    so that the middle stays in the middle. InputError for a recipe that shows less."""
    instrument = recipe.instrument
    crop = instrument.pixels - 2 * round((instrument.pixels - field / instrument.pixel_scale) / 2)
    if not 0 < crop <= instrument.pixels:
        shown = instrument.pixels * instrument.pixel_scale
        raise InputError(f"{recipe.name} shows {shown:.2f} arcsec, less than the {field:g} asked")
    return crop


def encoded(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the last layer of a network sees [n, d], and its logits [n, k]; gradients flow through both."""
    seen = []
    hook = heads(network)[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = network(images)
    finally:
        hook.remove()
    return seen[0].flatten(1), logits


@torch.no_grad()
def encode(network: nn.Module, images: Tensor, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """As `encoded`, of prepared images [n, c, h, w] in evaluation mode: features [n, d] and probabilities [n, k]."""
    network.eval()
    parts = [encoded(network, part) for part in images.split(batch_size)]
    features, logits = (torch.cat(each).float() for each in zip(*parts, strict=True))
    return features.numpy(), logits.softmax(1).numpy()


def unsure(scores: np.ndarray) -> np.ndarray:
    """[n]: one minus the largest of the probabilities [n, k]."""
    return 1 - scores.max(1)


@dataclass(frozen=True)
class Distance:
    """Squared Mahalanobis distance from the nearest class of the training images (Lee et al. 2018, section 2.1).

    One covariance for all classes; shrunk (Ledoit & Wolf 2004, Journal of Multivariate Analysis 88, 365), since
    features are many and some never vary in training: these are the ones that tell most when they do.
    """

    means: np.ndarray
    precision: np.ndarray

    @classmethod
    def fitted(cls, features: np.ndarray, labels: np.ndarray) -> "Distance":
        """features: [n, d] of training images; labels: int [n]. InputError for fewer than two images."""
        from sklearn.covariance import LedoitWolf

        if len(features) != len(labels) or len(labels) < 2:
            raise InputError(f"{len(features)} features and {len(labels)} labels: a distance needs two images or more")
        kinds, own = np.unique(labels, return_inverse=True)
        means = np.stack([features[own == k].mean(0) for k in range(len(kinds))]).astype(np.float64)
        shrunk = LedoitWolf(assume_centered=True).fit(features - means[own])
        return cls(means, shrunk.precision_)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[n], of features [n, d]."""
        away = features[:, None] - self.means
        return np.einsum("nki,ij,nkj->nk", away, self.precision, away, optimize=True).min(1)


def threshold(doubt: np.ndarray, share: float = 0.95) -> float:
    """The doubt below which that share of validation images lies."""
    if not 0 < share < 1:
        raise InputError(f"share must lie between 0 and 1, not {share}")
    return float(np.quantile(doubt, share))


def kept(labels: np.ndarray, scores: np.ndarray, doubt: np.ndarray, most: float) -> dict[str, dict[str, float]]:
    """What is answered if images of more doubt than `most` are withheld: their share, `coverage`, and `accuracy` among
    them, which is missing where none is answered; each with Wilson's 95 % interval."""
    answered = doubt <= most
    right = scores.argmax(1)[answered] == labels[answered]
    found = {"coverage": resampling.share(answered)}
    return found | ({"accuracy": resampling.share(right)} if len(right) else {})


def risk_coverage(labels: np.ndarray, scores: np.ndarray, doubt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk [n]: the share of wrong answers among the 1, 2, .. n images of least doubt (Geifman & El-Yaniv
    2017, arXiv:1705.08500)."""
    wrong = (scores.argmax(1) != labels)[np.argsort(doubt, kind="stable")]
    count = np.arange(1, len(wrong) + 1)
    return count / len(wrong), np.cumsum(wrong) / count


def turn_agreement(network: nn.Module, images: Tensor) -> dict[str, float]:
    """Share of images [n, c, h, w] to which a network gives one class in all eight turns and mirrors, with Wilson's
    95 % interval."""
    turns = [encode(network, turn_images(images, kind))[1].argmax(1) for kind in AUGMENTATIONS["d4"]]
    return resampling.share((np.stack(turns) == turns[0]).all(0))
