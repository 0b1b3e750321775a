"""How networks fail to learn, in small: the loop of the thesis *Intergalactic Machine Vision* (NTNU 2023) with its flaw
to be turned on and off, its AlexNet at any width, and probes of what happens in the first steps.

settings = replace(THESIS, batch_size=100)
losses = fit(alexnet(6, width=1 / 16), images, targets, settings)
collapsed(relative_losses(losses, targets, settings.loss)[-1])
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lenslib.errors import InputError
from lenslib.models import load_weights
from lenslib.settings import LOSSES, OPTIMIZERS, Settings
from lenslib.training import predict_logits, rate_share

# the collapse study's: section "Regression", table 3.1
THESIS = Settings(
    epochs=10,
    batch_size=10,
    learning_rate=1e-3,
    weight_decay=0.0,
    warmup=0.0,
    ema=0.0,
    optimizer="adam",
    schedule="constant",
    clip_norm=0.0,
    loss="mse",
    augment="none",
    precision="32-true",
)


def alexnet(num_outputs: int, width: float = 1.0, hidden: tuple[int, ...] = (), weights=None) -> nn.Module:
    """AlexNet for one channel and 63 pixels or more, all its layers narrowed to the share `width` of their channels.

    Of width 1 it is torchvision's, by the names and shapes of its weights. `hidden` are sizes of more fully connected
    layers before the outputs, as the thesis added them. `weights`: a .safetensors file of the same network.
    Raises InputError for a width that leaves no channel, and for weights that do not fit.
    """
    from torchvision.models import AlexNet

    if not 1 / 64 <= width <= 4:
        raise InputError(f"width must be a share from 1/64 to 4, not {width}")
    with torch.device("meta"):  # of its 57 million weights none is kept
        network = AlexNet()
    channels, before = [round(count * width) for count in (64, 192, 384, 256, 256)], 1
    places = [k for k, layer in enumerate(network.features) if isinstance(layer, nn.Conv2d)]
    for place, count in zip(places, channels, strict=True):
        old = network.features[place]
        network.features[place] = nn.Conv2d(before, count, old.kernel_size, old.stride, old.padding)
        before = count
    inner = round(4096 * width)
    network.classifier[1] = nn.Linear(36 * channels[-1], inner)
    network.classifier[4] = nn.Linear(inner, inner)
    sizes = [inner, *hidden, num_outputs]
    head = [nn.Linear(first, last) for first, last in zip(sizes, sizes[1:], strict=False)]
    network.classifier[6] = head[0]
    for layer in head[1:]:
        network.classifier.extend([nn.ReLU(inplace=True), layer])
    if weights is not None:
        load_weights(network, weights)
    return network


def mnasnet(num_outputs: int, width: float = 1.0, momentum: float | None = None) -> nn.Module:
    """torchvision's MnasNet for one channel; `momentum` of its batch norms (None: its own, 1 - 0.9997, the share by
    which each batch moves the mean and variance that evaluation uses)."""
    from torchvision.models import MNASNet

    network = MNASNet(width, num_classes=num_outputs)
    stem = network.layers[0]
    network.layers[0] = nn.Conv2d(1, stem.out_channels, 3, stride=2, padding=1, bias=False)
    for layer in batch_norms(network):
        layer.momentum = layer.momentum if momentum is None else momentum
    return network


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch normalisations of a network, in order."""
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def bare_optimizer(network: nn.Module, settings: Settings, betas: tuple[float, float] | None = None):
    """The optimiser of the settings; `betas` are Adam's memories of gradients and of their squares."""
    optimizer = OPTIMIZERS[settings.optimizer](network.parameters(), settings)
    if betas is not None:
        for group in optimizer.param_groups:
            group["betas"] = betas
    return optimizer


