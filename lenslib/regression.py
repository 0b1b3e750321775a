"""One regression run, step by step: what its notebook shows and `lenslib regress` does in one go."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lenslib.classification import VALIDATION_SHARE, open_apart
from lenslib.dataset import DataSet
from lenslib.errors import InputError
from lenslib.inference import Estimator, answered, estimator_metadata
from lenslib.models import model_info
from lenslib.models.heads import starting_network
from lenslib.records import Run, run_folder, write_run
from lenslib.resampling import RESAMPLES, Resampled, interval, once
from lenslib.settings import LOSSES, Settings
from lenslib.targets import Targets, counted, find_targets, fit_targets, ordered
from lenslib.training import Trained, train

TASKS = {
    "parameters": "regression",
    "raw": "regression_raw",
    "amplitudes": "amplitudes",
    "axion_mass": "axion_mass",
    "mass_fraction": "mass_fraction",
}
# settings of classes, and of images with which numbers do not move
_UNUSED = ("label_smoothing", "shift", "distort")


@dataclass(frozen=True)
class Numbers:
    """Numbers: outputs are encoded labels [n, k], and turn with the image; a `lenslib.tasks.Task`."""

    targets: Targets
    loss_name: str

    def loss(self, outputs, targets):
        return LOSSES[self.loss_name](outputs, targets)

    def judge(self, outputs, targets):
        loss = float(self.loss(outputs, targets))
        return {"val_loss": loss, "val_score": -loss}

    def turned(self, targets, kind):
        return self.targets.turned(targets, kind)


def open_sets(train_data, test_data, targets: str, recipe: str | None = None) -> tuple[DataSet, DataSet, Targets]:
    """Training and test folders, verified, and the targets. InputError for unlike recipes, a shared seed, or a recipe
    that has no such targets."""
    training, test = open_apart(train_data, test_data, recipe)
    return training, test, find_targets(training.recipe, targets)


def check_settings(targets: Targets, settings: Settings) -> None:
    """InputError for settings that these targets cannot be trained with."""
    if targets.kind == "raw" and settings.augment != "none":
        raise InputError("raw targets do not turn with the image: set augment to none")
    if settings.shift:
        raise InputError("targets do not move with the image: set shift to 0")
    if settings.distort != "none":
        raise InputError("targets are not distorted with the image: set distort to none")


def train_regressor(
    data: DataSet,
    targets: Targets,
    model: str,
    image_size: int,
    settings: Settings,
    device: str = "auto",
    train_count: int | None = None,
    crop: int | None = None,
    folder: str | Path | None = None,
) -> tuple[Trained, Targets]:
    """Train a registered model on the first `train_count` images that have the targets, and scale these by them.

    The last tenth of the images chooses the epoch. The network sees the central `crop` pixels (all, if None) resampled
    to `image_size`. Single precision unless the settings say otherwise: half of it would round a place by half a pixel.
    `folder`: see `train`.
    """
    torch.manual_seed(settings.seed)
    info = model_info(model)
    if info.family == "autoencoder":
        raise InputError(f"{model} is an autoencoder: it gives back images, not numbers; choose another model")
    check_settings(targets, settings)
    rows = counted(targets, data)[: train_count or None]
    if len(rows) < 3:
        raise InputError(
            f"train_count must be at least 3, not {len(rows)}: two images to train on and one to choose by"
        )
    parts = [len(rows) - max(1, int(len(rows) * VALIDATION_SHARE)), max(1, int(len(rows) * VALIDATION_SHARE))]
    labels = targets.label(data.params.iloc[rows])
    targets = fit_targets(targets, {name: value[: parts[0]] for name, value in labels.items()}, data.recipe)
    encoded = torch.from_numpy(targets.encode(labels)).float()
    images, _ = data.prepared(image_size, rows, crop)
    training, validation = zip(images.split(parts), encoded.split(parts), strict=True)
    network = starting_network(model, len(targets.columns), image_size, data.channels, settings.weights)
    task = Numbers(targets, settings.loss)
    if settings.precision == "auto":
        settings = replace(settings, precision="32-true")
    return train(network, training, validation, settings, task, device, info.channels_last, folder=folder), targets


def estimate(
    trained: Trained, data: DataSet, targets: Targets, model: str, image_size: int, crop: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """True labels and estimates of a data set, by name [n], and the images judged per second."""
    pixels, name = data.images.shape[-1], data.recipe.name
    return _estimated(
        Estimator(trained.model, model, name, "", targets, image_size, pixels, crop, data.channels, data.units), data
    )


def _estimated(estimator: Estimator, data: DataSet):
    rows = counted(estimator.targets, data)
    found, rate = answered(estimator, data, rows)
    names = estimator.targets.names
    truth = estimator.targets.label(data.params.iloc[rows])
    return truth, {name: found[:, k] for k, name in enumerate(names)}, rate


def judge(estimator: Estimator, data: DataSet) -> dict:
    """`regression_metrics` of loaded weights on a data set."""
    truth, found, _ = _estimated(estimator, data)
    return regression_metrics(estimator.targets, truth, found)


def regression_metrics(
    targets: Targets,
    truth: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    hidden: Mapping[str, float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, float] | float]:
    """Errors of each target, with 95 % intervals over resampled lenses: `mae_x`, `mse_x`, `median_x` (of the absolute
    error), `bias_x`, `sd_x` (of the deviations), `r2_x`; and `mae`, the plain mean of the MAEs, as the thesis had it.

    Both truth and estimates have sigma1 >= sigma2; theta is circular and judged where sigma1 differs from sigma2. The
    R^2 of targets that images do not show (`hidden`) is called `hidden_r2_x`, and `mae` leaves them out. Of raw targets
    `plain_mae_x`, `plain_mse_x` and `plain_mae` are the errors of the labels as drawn, which the thesis printed.
    """
    count, metrics, hidden = len(next(iter(truth.values()))), {}, hidden or {}
    deviations, resampled = targets.deviations(truth, found), Resampled(count, seed, resamples)
    for name, value in deviations.items():
        judged = np.isfinite(value)
        statistic = _statistics(np.nan_to_num(value), ordered(truth)[name], judged)
        values, draws = once(count, statistic), resampled.over(statistic)[0]
        for k, measure in enumerate(MEASURES):
            key = f"hidden_{measure}_{name}" if measure == "r2" and name in hidden else f"{measure}_{name}"
            if np.isfinite(values[k]) and np.isfinite(draws[:, k]).any():
                metrics[key] = interval(values[k], draws[:, k])
    metrics |= mean_error({name: value for name, value in deviations.items() if name not in hidden}, resampled, "mae")
    if targets.kind == "raw":
        plain = {name: np.asarray(found[name]) - truth[name] for name in targets.names}
        for name, value in plain.items():
            metrics |= mean_error({name: value}, resampled, f"plain_mae_{name}")
            metrics |= mean_error({name: value**2}, resampled, f"plain_mse_{name}")
        metrics |= mean_error(plain, resampled, "plain_mae")
    return metrics


MEASURES = ("mae", "mse", "median", "bias", "sd", "r2")


def _statistics(deviation: np.ndarray, truth: np.ndarray, judged: np.ndarray):
    """[resamples, measures] of one target; only lenses that are judged count."""
    order = np.argsort(np.abs(deviation))
    size = np.abs(deviation)

    def statistic(counts):
        counts = counts * judged
        with np.errstate(invalid="ignore", divide="ignore"):
            total = counts.sum(1)
            mean = {
                name: counts @ value / total
                for name, value in {
                    "mae": size,
                    "mse": size**2,
                    "bias": deviation,
                    "truth": truth,
                    "square": truth**2,
                }.items()
            }
            # the middle one, or the lower of the two
            half = (np.cumsum(counts[:, order], axis=1) >= total[:, None] / 2).argmax(1)
            spread = np.sqrt(np.maximum(mean["mse"] - mean["bias"] ** 2, 0))
            explained = 1 - mean["mse"] / (mean["square"] - mean["truth"] ** 2)
        return np.stack([mean["mae"], mean["mse"], size[order][half], mean["bias"], spread, explained], 1)

    return statistic


def mean_error(deviations: Mapping[str, np.ndarray], resampled: Resampled, key: str) -> dict[str, dict[str, float]]:
    """The mean over targets of their mean absolute deviations [n], by `key`, with its interval over resampled lenses;
    of each target those lenses count that are judged, and nothing is returned where one has none."""
    sizes = np.stack([np.abs(value) for value in deviations.values()], 1) if deviations else np.zeros((resampled.n, 0))
    judged = np.isfinite(sizes)
    if not judged.any(0).all() or not sizes.shape[1]:
        return {}

    def statistic(counts):
        with np.errstate(invalid="ignore", divide="ignore"):
            return (counts @ np.nan_to_num(sizes) / (counts @ judged)).mean(1)

    return {key: interval(once(resampled.n, statistic), resampled.over(statistic)[0])}


def record_regression(
    results,
    profile: str,
    model: str,
    image_size: int,
    settings: Settings,
    trained: Trained,
    training: DataSet,
    test: DataSet,
    targets: Targets,
    truth: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    rate: float,
    hidden: Mapping[str, float] | None = None,
    train_count: int | None = None,
    crop: int | None = None,
) -> Run:
    """Judge the estimates on the test set and write the run folder; `predictions.npz` has `targets` and `estimates`
    [n, names], in the order of `parameters.targets`."""
    metrics = regression_metrics(targets, truth, found, hidden)
    metrics |= {"val_score": trained.best["val_score"]} | trained.metrics(rate)
    if hidden:
        metrics["hidden_targets"] = ", ".join(sorted(hidden))
    count = min(train_count or len(training), len(counted(targets, training)))
    name, task = training.recipe.name, TASKS[targets.kind]
    return write_run(
        run_folder(results, profile, task, name, model, settings.seed),
        profile=profile,
        task=task,
        recipe=name,
        model=model,
        seed=settings.seed,
        parameters={key: value for key, value in asdict(settings).items() if key not in _UNUSED}
        | {
            "image_size": image_size,
            "crop": crop or test.images.shape[-1],
            "train_count": count,
            "test_count": len(next(iter(truth.values()))),
            "targets": list(targets.names),
        },
        metrics=metrics,
        datasets={"train": training.digest, "test": test.digest},
        **trained.record(),
        predictions={
            "targets": np.stack([truth[name] for name in targets.names], 1).astype(np.float32),
            "estimates": np.stack([found[name] for name in targets.names], 1).astype(np.float32),
        },
        weights_metadata=estimator_metadata(
            model, training.recipe, targets, image_size, crop, training.channels, training.units
        ),
    )
