"""What the outputs of a network mean to its training: how it is judged, and what becomes of labels when images turn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy


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


@dataclass(frozen=True)
class Reconstruction:
    """Images given back: outputs are the pieces of the loss in training, and the error of each image in evaluation (see
    `lenslib.anomaly.Reconstructor`). Nothing is to be told but the image, so that targets are not looked at."""

    def loss(self, outputs, targets):
        return outputs.sum()

    def judge(self, outputs, targets):
        loss = float(outputs.mean())
        return {"val_loss": loss, "val_score": -loss}

    def turned(self, targets, kind):
        return targets
