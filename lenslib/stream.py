"""Training images that are simulated while a network trains on those before, and never shown twice.

stream = Stream(load_recipe("deeplense_1"), count=12000)      # 12000 new images an epoch
train_classifier(stream, "small_cnn", image_size=75, settings=Settings())
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

import lenslib
from lenslib.dataset import prepare
from lenslib.errors import InputError
from lenslib.recipe import Recipe
from lenslib.simulate import sample_chunks


@dataclass(frozen=True)
class Stream:
    """An endless training set: epoch k (from 0) is images k `count` to (k + 1) `count` of the recipe under `seed`.

    As networks see them (see `prepare` for `image_size` and `crop`), simulated on `device` (`auto`: an accelerator
    where there is one). The images are those that `Recipe.sample` and `write_dataset` draw for the same seed.
    `validation_seed` is that of the images that choose the epoch: by default 3, as the workflow trains on 1 and tests
    on 2.
    Raises InputError for a count below 1, a seed that is no whole number of at least 0, and two equal seeds.
    """

    recipe: Recipe = field(repr=False)
    count: int
    seed: int = 0
    image_size: int = 64
    crop: int | None = None
    device: str = "auto"
    validation_seed: int = 3

    def __post_init__(self):
        for name, least in (("count", 1), ("seed", 0), ("validation_seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} of a stream must be a whole number of at least {least}, not {value!r}")
        if self.seed == self.validation_seed:
            raise InputError(f"training and validation have the same seed {self.seed}: give the stream another")
        if self.image_size < 1:
            raise InputError(f"image_size must be at least 1, not {self.image_size}")
        # what does not fit the recipe is refused here, not in the middle of a run
        pixels = self.recipe.instrument.pixels
        prepare(torch.zeros(1, self.recipe.channels, pixels, pixels), self.image_size, self.crop)

    def __len__(self) -> int:
        """Images of one epoch."""
        return self.count

    @property
    def classes(self) -> tuple[str, ...]:
        return self.recipe.classes

    @property
    def channels(self) -> int:
        return self.recipe.channels

    @property
    def units(self) -> str:
        return "light"

    @property
    def digest(self) -> str:
        """SHA-256 over what the images follow from: recipe, seed and library version."""
        said = json.dumps([self.recipe.to_yaml(), self.seed, lenslib.__version__])
        return hashlib.sha256(said.encode()).hexdigest()

    def batches(
        self, epoch: int, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [batch_size, c, image_size, image_size] and labels of one epoch (from 0), the last batch cut short.

        The order is the recipe's own, which is random, so the generator is not used.
        """
        images, labels = [], []
        for new_images, new_labels in _ahead(self._prepared(self.seed, epoch * self.count, self.count)):
            images, labels = torch.cat([*images, new_images]), torch.cat([*labels, new_labels])
            whole = len(labels) // batch_size * batch_size
            for first in range(0, whole, batch_size):
                yield images[first : first + batch_size], labels[first : first + batch_size]
            images, labels = [images[whole:]], [labels[whole:]]
        if len(labels[0]):
            yield images[0], labels[0]

    def validation(self, count: int) -> tuple[Tensor, Tensor]:
        """Images and labels of the same recipe under `validation_seed`, on the processor."""
        parts = [(images.cpu(), labels.cpu()) for images, labels in self._prepared(self.validation_seed, 0, count)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _prepared(self, seed: int, start: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":  # this process's own, where there are several; another thread would take the first
            device = f"cuda:{torch.cuda.current_device()}"
        chunks = sample_chunks(self.recipe, count, seed, start, device)
        return ((prepare(batch.images, self.image_size, self.crop), batch.labels) for batch in chunks)


def _ahead(items: Iterator) -> Iterator:
    """The same items, each made in another thread while the one before is in use: numpy and torch let go of the
    interpreter's lock while they work."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item
