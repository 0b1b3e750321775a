"""One training loop for every task: Fabric for devices and precision, images resident in memory or made as it goes."""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss, smooth_l1_loss
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from lenslib.errors import InputError

# as lightning Fabric names them
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")

# which precision is in use is in the record
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    The network that is judged and kept has the exponential moving average of the weights over steps, with decay `ema`
    (0: the weights themselves), at first no more than (1 + step) / (10 + step). `precision` "auto" takes what the
    registry found fastest on a processor, and bf16 on an accelerator. `augment`: "none", "half_turn", "flips" (and half
    turns) or "d4" (flips and right-angle turns).
    `schedule` is what the learning rate does after its linear rise over the share `warmup` of all steps: "cosine" falls
    to zero, "step" to a tenth halfway through the run, "constant" stays. `clip_norm` bounds the norm of the gradient
    (0: no bound). `loss` is that of numbers ("mae", "mse" or "huber", in units of the scaled targets); classes are
    always judged by cross entropy.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    ema: float = 0.99
    label_smoothing: float = 0.0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    clip_norm: float = 5.0
    loss: str = "mae"
    augment: str = "d4"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate}")
        for name, below in (
            ("weight_decay", float("inf")),
            ("warmup", 1),
            ("ema", 1),
            ("label_smoothing", 1),
            ("clip_norm", float("inf")),
            ("seed", 2**63),
        ):
            if not 0 <= getattr(self, name) < below:
                raise InputError(f"{name} must be at least 0 and below {below:g}, not {getattr(self, name)}")
        for name, choices in (
            ("precision", PRECISIONS),
            ("augment", AUGMENTATIONS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("loss", LOSSES),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name} '{getattr(self, name)}': valid choices: {', '.join(choices)}")


@dataclass
class Trained:
    """A trained network (the epoch that did best on the validation images), its history and its costs."""

    model: nn.Module
    history: list[dict[str, float]]
    seconds: float
    images_per_second: float
    device: str
    best: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What the outputs [n, k] of a network mean: labels [n] of classes, or numbers [n, k]."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, which training lowers."""

    def judge(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """`val_loss`, and `val_score`, larger for better, by which the epoch is chosen; and what else the history is to
        hold."""

    def turned(self, targets: Tensor, kind: int) -> Tensor:
        """The targets of images that `turn_images` has turned."""


@dataclass(frozen=True)
class Classes:
    """Classes: outputs are logits, and no turn changes a label. `score(labels, probabilities)` is larger for better."""

    score: Callable[[np.ndarray, np.ndarray], float]
    label_smoothing: float = 0.0

    def loss(self, outputs, targets):
        return cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def judge(self, outputs, targets):
        return {
            "val_loss": float(cross_entropy(outputs, targets)),
            "val_score": float(self.score(targets.numpy(), outputs.softmax(1).numpy())),
        }

    def turned(self, targets, kind):
        return targets


class TrainingImages(Protocol):
    """What a network can be trained on, an epoch at a time: images at hand, or a `lenslib.stream.Stream`."""

    def __len__(self) -> int:
        """Images of one epoch."""

    def batches(self, epoch: int, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [batch_size, c, h, w] and labels of epoch 0, 1, ...; the last batch may be smaller."""


@dataclass(frozen=True)
class Resident:
    """Images and labels (or targets [n, k]) in memory, in a new random order every epoch."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, epoch, batch_size, generator):
        order = torch.randperm(len(self), generator=generator)
        batches = list(order.split(batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:  # batch normalisation needs two
            batches[-2:] = [torch.cat(batches[-2:])]
        for rows in batches:
            rows = rows.to(self.images.device)
            yield self.images[rows], self.labels[rows]


def turn_images(images: Tensor, kind: int) -> Tensor:
    """One of the eight symmetries of the square: a flip for kind >= 4, then kind % 4 right-angle turns."""
    if kind >= 4:
        images = images.flip(-1)
    return torch.rot90(images, kind % 4, (-2, -1))


AUGMENTATIONS = {"none": (0,), "half_turn": (0, 2), "flips": (0, 2, 4, 6), "d4": tuple(range(8))}


def draw_kinds(count: int, kinds: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """One of `kinds` for each of `count` images, drawn evenly; int64 [count]."""
    if len(kinds) == 1:
        return torch.full((count,), kinds[0])
    return torch.tensor(kinds)[torch.randint(len(kinds), (count,), generator=generator)]


def augmented(values: Tensor, kinds: Tensor, turn: Callable[[Tensor, int], Tensor] = turn_images) -> Tensor:
    """Each of the values [n, ...], by default images, turned by its own of the kinds [n]."""
    result = values
    for kind in kinds.unique().tolist():
        if kind:  # 0 leaves all as it is
            mine = (kinds == kind).nonzero()[:, 0].to(values.device)
            result = result.clone() if result is values else result
            result[mine] = turn(values[mine], kind)
    return result


def _optimizer(name: str):
    def build(parameters, settings: Settings):
        rate, decay = settings.learning_rate, settings.weight_decay
        if name == "Lion":
            from timm.optim import Lion

            return Lion(parameters, lr=rate, weight_decay=decay)
        more = {"momentum": 0.9} if name == "SGD" else {}
        return getattr(torch.optim, name)(parameters, lr=rate, weight_decay=decay, **more)

    return build


OPTIMIZERS = {name.lower(): _optimizer(name) for name in ("AdamW", "Adam", "RMSprop", "SGD", "Lion")}
# of what is left of the run after the rise, a share from 0 to 1: the share of the learning rate
SCHEDULES = {
    "cosine": lambda done: 0.5 * (1 + np.cos(np.pi * done)),
    "constant": lambda done: 1.0,
    "step": lambda done: 1.0 if done < 0.5 else 0.1,
}
LOSSES = {"mae": l1_loss, "mse": mse_loss, "huber": smooth_l1_loss}


def _share(step: int, steps: int, settings: Settings) -> float:
    """Share of the learning rate: a linear rise, then what the schedule says."""
    rise = max(1, int(settings.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return SCHEDULES[settings.schedule]((step - rise) / max(1, steps - rise))


@torch.no_grad()
def _follow(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the present ones. The average starts short, so that a run of few steps is not
    held to its random start. By state dict, which leaves out what a steerable network derives from its weights."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    present = model.state_dict()
    for name, value in averaged.state_dict().items():
        # counters are not averaged
        value.lerp_(present[name], share) if value.is_floating_point() else value.copy_(present[name])


def train(
    model: nn.Module,
    training: tuple[Tensor, Tensor] | TrainingImages,
    validation: tuple[Tensor, Tensor],
    settings: Settings,
    task: Task | Callable[[np.ndarray, np.ndarray], float],
    device: str = "auto",
    channels_last: bool = False,
    precision: str = "32-true",
) -> Trained:
    """Train on (images [n, c, h, w], labels [n] or numbers [n, k]) and keep the epoch with the best validation score.

    `training` may be a source of images instead, such as a `lenslib.stream.Stream`.
    `task` says what is learned; a function `score(labels, probabilities)`, larger for better, stands for `Classes` with
    that score and the settings' label smoothing. `precision` holds where the settings say "auto" on a processor.
    Raises InputError for images and labels that do not match, FloatingPointError, naming the batch, for a loss that is
    not finite.
    """
    resident = isinstance(training, tuple)
    _check({"validation": validation} | ({"training": training} if resident else {}))
    if not hasattr(task, "judge"):
        task = Classes(task, settings.label_smoothing)
    fabric = _fabric(settings, device, precision)
    if channels_last or fabric.device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[settings.optimizer](model.parameters(), settings)
    network, optimizer = fabric.setup(model, optimizer)
    averaged = copy.deepcopy(model)
    data = Resident(*(part.to(fabric.device) for part in training)) if resident else training
    steps = settings.epochs * -(-len(data) // settings.batch_size)
    scheduler = LambdaLR(optimizer, lambda step: _share(step, steps, settings))
    generator = torch.Generator().manual_seed(settings.seed)
    history, best, best_state, start = [], {}, None, time.perf_counter()
    with tqdm(total=settings.epochs * len(data), desc="train", unit="image", disable=None) as bar:
        for epoch in range(1, settings.epochs + 1):
            batches = data.batches(epoch - 1, settings.batch_size, generator)
            loss = _epoch(fabric, network, averaged, optimizer, scheduler, batches, settings, task, generator, bar)
            outputs = predict_logits(averaged.train(), validation[0], settings.batch_size)
            row = {
                "epoch": epoch,
                "train_loss": loss,
                **task.judge(outputs, validation[1]),
                "learning_rate": float(scheduler.get_last_lr()[0]),
                "seconds": time.perf_counter() - start,
            }
            history.append(row)
            bar.set_postfix(val_score=f"{row['val_score']:.4f}")
            if not best or row["val_score"] > best["val_score"]:
                best, best_state = row, copy.deepcopy(averaged.state_dict())
    seconds = time.perf_counter() - start
    model.train().load_state_dict(best_state)
    return Trained(model.cpu().eval(), history, seconds, len(history) * len(data) / seconds, str(fabric.device), best)


def _fabric(settings: Settings, device: str, precision: str):
    from lightning.fabric import Fabric

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if settings.precision != "auto":
        precision = settings.precision
    elif on_gpu:
        precision = "bf16-mixed"
    return Fabric(accelerator="cuda" if on_gpu else "cpu", devices=1, precision=precision)


def _epoch(fabric, network, averaged, optimizer, scheduler, batches, settings, task, generator, bar) -> float:
    """One pass over the images; returns the mean loss."""
    network.train()
    total, count = torch.zeros((), device=fabric.device), 0
    for batch, (images, labels) in enumerate(batches):
        images, labels = images.to(fabric.device), labels.to(fabric.device)
        drawn = draw_kinds(len(images), AUGMENTATIONS[settings.augment], generator)
        inputs, targets = augmented(images, drawn), augmented(labels, drawn, task.turned)
        loss = task.loss(network(inputs), targets)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} in batch {batch}: lower learning_rate, or look for broken images"
            )
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if settings.clip_norm:
            fabric.clip_gradients(network, optimizer, max_norm=settings.clip_norm)
        optimizer.step()
        scheduler.step()
        _follow(averaged, network.module, settings.ema, scheduler.last_epoch)
        total, count = total + loss.detach() * len(labels), count + len(labels)
        bar.update(len(labels))
    return float(total) / count


def _check(sets: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (images, labels) in sets.items():
        if len(images) != len(labels) or len(images) == 0:
            raise InputError(f"the {name} set has {len(images)} images and {len(labels)} labels")
        if not torch.isfinite(images).all():
            raise InputError(f"the {name} set has images with values that are not finite")


@torch.no_grad()
def predict_logits(network: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Outputs [n, k], such as logits, float32 on the processor, of prepared images [n, c, h, w]; evaluation mode."""
    network.eval()
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).float().cpu() for part in images.split(batch_size)])
