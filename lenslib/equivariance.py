"""Whether a network's answer stands when its image is turned, and what turning an image made of pixels costs by itself.

Images are turned at their own resolution, and cut and resampled for the network afterwards (`lenslib.dataset.prepare`).
"""

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, rotate

from lenslib.errors import InputError
from lenslib.resampling import RESAMPLES, Resampled, interval, mean


def turned(images: Tensor, degrees: float) -> Tensor:
    """Images [n, c, s, s] turned about their centre, anticlockwise where rows run downwards.

    Right angles are exact; the rest, at most 45 degrees, is interpolated between the four nearest pixels. What would
    come from outside is zero: a central square of s / sqrt(2) pixels holds none of it.
    """
    quarters = round(degrees / 90)
    rest = degrees - 90 * quarters
    images = torch.rot90(images, quarters, (-2, -1))
    return rotate(images, rest, InterpolationMode.BILINEAR) if rest else images


def turned_and_back(images: Tensor, degrees: float) -> Tensor:
    """Images [n, c, s, s] turned, and turned back: what interpolation does, twice, to an image that stays upright."""
    return turned(turned(images, degrees), -degrees)


def output_change(before: np.ndarray, after: np.ndarray, seed: int = 0) -> dict[str, float]:
    """{"value", "low", "high"}: mean distance between the outputs [n, k] of n images before and after something is done
    to them, over the mean distance between the outputs of different images; the 95 % interval is over images.

    Zero for a network that is invariant, about one for one that takes a changed image for another one. InputError for
    fewer than two images, and for outputs that are the same whatever the image.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape or before.ndim != 2 or len(before) < 2:
        raise InputError(
            f"outputs must be of two images or more, as many after as before: {before.shape}, {after.shape}"
        )
    moved = np.linalg.norm(before - after, axis=1)
    apart = squareform(pdist(before)).sum(1) / (len(before) - 1)
    if not apart.any():
        raise InputError("the network gives the same outputs for all images: there is nothing to compare a change with")
    above, below = Resampled(len(before), seed, RESAMPLES).over(mean(moved), mean(apart))
    return interval(moved.mean() / apart.mean(), above / below)