def fit(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    settings: Settings,
    train_once: bool = True,
    betas: tuple[float, float] | None = None,
    each_step: Callable[[int, float], bool | None] = lambda step, loss: None,
) -> np.ndarray:
    """Train on images [n, c, h, w] and targets [n, k] as the thesis did; mean training loss of each epoch [epochs].

    No average of weights and no choice of an epoch: what is judged is the network as it stands at the end. Of the
    settings, all but `ema`, `augment`, `precision` and `label_smoothing` count. With `train_once`, `train()` is called
    before the first epoch alone, and the test after it leaves evaluation mode behind: from the second epoch on, dropout
    is off and batch norms are frozen. `each_step(step, loss)` is called once the gradients of step 0, 1, ... are there,
    before the weights move; True ends the training.
    A loss that is not finite ends it as well, and is infinite in what is returned. InputError for images and targets
    that do not match.
    """
    if len(images) != len(targets) or not len(images):
        raise InputError(f"{len(images)} images and {len(targets)} targets: give one row of targets an image")
    optimizer, loss_of = bare_optimizer(network, settings, betas), LOSSES[settings.loss]
    steps = settings.epochs * -(-len(images) // settings.batch_size)
    scheduler = LambdaLR(optimizer, lambda step: rate_share(step, steps, settings))
    generator = torch.Generator().manual_seed(settings.seed)
    losses, step = np.full(settings.epochs, np.inf), 0
    network.train()
    for epoch in range(settings.epochs):
        total = torch.zeros((), device=images.device)
        for rows in torch.randperm(len(images), generator=generator).to(images.device).split(settings.batch_size):
            loss = loss_of(network(images[rows]), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            if each_step(step, loss):
                return losses[:epoch]
            optimizer.step()
            scheduler.step()
            total, step = total + loss.detach() * len(rows), step + 1
        if not torch.isfinite(total):
            break
        losses[epoch] = float(total) / len(images)
        network.train(not train_once)
    return losses


def constant_loss(targets: Tensor, loss: str = "mse") -> float:
    """The loss on targets [n, k] of always answering their means."""
    return float(LOSSES[loss](targets.mean(0).expand_as(targets), targets))


def relative_losses(losses: np.ndarray, targets: Tensor, loss: str = "mse") -> np.ndarray:
    """Training losses [epochs] over that of answering the means."""
    return np.asarray(losses) / constant_loss(targets, loss)


def collapsed(relative: np.ndarray) -> np.ndarray:
    """The thesis's criterion, for relative losses of last epochs, of any shape: no better than answering the means."""
    return ~(np.asarray(relative) < 1)


def share_with_interval(count: int, total: int) -> dict[str, float]:
    """`count` of `total` as a share, with its 95 % interval (Clopper & Pearson 1934)."""
    bounds = binomtest(count, total).proportion_ci(method="exact")
    return {"value": count / total, "low": float(bounds.low), "high": float(bounds.high)}


def weighted_layers(network: nn.Module) -> list[nn.Module]:
    """The convolutions and fully connected layers of a network, in order."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@torch.no_grad()
def preactivations(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What each weighted layer gives, before its ReLU, [n, units] each, in evaluation mode."""
    layers, found = weighted_layers(network), []
    # copied, for a ReLU that works in place comes next
    hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out.flatten(1).clone())) for layer in layers]
    was_training = network.training
    network.eval()
    try:
        network(images)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return found


@dataclass
class Trace:
    """What happened in the first steps of a training, before each: `loss` [steps]; by weighted layer [steps, layers]:
    `dead`, the share of units that are below zero in every image; `spread`, how far the units' values after the ReLU
    (of the outputs: as they are) differ between images, in standard deviations as a share of their root mean square;
    `gradient`, the norm of the gradient over that of the weights; `push`, the change of the values before the ReLU
    since the step before, root mean square, over their root mean square at the start."""

    loss: np.ndarray
    dead: np.ndarray
    spread: np.ndarray
    gradient: np.ndarray
    push: np.ndarray
    output_spread: np.ndarray


def trace(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    settings: Settings,
    steps: int,
    shown: int = 64,
    betas: tuple[float, float] | None = None,
) -> Trace:
    """`fit` for so many steps, watched on the first `shown` images; `output_spread` [steps] is the standard deviation
    of the outputs between images over that of the targets."""
    seen: dict[str, list] = {name: [] for name in Trace.__dataclass_fields__}
    watched, scale, state = images[:shown], targets.std(0).mean(), {}

    def each_step(step, loss):
        values = preactivations(network, watched)
        state.setdefault("start", [value.pow(2).mean().sqrt() for value in values])
        moved = [(new - old).pow(2).mean().sqrt() for new, old in zip(values, state.get("last", values), strict=True)]
        state["last"] = values
        shape = [value.relu() for value in values[:-1]] + values[-1:]
        size = [value.pow(2).mean().sqrt().clamp(min=1e-30) for value in shape]
        weights = [layer.weight for layer in weighted_layers(network)]
        seen["loss"].append(float(loss.detach()))
        seen["dead"].append([float((value <= 0).all(0).float().mean()) for value in values])
        seen["spread"].append([float(v.std(0).pow(2).mean().sqrt() / s) for v, s in zip(shape, size, strict=True)])
        seen["gradient"].append([float(weight.grad.norm() / weight.detach().norm()) for weight in weights])
        seen["push"].append([float(m / s.clamp(min=1e-30)) for m, s in zip(moved, state["start"], strict=True)])
        seen["output_spread"].append(float(values[-1].std(0).mean() / scale))
        return step + 1 >= steps

    fit(network, images, targets, settings, betas=betas, each_step=each_step)
    return Trace(**{name: np.array(values, dtype=np.float32) for name, values in seen.items()})


def transfer(network: nn.Module, state: dict[str, Tensor]) -> int:
    """Take over all weights of another network's state dict that have the same name and shape, but not those of the
    last layer; how many tensors. InputError when none fits."""
    last = [name for name, _ in network.named_parameters()][-1].rpartition(".")[0]
    own = network.state_dict()
    taken = {
        name: value
        for name, value in state.items()
        if name in own and value.shape == own[name].shape and not name.startswith(f"{last}.")
    }
    if not taken:
        raise InputError("none of these weights fits the network; they must come from the same network and width")
    network.load_state_dict(taken, strict=False)
    return len(taken)


def outputs_of(network: nn.Module, images: Tensor) -> np.ndarray:
    """Outputs [n, k] in evaluation mode; the network is left in the mode in which it was."""
    was_training = network.training
    outputs = predict_logits(network, images)
    network.train(was_training)
    return outputs.numpy()
