"""Unsupervised domain adaptation: a classifier of one recipe made to fit another of which there are images, no labels.

`adda` is adversarial (Tzeng et al. 2017, arXiv:1702.05464): a discriminator learns to tell what the last layer sees of
the source from what it sees of the target, and the network to deceive it. `self_ensemble` (French et al. 2018,
arXiv:1706.05208) trains on the source, and on the target towards the answers of a teacher, the moving average of the
network itself, under other turns and noise (the mean teacher of Tarvainen & Valpola 2017).

Neither takes a label of the target, nor chooses anything by one: the number of steps is fixed, the last step is kept.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lenslib.augmentation import AUGMENTATIONS, augmented, draw_kinds
from lenslib.errors import InputError, unknown
from lenslib.models.heads import heads
from lenslib.shift import encoded


@dataclass(frozen=True)
class Adaptation:
    """How to adapt. `augment`: turns of images, as in `lenslib.settings.Settings`; `jitter`: deviation of the noise
    added to what the networks see, in units of the prepared image. Of `adda`: `critic_rate`, the learning rate of the
    discriminator, and `critic_width`, the units in its two hidden layers. Of `self_ensemble`: `weight` of the target's
    loss (0: the target is not looked at), `ema` of the teacher, and `confidence` of the teacher from which on an image
    counts (French et al., section 3.2)."""

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-4
    augment: str = "d4"
    jitter: float = 0.1
    critic_rate: float = 1e-3
    critic_width: int = 128
    weight: float = 3.0
    ema: float = 0.99
    confidence: float = 0.968
    seed: int = 0

    def __post_init__(self):
        if self.steps < 0 or self.batch_size < 2:
            raise InputError(f"steps must be at least 0 and batch_size 2, not {self.steps} and {self.batch_size}")
        if self.augment not in AUGMENTATIONS:
            raise unknown("augment", self.augment, AUGMENTATIONS)
        if self.weight < 0 or not 0 <= self.ema < 1 or not 0 <= self.confidence < 1:
            raise InputError("weight must be 0 or more, ema and confidence at least 0 and below 1")


def adda(network: nn.Module, source: tuple[Tensor, Tensor], target: Tensor, how: Adaptation) -> nn.Module:
    """A copy of `network` (trained on the source) whose features of target images [n, c, h, w] pass for the source's.

    source: images and labels, of which only the images are used; its last layer stays as it is. In a batch norm, the
    statistics of the target replace those of the source. The network given is left alone.
    """
    before, adapted = copy.deepcopy(network).eval().requires_grad_(False), copy.deepcopy(network).train()
    for layer in adapted.modules():
        if isinstance(layer, nn.Dropout):  # by what it leaves out the target would be told from the source
            layer.eval()
    last = {id(weight) for head in heads(adapted) for weight in head.parameters()}
    with _seeded(how.seed):
        width, inputs = how.critic_width, heads(adapted)[0].in_features
        critic = nn.Sequential(
            nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )
        moving = [weight for weight in adapted.parameters() if id(weight) not in last]
        # little momentum, as adversaries are trained
        critics, encoder = (
            torch.optim.Adam(weights, lr=rate, betas=(0.5, 0.999))
            for weights, rate in ((critic.parameters(), how.critic_rate), (moving, how.learning_rate))
        )
        batches = zip(_batches(how, 0, source[0]), _batches(how, 1, target), strict=True)
        for (real,), (other,) in batches:
            with torch.no_grad():
                genuine = encoded(before, real)[0]
            features = encoded(adapted, other)[0]
            answers = critic(torch.cat([genuine, features.detach()]))[:, 0]
            is_source = (torch.arange(len(answers)) < len(genuine)).float()
            _step(critics, binary_cross_entropy_with_logits(answers, is_source))
            # inverted labels (equation 9 there): the encoder wants the target to be taken for the source
            deceived = critic(features)[:, 0]
            _step(encoder, binary_cross_entropy_with_logits(deceived, torch.ones_like(deceived)))
    return adapted.eval()


def self_ensemble(network: nn.Module, source: tuple[Tensor, Tensor], target: Tensor, how: Adaptation) -> nn.Module:
    """The teacher at the end, which began as a copy of `network` (trained on the source).

    source: images [n, c, h, w] and labels [n]; target: images. Source and target pass in batches of their own, so that
    a batch norm meets one domain at a time, and the teacher, which judges the target, keeps the target's statistics.
    """
    student, teacher = copy.deepcopy(network).train(), copy.deepcopy(network).requires_grad_(False)
    with _seeded(how.seed):
        optimizer = torch.optim.Adam(student.parameters(), lr=how.learning_rate)
        batches = zip(_batches(how, 0, *source), _batches(how, 1, target, views=2), strict=True)
        for (images, labels), (mine, other) in batches:
            loss = cross_entropy(student(images), labels)
            if how.weight:
                with torch.no_grad():
                    told = teacher.train()(other).softmax(1)
                sure = (told.amax(1) > how.confidence).float()
                apart = (student(mine).softmax(1) - told).square().mean(1)
                loss = loss + how.weight * (sure * apart).mean()
            _step(optimizer, loss)
            with torch.no_grad():
                for averaged, present in zip(teacher.parameters(), student.parameters(), strict=True):
                    averaged.lerp_(present, 1 - how.ema)
    return teacher.eval()


METHODS: dict[str, Callable[[nn.Module, tuple[Tensor, Tensor], Tensor, Adaptation], nn.Module]] = {
    "adda": adda,
    "self_ensemble": self_ensemble,
}


def _batches(how: Adaptation, stream: int, images: Tensor, labels: Tensor | None = None, views: int = 1) -> Iterator:
    """`steps` batches, in a new order each time round: as many differently turned and noisy views, then the labels."""
    generator = torch.Generator().manual_seed(2 * how.seed + stream)
    size, order = min(how.batch_size, len(images)), torch.empty(0, dtype=torch.int64)
    for _ in range(how.steps):
        if len(order) < size:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[:size], order[size:]
        shown = []
        for _ in range(views):
            turned = augmented(images[rows], draw_kinds(size, AUGMENTATIONS[how.augment], generator))
            shown.append(turned + how.jitter * torch.randn(turned.shape, generator=generator))
        yield (*shown, labels[rows]) if labels is not None else tuple(shown)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights and dropout drawn from `seed` within a `with` block, and the generator as it was after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
