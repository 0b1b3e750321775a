"""One training loop for every task: Fabric for devices and precision, images resident in memory or made as it goes."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from lenslib.augmentation import AUGMENTATIONS, augmented, distort_images, draw_kinds, shift_images
from lenslib.checkpoints import Keeper, start_digest
from lenslib.compilation import compiled
from lenslib.errors import InputError
from lenslib.memory import held_to_free_memory, largest_batch, out_of_memory
from lenslib.models.heads import add_dropout, heads
from lenslib.processes import Processes, launched, open_fabric
from lenslib.settings import OPTIMIZERS, SCHEDULES, Settings
from lenslib.tasks import Classes, Task

# which precision is in use is in the record
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


@dataclass
class Trained:
    """A trained network (the epoch that did best on the validation images), its history and its costs."""

    model: nn.Module
    history: list[dict[str, float]]
    seconds: float
    images_per_second: float
    device: str
    best: dict[str, float] = field(default_factory=dict)

    def metrics(self, test_rate: float) -> dict[str, float]:
        """What its record says beside what it was trained for; `test_rate` is images judged a second."""
        return {
            "best_epoch": self.best["epoch"],
            "weight_count": sum(parameter.numel() for parameter in self.model.parameters()),
            "test_images_per_second": test_rate,
        }

    def record(self) -> dict:
        """Costs, history and weights, as `lenslib.records.write_run` takes them."""
        return {
            "seconds": {"train": self.seconds},
            "images_per_second": self.images_per_second,
            "device": self.device,
            "history": self.history,
            "weights": self.model.state_dict(),
        }


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


def rate_share(step: int, steps: int, settings: Settings) -> float:
    """Share of the learning rate at step 0, 1, ...: a linear rise, then what the schedule says."""
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


def _is_whole(kept: dict, weights: dict[str, Tensor]) -> bool:
    """Whether a checkpoint holds what is read at the end alone, when all its epochs would be lost."""
    rows = [*kept["history"], kept["best"]]
    told = all({"epoch", "val_score", "seconds"} <= row.keys() for row in rows)
    numbers = all(isinstance(value, int | float) for row in rows for value in row.values())
    best = {name: value.shape for name, value in kept["best_state"].items()}
    return told and numbers and best == {name: value.shape for name, value in weights.items()}


class _Run:
    """A network in training, and all that changes with it: what its checkpoint holds."""

    def __init__(self, model: nn.Module, images: int, settings: Settings, task: Task, fabric):
        self.model, self.settings, self.task, self.fabric = model, settings, task, fabric
        self.processes = Processes(fabric)
        self.trained = model
        if settings.frozen:
            self.trained = nn.ModuleList(heads(model))
            model.requires_grad_(False)
            self.trained.requires_grad_(True)
        self.network, self.averaged = self.processes.set_up(model)
        optimizer = OPTIMIZERS[settings.optimizer](self.trained.parameters(), settings)
        self.optimizer = fabric.setup_optimizers(optimizer)
        self.compiled = compiled(self.network, fabric.device.type) if settings.compile else self.network
        steps = settings.epochs * -(-images // settings.batch_size)
        self.scheduler = LambdaLR(self.optimizer, lambda step: rate_share(step, steps, settings))
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.best_state: dict[str, Tensor] = {}

    def state_dict(self) -> dict:
        """Everything from which the epochs to come follow, and the best of those that were."""
        state = {name: self.processes.state_dict(part) for name, part in self._parts().items()}
        gathered = self.processes.gathered
        state |= {"generator": self.generator.get_state(), "random": gathered(torch.get_rng_state())}
        if self.fabric.device.type == "cuda":
            state["cuda"] = gathered(torch.cuda.get_rng_state(self.fabric.device))
        return state | {name: getattr(self, name) for name in ("history", "best", "best_state")}

    def take_up(self, kept: dict) -> bool:
        """Go on from what a checkpoint held. If it does not fit, all is as before, and the answer False."""
        before = copy.deepcopy(self.state_dict())
        try:
            failed = not _is_whole(kept, before["averaged"])
            self.load_state_dict(kept)
        except Exception:  # torch raises whatever damage leads it to
            failed = True
        # in one of the processes is in all
        if failed := bool(self.processes.gathered(torch.tensor(float(failed))).any()):
            self.load_state_dict(before)
        return not failed

    def load_state_dict(self, state: dict) -> None:
        for name, part in self._parts().items():
            self.processes.load_state_dict(part, state[name])
        self.generator.set_state(state["generator"])
        # torch reads a state from the start of its memory, whatever part of that it is given
        torch.set_rng_state(state["random"][self.processes.rank].clone())
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"][self.processes.rank].clone(), self.fabric.device)
        for name in ("history", "best", "best_state"):
            setattr(self, name, state[name])

    def _parts(self) -> dict:
        names = ("model", "averaged", "optimizer", "scheduler")
        return {name: getattr(self, name) for name in names} | {"precision": self.fabric.strategy.precision}

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or too many since the best."""
        done, patience = len(self.history), self.settings.patience
        return done >= self.settings.epochs or (patience > 0 and done - self.best.get("epoch", done) >= patience)

    def epoch(self, data: TrainingImages, bar: tqdm) -> float:
        """One pass over the images; returns the mean loss."""
        self.model.train(not self.settings.frozen)
        self.trained.train()
        total, count = torch.zeros((), device=self.fabric.device), 0
        batches = data.batches(len(self.history), self.settings.batch_size, self.generator)
        for batch, (images, labels) in enumerate(batches):
            inputs, targets = self._shown(images.to(self.fabric.device), labels.to(self.fabric.device))
            loss = self._step(inputs, targets, f"batch {batch} of epoch {len(self.history) + 1}")
            total, count = total + loss * len(labels), count + len(labels)
            bar.update(len(labels))
        return float(total) / count

    def _shown(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images as the network is to see them this time, and what it is to say."""
        drawn = draw_kinds(len(images), AUGMENTATIONS[self.settings.augment], self.generator)
        images, labels = augmented(images, drawn), augmented(labels, drawn, self.task.turned)
        if self.settings.shift:
            images = shift_images(images, self.settings.shift, self.generator)
        return distort_images(images, self.settings.distort, self.generator), labels

    def _step(self, inputs: Tensor, targets: Tensor, where: str) -> Tensor:
        """Move the weights by a batch; its loss. InputError that says which batch fits, where memory is too small."""
        try:
            return self._move(inputs, targets, where)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if self.processes.count > 1:
                many = f"{len(inputs)} images on {self.processes.count} devices"
                raise InputError(f"a batch of {many} does not fit into memory: lower batch_size") from None
        # by now, what the failed step held has been let go
        self.optimizer.zero_grad(set_to_none=True)

        def work(size: int) -> None:
            self._gradients(inputs[:size], targets[:size])

        raise InputError(largest_batch(work, len(inputs), self.fabric.device))

    def _move(self, inputs: Tensor, targets: Tensor, where: str) -> Tensor:
        loss = self._gradients(inputs, targets, where)
        if self.settings.clip_norm:
            self._clip(where)
        self.optimizer.step()
        self.scheduler.step()
        _follow(self.averaged, self.model, self.settings.ema, self.scheduler.last_epoch)
        return loss

    def _clip(self, where: str) -> None:
        """Bound the norm of the gradient. One that is not finite ends the run, but where losses are scaled: such a step
        is left out there, and the scale lowered."""
        scaled, bound = self.settings.precision == "16-mixed", self.settings.clip_norm
        norm = self.fabric.clip_gradients(self.network, self.optimizer, max_norm=bound, error_if_nonfinite=False)
        if not scaled and not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is {float(norm)} in {where}: lower learning_rate, or set precision to 32-true"
            )

    def _gradients(self, inputs: Tensor, targets: Tensor, where: str = "") -> Tensor:
        """The loss of a batch, with the gradients of the weights where they belong."""
        mine, weight = self.processes.part(len(inputs))
        # one shape alone is compiled: each takes half a minute
        whole = len(inputs) == self.settings.batch_size
        loss = weight * self.task.loss((self.compiled if whole else self.network)(inputs[mine]), targets[mine])
        # of all processes, so that all stop together
        mean = self.processes.mean(loss.detach())
        if not torch.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean.item()} in {where}: lower learning_rate, or look for broken images"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        return mean

    def judge(self, validation: tuple[Tensor, Tensor], loss: float, seconds: float) -> None:
        """Enter an epoch into the history, and keep its network if it is the best so far."""
        self.processes.settle(self.averaged)
        predict = partial(predict_logits, self.averaged.train(), batch_size=self.settings.batch_size)
        outputs = self.processes.predicted(predict, validation[0])
        judged = {name: float(value) for name, value in self.task.judge(outputs, validation[1]).items()}
        row = {"epoch": len(self.history) + 1, "train_loss": loss, **judged}
        row |= {"learning_rate": float(self.scheduler.get_last_lr()[0]), "seconds": seconds}
        self.history.append(row)
        if not self.best or row["val_score"] > self.best["val_score"]:
            self.best, self.best_state = row, copy.deepcopy(self.processes.state_dict(self.averaged))


def train(
    model: nn.Module,
    training: tuple[Tensor, Tensor] | TrainingImages,
    validation: tuple[Tensor, Tensor],
    settings: Settings,
    task: Task | Callable[[np.ndarray, np.ndarray], float],
    device: str = "auto",
    channels_last: bool = False,
    precision: str = "32-true",
    folder: str | Path | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    """Train on (images [n, c, h, w], labels [n] or numbers [n, k]) and keep the epoch with the best validation score.

    `training` may be a source of images instead, such as a `lenslib.stream.Stream`.
    `task` says what is learned; a function `score(labels, probabilities)`, larger for better, stands for `Classes` with
    that score and the settings' label smoothing. `precision` holds where the settings say "auto" on a processor.
    In `folder`, history.csv grows by a line an epoch, and a run that was killed goes on from its last checkpoint, to
    the same weights. `report` is given each line as well, and ends the training by raising an error.
    Where the settings say several devices, this program is started again for each of the others, and every one of these
    processes returns; `lenslib.processes.is_helper` tells those that should do no more.
    Raises InputError for images and labels that do not match, and for a batch that does not fit into memory;
    FloatingPointError, naming the batch, for a loss that is not finite.
    """
    resident = isinstance(training, tuple)
    _check({"validation": validation} | ({"training": training} if resident else {}))
    if not hasattr(task, "judge"):
        task = Classes(task, settings.label_smoothing)
    fabric = open_fabric(settings, device, precision)
    with launched(fabric):
        folder = folder if fabric.is_global_zero else None
        keeper = Keeper(folder, _start(model, training, validation, settings, fabric) if folder else "")
        # weights that are dealt out must lie in one piece
        if (channels_last or fabric.device.type == "cuda") and settings.strategy != "fsdp":
            model = model.to(memory_format=torch.channels_last)
        data = _resident(*training, fabric.device) if resident else training
        # a network that was dealt out stays so
        network = copy.deepcopy(model) if settings.strategy == "fsdp" else model
        with add_dropout(network, settings.dropout), held_to_free_memory(fabric.device):
            run = _Run(network, len(data), settings, task, fabric)
            if (kept := fabric.broadcast(keeper.load())) is not None:
                keeper.tell(run.take_up(kept))
            _fit(run, data, validation, keeper, report)
    model.train().load_state_dict(run.best_state)
    seconds = run.history[-1]["seconds"]
    rate = len(run.history) * len(data) / seconds
    return Trained(model.cpu().eval(), run.history, seconds, rate, str(fabric.device), run.best)


def _fit(run: _Run, data: TrainingImages, validation: tuple[Tensor, Tensor], keeper: Keeper, report) -> None:
    """All epochs that are left."""
    settings, done = run.settings, len(run.history)
    start = time.perf_counter() - (run.history[-1]["seconds"] if done else 0.0)
    total, initial = settings.epochs * len(data), done * len(data)
    hidden = True if run.processes.rank else None
    with tqdm(total=total, initial=initial, desc="train", unit="image", disable=hidden) as bar:
        while not run.over:
            loss = run.epoch(data, bar)
            run.judge(validation, loss, time.perf_counter() - start)
            bar.set_postfix(val_score=f"{run.history[-1]['val_score']:.4f}")
            keeper.show(run.history)
            if settings.checkpoint and (run.over or len(run.history) % settings.checkpoint == 0):
                keeper.save(run.state_dict())  # which all processes must ask for
            if report is not None:
                report(run.history[-1])


def _start(model: nn.Module, training, validation: tuple[Tensor, Tensor], settings: Settings, fabric) -> str:
    """Which run this is."""
    facts = {name: value for name, value in asdict(settings).items() if name != "checkpoint"}
    facts |= {"device": fabric.device.type, "precision": fabric.strategy.precision.precision}
    images = training if isinstance(training, tuple) else ()
    facts |= {"images": len(training), "digest": getattr(training, "digest", "")}
    return start_digest(facts, [*model.state_dict().values(), torch.get_rng_state(), *images, *validation])


def _resident(images: Tensor, labels: Tensor, device: torch.device) -> Resident:
    """Images and labels on the device. InputError where its memory is too small for them."""
    try:
        return Resident(images.to(device), labels.to(device))
    except torch.OutOfMemoryError:
        raise InputError(
            f"{len(images)} training images do not fit into the memory of {device}: lower train_count or image_size"
        ) from None


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
