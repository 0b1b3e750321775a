"""One classification run, step by step: what the training notebook shows and `lenslib train` does in one go."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from lenslib.dataset import DataSet, open_dataset
from lenslib.errors import InputError
from lenslib.inference import Classifier, answered, classifier_metadata, fit_metadata
from lenslib.metrics import classification_metrics, macro_auc
from lenslib.models import model_info
from lenslib.models.heads import starting_network
from lenslib.recipe import Recipe
from lenslib.records import Run, run_folder, write_run
from lenslib.settings import Settings
from lenslib.stream import Stream
from lenslib.training import Trained, train

VALIDATION_SHARE = 0.1
# of a stream: enough for an AUC that is worth choosing by
LEAST_VALIDATION = 300


def open_pair(train_data, test_data, recipe: str | None = None) -> tuple[DataSet, DataSet]:
    """`open_apart`, for folders of several classes; InputError for others."""
    training, test = open_apart(train_data, test_data, recipe)
    _check_classes(training, test)
    return training, test


def open_apart(train_data, test_data, recipe: str | None = None) -> tuple[DataSet, DataSet]:
    """Training and test folders, verified. InputError when they differ in recipe or could share an image."""
    training, test = open_dataset(train_data), open_dataset(test_data)
    if training.recipe != test.recipe:
        raise InputError(f"'{train_data}' and '{test_data}' hold different recipes: simulate both from one")
    if recipe is not None and training.recipe.name != Path(recipe).stem:
        raise InputError(f"'{train_data}' holds {training.recipe.name}, not {recipe}: name the folder of that recipe")
    if training.seed == test.seed:
        raise InputError(f"'{train_data}' and '{test_data}' have the same seed {test.seed}: the test would be seen")
    return training, test


def open_stream(
    recipe: Recipe, count: int, test_data, seed: int = 0, validation_seed: int = 3
) -> tuple[Stream, DataSet]:
    """A stream of `count` training images an epoch, and a test folder of the same recipe, verified.

    InputError when they differ in recipe, or when two of the seeds for training, validation and test are one.
    """
    stream, test = Stream(recipe, count, seed, validation_seed=validation_seed), open_dataset(test_data)
    if test.recipe != recipe:
        raise InputError(f"'{test_data}' was not simulated from the recipe {recipe.name} as it is: simulate it again")
    for purpose, other in (("training", seed), ("validation", validation_seed)):
        if other == test.seed:
            raise InputError(f"{purpose} and '{test_data}' have the same seed {other}: the test would be seen")
    _check_classes(test)
    return stream, test


def _check_classes(*sets: DataSet) -> None:
    for data in sets:
        if len(np.unique(data.labels)) < 2:
            raise InputError(f"'{data.folder}' holds {len(data)} images of one class: simulate a larger --count")


def train_classifier(
    data: DataSet | Stream,
    model: str,
    image_size: int,
    settings: Settings,
    device: str = "auto",
    train_count: int | None = None,
    crop: int | None = None,
    folder: str | Path | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    """Train a registered model on the first `train_count` images; the last tenth of these chooses the epoch.

    Trained on a stream, it sees `count` new images an epoch, and the epoch is chosen by images of another seed, a tenth
    as many (at least 300).
    The network sees the central `crop` pixels (all, if None) resampled to `image_size`. For `folder` and `report`, see
    `train`.
    """
    torch.manual_seed(settings.seed)
    info = model_info(model)
    if info.family == "autoencoder":
        raise InputError(f"{model} is an autoencoder: it gives back images, not classes; choose another model")
    network = starting_network(model, len(data.classes), image_size, data.channels, settings.weights)
    if isinstance(data, Stream):
        training = _fitted(data, image_size, settings, device, crop)
        validation = training.validation(max(LEAST_VALIDATION, int(len(data) * VALIDATION_SHARE)))
    else:
        count = min(train_count or len(data), len(data))
        if count < 2:
            raise InputError(f"train_count must be at least 2, not {count}: one image to train on and one to choose by")
        held_out = max(1, int(count * VALIDATION_SHARE))
        _check_labels(data, count - held_out)
        training = data.prepared(image_size, slice(0, count - held_out), crop)
        validation = data.prepared(image_size, slice(count - held_out, count), crop)
    facts = info.channels_last, info.precision
    return train(network, training, validation, settings, macro_auc, device, *facts, folder, report)


def _check_labels(data: DataSet, count: int) -> None:
    """InputError for a label that is none of the classes, and a class that the first `count` images lack."""
    bad = np.flatnonzero((data.labels < 0) | (data.labels >= len(data.classes)))
    if len(bad):
        raise InputError(
            f"image {bad[0]} of '{data.folder}' has the label {data.labels[bad[0]]}: its {len(data.classes)} classes "
            f"are 0 to {len(data.classes) - 1}"
        )
    missing = sorted(set(range(len(data.classes))) - set(data.labels[:count].tolist()))
    if missing:
        names = ", ".join(data.classes[label] for label in missing)
        raise InputError(f"none of the {count} training images shows {names}: take more of them, or simulate more")


def _fitted(stream: Stream, image_size: int, settings: Settings, device: str, crop: int | None) -> Stream:
    if settings.precision in ("bf16-true", "64-true"):
        raise InputError(
            f"precision {settings.precision} changes the numbers of the simulator at work beside the network: "
            "train on a folder, or choose 32-true, bf16-mixed or 16-mixed"
        )
    return replace(stream, image_size=image_size, device=device, crop=crop)


def classify(
    trained: Trained, data: DataSet, model: str, image_size: int, crop: int | None = None
) -> tuple[np.ndarray, float]:
    """Class probabilities [n, classes] of a data set, and the images judged per second."""
    size, channels = data.images.shape[-1], data.channels
    classifier = Classifier(
        trained.model, model, data.recipe.name, data.classes, image_size, size, crop, channels, data.units
    )
    return answered(classifier, data, np.arange(len(data)))


def record_run(
    results,
    profile: str,
    model: str,
    image_size: int,
    settings: Settings,
    trained: Trained,
    training: DataSet | Stream,
    test: DataSet,
    scores: np.ndarray,
    test_rate: float,
    train_count: int | None = None,
    crop: int | None = None,
) -> Run:
    """Judge the scores on the test set and write the run folder."""
    metrics = classification_metrics(test.labels, scores, test.classes)
    metrics |= {"val_macro_auc": trained.best["val_score"]} | trained.metrics(test_rate)
    name = training.recipe.name
    streamed = {}
    if isinstance(training, Stream):
        streamed = {"stream_seed": training.seed, "validation_seed": training.validation_seed}
    return write_run(
        run_folder(results, profile, "classification", name, model, settings.seed),
        profile=profile,
        task="classification",
        recipe=name,
        model=model,
        seed=settings.seed,
        # the loss of classes is cross entropy, whatever that of numbers would be
        parameters={key: value for key, value in asdict(settings).items() if key != "loss"}
        | {
            "image_size": image_size,
            "crop": crop or test.images.shape[-1],
            "train_count": min(train_count or len(training), len(training)),
            "test_count": len(test),
            "classes": list(test.classes),
        }
        | _drawn(test)
        | streamed,
        metrics=metrics,
        datasets={"train": training.digest, "test": test.digest},
        **trained.record(),
        predictions={"labels": test.labels, "scores": scores.astype(np.float32)},
        weights_metadata=classifier_metadata(
            model, training.recipe, image_size, crop, training.channels, training.units
        )
        | (fit_metadata(training) if training.units == "deviations" else {}),
    )


def _drawn(test: DataSet) -> dict[str, int | str]:
    """What it takes to draw a test set again (see `lenslib.redraw`); nothing for files of others."""
    if not isinstance(test.recipe, Recipe):
        return {}
    start = int(test.params["index"].iloc[0])
    return {"test_seed": test.seed, "test_start": start, "test_recipe": test.recipe.to_yaml()}
