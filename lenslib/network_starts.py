"""Where fits begin: a network's estimate of the lens and of the place and size of its source.

network = train_starter(images, params, image_size=50, settings=Settings(epochs=6))
fit = refine(recipe, images, network.starts(recipe, images), noise)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lenslib.dataset import prepare
from lenslib.errors import InputError
from lenslib.frame_network import LensTargets, scaled
from lenslib.models import create_model
from lenslib.recipe import Recipe
from lenslib.refine import SmoothModel
from lenslib.regression import Numbers
from lenslib.settings import Settings
from lenslib.training import predict_logits, train

MODEL = "small_cnn"


@dataclass(frozen=True)
class Starter:
    """A trained network, what its outputs mean, what the numbers are that it does not estimate, and what it cost."""

    model: nn.Module
    targets: LensTargets
    others: Mapping[str, float]
    image_size: int
    seconds: float

    def starts(self, recipe: Recipe, images: Tensor) -> dict[str, Tensor]:
        """Parameters by name, each [n], of images [n, 1, h, w]; their brightness is the one that fits best."""
        model = SmoothModel(recipe)
        found = self.targets.decode(predict_logits(self.model, prepare(images, self.image_size)).numpy())
        found = {name: torch.from_numpy(value).float() for name, value in found.items()}
        found |= {name: torch.full((len(images),), value) for name, value in self.others.items()}
        found["amp"] = torch.ones(len(images))
        drawn, shown = model.images(model.pack(found)), images.flatten(1)
        bright = (drawn * shown).sum(1) / drawn.square().sum(1).clamp(min=1e-30)
        return found | {"amp": bright.clamp(min=1e-6)}


def train_starter(
    recipe: Recipe, images: Tensor | np.ndarray, params: Mapping[str, np.ndarray], image_size: int, settings: Settings
) -> Starter:
    """Train on images [n, 1, h, w] with parameters [n] by name; every tenth chooses the epoch. What is not estimated
    starts at its mean. InputError for fewer than twenty images."""
    if len(images) < 20:
        raise InputError(f"a network that starts fits needs twenty images or more, not {len(images)}")
    targets = scaled(params)
    wanted, inputs = torch.from_numpy(targets.encode(params)).float(), prepare(images, image_size)
    held = torch.arange(len(images)) % 10 == 0
    torch.manual_seed(settings.seed)
    model = create_model(MODEL, len(targets.names), image_size)
    parts = [(inputs[rows], wanted[rows]) for rows in (~held, held)]
    trained = train(model, *parts, settings, Numbers(targets, settings.loss))
    rest = [name for name in SmoothModel(recipe).names if name not in targets.names and name != "amp"]
    others = {name: float(np.mean(params[name])) for name in rest}
    return Starter(trained.model, targets, others, image_size, trained.seconds)
