"""Attention rollout: how much of each part of an image has reached the answer of a vision transformer, layer by layer.

shares = attention_rollout(classifier.network, classifier.prepare(images))  # [layers, n, side, side]

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lenslib.errors import InputError


def rollout(attention: Tensor) -> Tensor:
    """Attention [layers, ..., heads, tokens, tokens] of every layer -> the share [layers, ..., tokens, tokens] that
    each token (row), after that layer, has of each token of the first layer's input (column). Rows sum to 1.

    The mean over heads and the identity, which stands for the shortcut past the attention, count one half each
    (section 3), and a layer's shares are its matrix times those of the layer before (equation 1).
    Raises InputError for attention that is negative or whose rows do not sum to 1.
    """
    if attention.ndim < 4 or attention.shape[-1] != attention.shape[-2]:
        raise InputError(f"attention must be [layers, ..., heads, tokens, tokens], not {list(attention.shape)}")
    sums = attention.sum(-1)
    if (attention < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise InputError("attention must be non-negative with rows that sum to 1: give it after the softmax")
    mixed = (attention.mean(-3) + torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)) / 2
    shares = [mixed[0]]
    for layer in mixed[1:]:
        shares.append(layer @ shares[-1])
    return torch.stack(shares)


@torch.no_grad()
def attention_maps(network: nn.Module, images: Tensor) -> Tensor:
    """Attention [layers, n, heads, tokens, tokens] of every layer for images [n, c, h, w] as the network sees them.

    Of networks that attend plainly over one grid of tokens from the first layer to the last, with or without a class
    token before it: `vit_tiny`, `vit`, `vit_b_16`, `a_vit` and `cpvt`. InputError for others: windows and maps that
    shrink have no one matrix to multiply.
    """
    from timm.layers import Attention

    layers = [module for module in network.modules() if isinstance(module, Attention)]
    with _recorded(network, layers) as found:
        network(images)
    shapes = {tuple(attention.shape) for attention in found}
    if len(shapes) != 1 or next(iter(shapes))[0] != len(images):
        raise InputError(
            f"{type(network).__name__} does not attend over one grid of tokens in all layers; rollout is for a plain "
            "vision transformer: vit_tiny, vit, vit_b_16, a_vit or cpvt"
        )
    return torch.stack(found)


def attention_rollout(network: nn.Module, images: Tensor) -> Tensor:
    """Share [layers, n, side, side] that the answer has of each patch of images [n, c, h, w], after every layer.

    The answer is read from the class token, whose share of itself is what is missing to a sum of 1, or else from the
    mean of all tokens. Rows of patches in the order of rows of pixels. InputError as in `attention_maps`.
    """
    shares = rollout(attention_maps(network, images))
    side = int((shares.shape[-1]) ** 0.5)
    has_class_token = side**2 != shares.shape[-1]
    answer = shares[:, :, 0, 1:] if has_class_token else shares.mean(-2)
    return answer.unflatten(-1, (side, side))


@contextmanager
def _recorded(network: nn.Module, layers: list[nn.Module]):
    """A list that fills with the attention of each layer during a forward pass, in evaluation mode."""
    found, was_training, fused = [], network.training, [layer.fused_attn for layer in layers]
    # the fused kernel never forms the matrix; without it, the dropout after the softmax is handed it
    hooks = [layer.attn_drop.register_forward_pre_hook(lambda _, args: found.append(args[0])) for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        network.eval()
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for layer, setting in zip(layers, fused, strict=True):
            layer.fused_attn = setting
        network.train(was_training)
