"""Does a data set give its classes away? Features that say nothing of substructure, and how well they classify."""

import numpy as np
import pandas as pd


def trivial_features(images: np.ndarray, pixel_scale: float) -> pd.DataFrame:
    """Numbers anyone can measure without looking for substructure, one row an image.

    images: [n, h, w]. `brightness` features depend on exposure and noise. `shape` features depend on the size and
    outline of the ring, so on the mass of the lens: they tell classes apart where one class is heavier. Lengths in
    arcsec.
    """
    n, height, width = images.shape
    axis = (np.arange(width) - (width - 1) / 2) * pixel_scale
    x, y = np.meshgrid(axis, axis[:height])
    radius = np.hypot(x, y)
    edge = np.ones((height, width), bool)
    edge[height // 15 : -(height // 15), width // 15 : -(width // 15)] = False
    background = np.median(images[:, edge], axis=1)
    light = images - background[:, None, None]
    flux = light.sum((1, 2))
    # moments over pixels that clearly hold light, so that they are not moments of the noise
    noise = images[:, edge].std(1)
    bright = np.where(light > 3 * noise[:, None, None], light, 0)
    weight = np.maximum(bright.sum((1, 2)), 1e-12)

    def mean(quantity: np.ndarray) -> np.ndarray:
        return (bright * quantity).sum((1, 2)) / weight

    return pd.DataFrame(
        {
            "brightness: total flux": flux,
            "brightness: peak": light.max((1, 2)),
            "brightness: background level": background,
            "brightness: background noise": noise,
            "shape: mean radius": mean(radius),
            "shape: radius scatter": np.sqrt(np.maximum(mean(radius**2) - mean(radius) ** 2, 0)),
            "shape: area": (bright > 0).sum((1, 2)) * pixel_scale**2,
            "shape: centroid": np.hypot(mean(x), mean(y)),
            "shape: quadrupole": np.hypot(mean(x**2 - y**2), 2 * mean(x * y)) / np.maximum(mean(radius**2), 1e-12),
        }
    )


def feature_auc(labels: np.ndarray, features: pd.DataFrame, seed: int = 0, resamples: int = 500) -> pd.DataFrame:
    """AUC of each feature alone, and of boosted trees on all of them, for any substructure (label > 0) against none.

    One row a feature: value, low, high (95 %, bootstrap over lenses). 0.5 is no leak; a feature that falls with
    substructure has an AUC below 0.5, and leaks as much as one above. The trees are judged by five-fold
    cross-validation.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    from lenslib.metrics import Resampled

    positive = labels > 0
    trees = HistGradientBoostingClassifier(max_iter=100, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores = {name: features[name].to_numpy() for name in features}
    scores["all of them, boosted trees"] = cross_val_predict(
        trees, features.to_numpy(), positive, cv=folds, method="predict_proba"
    )[:, 1]
    draws = Resampled(len(labels), seed, resamples)
    rows = {}
    for name, score in scores.items():
        low, high = np.nanpercentile(draws.auc(positive, score), [2.5, 97.5])
        rows[name] = {"value": roc_auc_score(positive, score), "low": low, "high": high}
    return pd.DataFrame(rows).T
