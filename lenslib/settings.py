"""What a user chooses of a training, and what there is to choose from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import l1_loss, mse_loss, smooth_l1_loss

from lenslib.augmentation import AUGMENTATIONS, DISTORTIONS
from lenslib.errors import InputError

# as lightning Fabric names them
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
# of several devices: each holds the whole network, or a part of it (fully sharded)
STRATEGIES = ("auto", "ddp", "fsdp")


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
    `augment`, then `shift`, by as many pixels at most each way, and `distort` ("none", "rotate", "affine",
    "perspective" or "contrast", see `lenslib.augmentation`) change the images as they are shown. `dropout` leaves out a
    share of what the last layer sees, beside what the model drops itself. `patience` ends the run after so many epochs
    without a better validation score (0: never).
    `weights` is what training starts from: "" (random numbers), "imagenet", a .safetensors file, or the folder of an
    earlier run; of a `frozen` network the last layer alone is trained. `checkpoint` is how many epochs lie between two
    checkpoints in the run's folder (0: none is kept). `compile` lets torch compile the network first, which takes a
    minute and pays in long runs.
    `devices` is how many train together (a node, under Slurm), each on its part of every batch of `batch_size`, in a
    process of its own: see `lenslib.processes`. `strategy` "ddp" (which "auto" means) keeps the network whole on each;
    "fsdp" deals weights, gradients and moments out, for networks too large for one.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    ema: float = 0.99
    label_smoothing: float = 0.0
    dropout: float = 0.0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    clip_norm: float = 5.0
    loss: str = "mae"
    augment: str = "d4"
    shift: int = 0
    distort: str = "none"
    patience: int = 0
    weights: str = ""
    frozen: bool = False
    precision: str = "auto"
    compile: bool = False
    checkpoint: int = 1
    devices: int = 1
    strategy: str = "auto"
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "devices"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate}")
        for name, below in (
            ("weight_decay", float("inf")),
            ("warmup", 1),
            ("ema", 1),
            ("label_smoothing", 1),
            ("dropout", 1),
            ("shift", 2**31),
            ("patience", 2**31),
            ("checkpoint", 2**31),
            ("clip_norm", float("inf")),
            ("seed", 2**63),
        ):
            if not 0 <= getattr(self, name) < below:
                raise InputError(f"{name} must be at least 0 and below {below:g}, not {getattr(self, name)}")
        for name, choices in (
            ("precision", PRECISIONS),
            ("strategy", STRATEGIES),
            ("augment", AUGMENTATIONS),
            ("distort", DISTORTIONS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("loss", LOSSES),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name} '{getattr(self, name)}': valid choices: {', '.join(choices)}")
        if self.frozen and not self.weights:
            raise InputError("frozen holds all but the last layer at the weights it starts from: name some in weights")
        self._check_devices()

    def _check_devices(self):
        if self.batch_size < self.devices:
            raise InputError(f"batch_size must be at least devices, {self.devices}, not {self.batch_size}")
        if self.compile and self.devices > 1:
            raise InputError("compile is for one device: leave it out, or set devices to 1")
        if self.strategy == "fsdp":
            if self.devices == 1:
                raise InputError("strategy fsdp deals a network out over devices: set devices to 2 or more")
            if self.precision in ("16-mixed", "64-true"):
                raise InputError(f"precision {self.precision} is not for strategy fsdp: use bf16-mixed or 32-true")


def _optimizer(name: str):
    def build(parameters, settings: Settings):
        rate, decay = settings.learning_rate, settings.weight_decay
        if name == "Lion":
            from timm.optim import Lion

            return Lion(parameters, lr=rate, weight_decay=decay)
        more = {"momentum": 0.9} if name == "SGD" else {}
        if name in ("Adam", "AdamW") and settings.precision != "16-mixed":
            # one pass over memory, a third of the time; of scaled losses it undoes the scale itself, after the bound
            more["fused"] = True
        return getattr(torch.optim, name)(parameters, lr=rate, weight_decay=decay, **more)

    return build


OPTIMIZERS = {name.lower(): _optimizer(name) for name in ("AdamW", "Adam", "RMSprop", "SGD", "Lion")}
# of what is left of the run after the rise, a share from 0 to 1: the share of the learning rate
SCHEDULES = {
    "cosine": lambda done: float(0.5 * (1 + np.cos(np.pi * done))),
    "constant": lambda done: 1.0,
    "step": lambda done: 1.0 if done < 0.5 else 0.1,
}
LOSSES = {"mae": l1_loss, "mse": mse_loss, "huber": smooth_l1_loss}
