"""A-ViT: a vision transformer whose tokens halt when they have computed enough (Yin et al. 2021, arXiv:2112.07658).

Adaptive computation time (Graves 2016) for tokens: after every block the first element of a token gives its halting
score (equation 5), a token halts where its scores add up to 1 (equation 6), and the class token read out is the mean of
itself after each block, weighted by its scores (equation 9). Nothing is added to the ViT but two constants.
Training wants less computation at the same answer: add `0.0005 * ponder + 0.1 * divergence` to the loss (section 3.3).

The authors' code, NVlabs/A-ViT, differs from the paper in constants: it scales and shifts the score by 10 and -30 for
this size, weights the divergence by 0.001, takes it of the prior from what was found, over the number of blocks, and
counts the scores of tokens that have halted. Here the paper's stand. Both centre the prior on the ninth block.
"""

from typing import NamedTuple

import torch
from torch import nn

from lenslib.models.libraries import TOKENS
from lenslib.models.registry import register
from lenslib.models.transformers import patch_size, patched

SCALE, SHIFT = 5.0, -10.0  # of the score (section 4): untrained tokens run through every block
REST = 0.01  # a token halts when its scores reach 1 - REST
MASKED = -1e4  # added to the attention logits of halted tokens: nothing is left after softmax, and no row is all -inf
TARGET_DEPTH = 9  # centre of the prior over halting depths, which is a normal distribution of width 1


class Halting(NamedTuple):
    """Logits [n, num_outputs]; mean cost of the tokens of each image [n], in blocks; divergence from the prior, scalar.

    `depth` [n, tokens] is the number of blocks each token went through, class token first: a picture of where it looks.
    """

    logits: torch.Tensor
    ponder: torch.Tensor
    divergence: torch.Tensor
    depth: torch.Tensor


class AViT(nn.Module):
    """Token halting around a timm ViT with a class token; [n, in_chans, s, s] -> [n, num_outputs]."""

    def __init__(self, vit: nn.Module):
        super().__init__()
        self.vit = vit
        distance = torch.arange(1, len(vit.blocks) + 1) - TARGET_DEPTH * len(vit.blocks) / 12
        self.register_buffer("prior", torch.softmax(-(distance**2) / 2, dim=0), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.halting(images).logits

    def halting(self, images: torch.Tensor) -> Halting:
        """The forward pass with its costs, for the loss and for pictures."""
        vit = self.vit
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        total = tokens.new_zeros(tokens.shape[:2])  # sum of a token's scores so far
        running = torch.ones_like(total)  # 1 until it halts
        cost, depth, read_out, scores = torch.zeros_like(total), torch.zeros_like(total), 0.0, []
        for number, block in enumerate(vit.blocks, start=1):
            mask = (1 - running)[:, None, None, :] * MASKED
            tokens = block(tokens * running[..., None], attn_mask=mask.to(tokens.dtype))
            score = torch.sigmoid(SCALE * tokens[..., 0] + SHIFT) * running
            last = number == len(vit.blocks)
            stops = running if last else running * (total + score >= 1 - REST)
            # a token that halts here spends what is left of 1, one that goes on its score (equation 8)
            weight = torch.where(stops > 0, 1 - total, score)
            read_out = read_out + weight[:, :1] * tokens[:, 0]
            cost = cost + stops * (number + 1 - total)
            depth = depth + running
            scores.append((running if last else score).mean())
            total, running = total + score, running - stops
        logits = vit.forward_head(vit.norm(read_out[:, None]))
        found = torch.stack(scores) / torch.stack(scores).sum()
        divergence = (found * (found.clamp_min(1e-12) / self.prior).log()).sum()
        return Halting(logits, cost.mean(1), divergence, depth)


@register(
    "a_vit",
    "transformer",
    source="Yin et al. 2021, arXiv:2112.07658 (on a ViT of timm)",
    **patched(),
    **TOKENS,
    imagenet=True,
)
def a_vit(
    num_outputs: int, image_size: int, in_chans: int, model: str = "vit_tiny_patch16_224", **options
) -> nn.Module:
    """A-ViT-T: 12 blocks of 192 channels; `model` names another ViT of timm."""
    import timm

    fixed = {"patch_size": patch_size(image_size), "img_size": image_size}
    options = fixed | {"num_classes": num_outputs, "in_chans": in_chans} | options
    return AViT(timm.create_model(model, **options))
