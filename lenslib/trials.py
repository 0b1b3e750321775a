"""Trainings that differ in one thing: the same lenses for all, several random starts each, one judgement of each.

fitted = fit("resnet18", images, labels, Settings(seed=0))
metrics = judge(labels, {"all": [scores, scores], "no flips": [scores, scores]}, against={"no flips": "all"})
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lenslib.dataset import resize
from lenslib.errors import InputError, unknown
from lenslib.metrics import macro_auc
from lenslib.models import model_info
from lenslib.models.heads import starting_network
from lenslib.models.narrow import narrowed
from lenslib.records import Run, run_folder, write_run
from lenslib.resampling import (
    RESAMPLES,
    Resampled,
    check_scores,
    classes_present,
    interval,
    macro,
    macro_room,
    mean,
    no_surer,
    once,
    room_at_one,
)
from lenslib.settings import Settings
from lenslib.training import Trained, predict_logits, train

HELD_OUT = 0.1


def fit(
    model: str,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    rates: Sequence[float] = (),
    share: float = 1.0,
    **options,
) -> Trained:
    """A registered model trained on prepared images [n, c, size, size] and their labels [n]; the last tenth, one image
    at least, is held out and chooses the epoch. Every class must be among the others.

    Of several `rates` of learning each is tried, and the held-out images choose that too. `share` and `options` are
    those of `lenslib.models.narrow.narrowed`.
    InputError as `starting_network`, `narrowed` and `train`, for images that cannot be held out or have no label each,
    for a class without any, and for weights of another form of the network.
    """
    if len(labels) < 2 or len(images) != len(labels):
        raise InputError(f"give two images or more, each with a label: {len(images)} images and {len(labels)} labels")
    kept, classes = len(labels) - max(1, int(HELD_OUT * len(labels))), int(labels.max()) + 1
    if (labels < 0).any() or not 2 <= len(labels[:kept].unique()) == classes:
        raise InputError("labels must be 0 and up, of two classes or more, each among the images that are trained on")
    whole = share == 1 and not options
    if settings.weights and not whole:
        raise InputError(f"a narrower or another form of {model} cannot begin with weights: take share 1, or none")
    info, tried, shape = model_info(model), [], (classes, images.shape[-1], images.shape[1])
    for rate in rates or [settings.learning_rate]:
        torch.manual_seed(settings.seed)
        network = (
            starting_network(model, *shape, settings.weights) if whole else narrowed(model, share, *shape, **options)
        )
        parts = (images[:kept], labels[:kept]), (images[kept:], labels[kept:])
        facts = info.channels_last, info.precision
        tried.append(train(network, *parts, replace(settings, learning_rate=rate), macro_auc, "auto", *facts))
    return max(tried, key=lambda trained: trained.best["val_score"])


def probabilities(network: nn.Module, images: Tensor) -> np.ndarray:
    """Of each class, [n, classes], for prepared images [n, c, size, size]."""
    return predict_logits(network, images).softmax(1).numpy()


def as_photographs(images: Tensor, size: int, channels: int = 1) -> Tensor:
    """Images [n, 1, h, w] as the published trainings showed them: each scaled so that its pixels run from 0 to 1, in so
    many equal channels of `size` pixels a side; light is interpolated where the image grows."""
    least, most = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    scaled = (images - least) / (most - least).clamp(min=1e-30)
    return resize(scaled, size).expand(-1, channels, -1, -1)


def slug(name: str) -> str:
    """The name of a trial as a field of a record has it."""
    return name.replace(", ", "_").replace(" ", "_").replace("-", "_")


def judge(
    labels: np.ndarray,
    scores: Mapping[str, Sequence[np.ndarray]],
    against: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, float | dict[str, float]]:
    """Metrics of trials: scores [n, classes] of each random start by the trial's name, for the same labels [n].

    By the `slug` of a name: the macro AUC and, as `.._accuracy`, the accuracy, means over the random starts, with 95 %
    intervals over resampled test sets (of the mean: the scatter of starts is no part of them); `.._seed0`, .. are the
    macro AUCs of the starts; `.._change` is the macro AUC less that of the trial that `against` names for it, on the
    same resamples.
    InputError for scores that are no probabilities, trials without any, one class alone, and unknown names.
    """
    metrics, draws = {}, {}
    for name, several in scores.items():
        own, draws[name] = _judged(name, labels, several, seed)
        metrics |= {f"{slug(name)}{part}": metric for part, metric in own.items()}
    for name, base in (against or {}).items():
        for each in (name, base):
            if each not in scores:
                raise unknown("trial", each, scores)
        change = metrics[slug(name)]["value"] - metrics[slug(base)]["value"]
        metrics[f"{slug(name)}_change"] = interval(change, draws[name] - draws[base])
    return metrics


def record(
    results: str | Path,
    place: Mapping[str, str | int],
    labels: np.ndarray,
    scores: Mapping[str, Sequence[np.ndarray]],
    trained: Mapping[str, Sequence[Trained]],
    against: Mapping[str, str] | None = None,
    metrics: Mapping | None = None,
    **more,
) -> None:
    """Judge trials (`judge`) and write their record at `place`, which has profile, task, recipe, model and seed.

    `trained` has networks of trials, one a random start: of the first are kept, by the `slug` of the trial's name, its
    number of weights and its training rate as `.._weights` and `.._images_per_second`, its epochs and the scores it
    gave; `seconds` are those of all starts. `metrics` come to those of `judge`; `more` is as `write_run` takes it.
    """
    found = judge(labels, scores, against, place["seed"]) | dict(metrics or {})
    for name, networks in trained.items():
        found[f"{slug(name)}_weights"] = sum(weight.numel() for weight in networks[0].model.parameters())
        found[f"{slug(name)}_images_per_second"] = networks[0].images_per_second
    more["parameters"] = more.get("parameters", {}) | {"test_count": len(labels)}
    write_run(
        run_folder(results, *place.values()),
        **place,
        metrics=found,
        seconds={slug(name): sum(one.seconds for one in networks) for name, networks in trained.items()},
        predictions={
            "labels": labels,
            "names": np.array(list(scores)),
            "scores": np.stack([several[0] for several in scores.values()]).astype(np.float32),
        },
        history=[{"trial": name, **row} for name, networks in trained.items() for row in networks[0].history],
        **more,
    )


def by_trial(run: Run) -> tuple[dict[str, pd.DataFrame], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What `record` keeps of the first random start of each trial: epochs, and labels with scores, by its name."""
    arrays, epochs = run.predictions(), run.history().groupby("trial", sort=False)
    names = map(str, arrays["names"])
    return dict(list(epochs)), {
        name: (arrays["labels"], scores) for name, scores in zip(names, arrays["scores"], strict=True)
    }


def _judged(name: str, labels: np.ndarray, several: Sequence[np.ndarray], seed: int) -> tuple[dict, np.ndarray]:
    """Of one trial its metrics by what is put behind its name, and its macro AUC in each resample."""
    if not len(several):
        raise InputError(f"'{name}' has no scores: give those of one random start or more")
    for one in several:
        check_scores(labels, one)
    count, present = len(labels), classes_present(labels, several[0].shape[1])
    if not present:
        raise InputError("images of one class alone have no AUC")
    areas, right = [macro(labels, one) for one in several], np.mean([one.argmax(1) == labels for one in several], 0)
    *drawn, accuracies = Resampled(count, seed, RESAMPLES).over(*areas, mean(right))
    draws = np.mean([area[:, 0] for area in drawn], axis=0)
    aucs = [float(once(count, area)[0]) for area in areas]
    own = {"": no_surer(interval(np.mean(aucs), draws), macro_room(labels, present))}
    own["_accuracy"] = no_surer(interval(right.mean(), accuracies), room_at_one(count / 2, count / 2))
    return own | {f"_seed{k}": auc for k, auc in enumerate(aucs)}, draws
