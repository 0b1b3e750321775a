"""A network that reads a lens off a frame: trained on `draw_like` alone, it gives the fit of a real frame its start."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lenslib.frame_views import View, correlated_noise, draw_like, shown
from lenslib.metrics import macro_auc
from lenslib.models import create_model
from lenslib.recipe import Recipe
from lenslib.regression import Numbers
from lenslib.settings import Settings
from lenslib.targets import Targets
from lenslib.training import train

MODEL = "small_cnn"
_LOGARITHMIC = ("lens_theta_E", "R_sersic")
_COLUMNS = [("lens_theta_E", 0), ("R_sersic", 0)]
_COLUMNS += [(name, 2) for name in ("lens_e1", "lens_e2", "gamma1", "gamma2")]
_COLUMNS += [(name, 1) for name in ("source_center_x", "source_center_y")]
_NAMES = tuple(name for name, _ in _COLUMNS)


@dataclass(frozen=True)
class LensTargets(Targets):
    """A smooth lens and the place and size of its source, by lenstronomy's names (arcsec, the image's axes); Einstein
    radius and size as logarithms."""

    kind: str = "lens"
    names: tuple[str, ...] = _NAMES

    @property
    def columns(self) -> list[tuple[str, int]]:
        return _COLUMNS

    def encode(self, labels) -> np.ndarray:
        columns = [np.log(labels[name]) if name in _LOGARITHMIC else labels[name] for name in self.names]
        return (np.stack(columns, 1) - self.offset) / np.array(self.scale)

    def decode(self, outputs) -> dict[str, np.ndarray]:
        given = np.asarray(outputs, float) * self.scale + np.array(self.offset)
        found = dict(zip(self.names, given.T, strict=True))
        return found | {name: np.exp(found[name]) for name in _LOGARITHMIC}


def scaled(labels) -> LensTargets:
    """The targets with offset and scale of these labels; of what turns with an image, no offset and one scale."""
    plain = LensTargets(offset=(0.0,) * len(_NAMES), scale=(1.0,) * len(_NAMES))
    encoded = plain.encode(labels)
    offset, scale = encoded.mean(0), encoded.std(0)
    for k, _ in plain.pairs:
        offset[k : k + 2], scale[k : k + 2] = 0.0, np.sqrt((encoded[:, k : k + 2] ** 2).mean())
    return replace(plain, offset=tuple(offset.tolist()), scale=tuple(scale.tolist()))


@dataclass(frozen=True)
class LensNetwork:
    """A trained network, its targets, and what it cost; `history` has the validation loss of every epoch."""

    model: nn.Module
    targets: LensTargets
    history: list[dict[str, float]]
    seconds: float

    @torch.no_grad()
    def estimates(self, inputs: Tensor) -> dict[str, np.ndarray]:
        """Parameters by name [n] of inputs [n, 1, h, w], as `lenslib.frame_views.shown` makes them."""
        return self.targets.decode(torch.cat([self.model(part) for part in inputs.split(256)]).numpy())


def train_lens_network(recipe: Recipe, views: list[View], count: int, seed: int, settings: Settings) -> LensNetwork:
    """Train on `count` lenses drawn like the frames; every tenth chooses the epoch."""
    images, params, which = draw_like(recipe, views, count, seed)
    inputs, labels = shown(views, images, which), {name: params[name].numpy() for name in _NAMES}
    targets = scaled(labels)
    wanted, held = torch.from_numpy(targets.encode(labels)).float(), torch.arange(count) % 10 == 0
    torch.manual_seed(settings.seed)
    model = create_model(MODEL, len(_NAMES), inputs.shape[-1])
    parts = [(inputs[rows], wanted[rows]) for rows in (~held, held)]
    trained = train(model, *parts, settings, Numbers(targets, settings.loss))
    return LensNetwork(trained.model, targets, trained.history, trained.seconds)


def train_finder(recipe: Recipe, views: list[View], count: int, seed: int, settings: Settings) -> nn.Module:
    """A network whose outputs [n, 2] tell a lens (1) from a galaxy without one (0), trained on `count` of each, drawn
    like the frames: half of the others have a galaxy in the field that nothing lenses, and half of them nothing."""
    lenses, _, one = draw_like(recipe, views, count, seed)
    others, _, two = draw_like(recipe, views, count - count // 2, seed + 1, lensed=False)
    empty, three = empty_like(views, count // 2, seed + 2)
    which = torch.cat([one, two, three])
    inputs = shown(views, torch.cat([lenses, others, empty]), which)
    labels = (torch.arange(len(inputs)) < count).long()
    held = torch.arange(len(inputs)) % 10 == 0
    torch.manual_seed(settings.seed)
    model = create_model(MODEL, 2, inputs.shape[-1])
    parts = [(inputs[rows], labels[rows]) for rows in (~held, held)]
    return train(model, *parts, settings, macro_auc).model


def empty_like(views: list[View], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames' noise alone, images [n, 1, h, w] in counts/s, and the index of each one's frame [n]."""
    rng, which = np.random.default_rng([seed, 11]), torch.arange(count) % len(views)
    size = views[0].image.shape[-1]
    noise = np.concatenate([correlated_noise(views[k].grain, 1, size, rng) for k in which.tolist()])
    noise = torch.from_numpy(noise).float()[:, None] * torch.stack([view.noise for view in views])[which]
    return noise, which
