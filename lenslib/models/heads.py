"""The last layer of a network, which alone is new where weights come from another task."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.functional import dropout

from lenslib.models.registry import create_model, load_weights


def starting_network(name: str, num_outputs: int, image_size: int, in_chans: int, weights: str) -> nn.Module:
    """A registered model to be trained from `weights`: "" (new), "imagenet", a .safetensors file or a run's folder.

    Heads for another number of outputs stay new. InputError as `create_model`.
    """
    network = create_model(name, num_outputs, image_size, in_chans, "imagenet" if weights == "imagenet" else None)
    if weights not in ("", "imagenet"):
        load_weights(network, weights, new=head_names(network))
    return network


def heads(network: nn.Module) -> list[nn.Module]:
    """The layers that give the outputs; a few networks have two, whose outputs are averaged."""
    if hasattr(network, "get_classifier"):  # timm's own word
        found = network.get_classifier()
        return list(found) if isinstance(found, tuple | nn.ModuleList) else [found]
    last = [name for name, _ in network.named_parameters()][-1].rpartition(".")[0]
    return [network.get_submodule(last)]


def head_names(network: nn.Module) -> tuple[str, ...]:
    """The names of the weights of the heads in the state dict."""
    mine = {id(module) for head in heads(network) for module in head.modules()}
    places = [name for name, module in network.named_modules() if id(module) in mine]
    return tuple(key for key in network.state_dict() if key.rpartition(".")[0] in places)


@contextmanager
def add_dropout(network: nn.Module, share: float) -> Iterator[None]:
    """Leave out a share of what the heads see while the network is in training mode, within a `with` block."""

    def drop(layer: nn.Module, inputs: tuple):
        return (dropout(inputs[0], share, layer.training),)

    hooks = [layer.register_forward_pre_hook(drop) for layer in heads(network)] if share else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
