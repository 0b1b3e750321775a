"""RVT, the Robust Vision Transformer (Mao et al. 2021, arXiv:2105.07926), with its position-aware attention: RVT*.

The paper keeps, of the parts of recent transformers, those that made them robust: a convolutional stem in place of bare
patches, few stages, a depthwise convolution inside the feed-forward layers, no position embedding and no class token;
positions enter by a learnt weight on every pair of tokens instead. Its patch-wise augmentation belongs to training.

Sizes, stem, feed-forward layers and which blocks are position-aware follow the authors' code (rvt_tiny_plus and
rvt_small_plus of robust_models.py, vtddggg/Robust-Vision-Transformer). That code passes the learnt weight through a
sigmoid, of which the paper's formula knows nothing; here it is the formula's. The stem is padded by 3 pixels in place
of 2, so that its map is half as wide as the image.
"""

import torch
from torch import nn

from lenslib.models.libraries import TOKENS
from lenslib.models.registry import register
from lenslib.models.transformers import patch_size, patched

STRIDES = (4, 8, 12, 16)  # pixels between tokens, of which 4 belong to the stem


class PositionAwareAttention(nn.Module):
    """Self-attention over [n, tokens, dim], softmax(q k^T * W / sqrt(d)) v, W learnt for each head and pair of tokens.

    W starts at 1, where this is plain attention; without `positions` it stays there.
    """

    def __init__(self, dim: int, heads: int, tokens: int, positions: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.importance = nn.Parameter(torch.ones(heads, tokens, tokens)) if positions else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5
        if self.importance is not None:
            logits = logits * self.importance
        return self.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, dim))


class Block(nn.Module):
    """Attention, then a feed-forward layer that also looks at the 3x3 neighbours; [n, dim, h, w] -> the same."""

    def __init__(self, dim: int, heads: int, tokens: int, positions: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = PositionAwareAttention(dim, heads, tokens, positions)
        hidden = 4 * dim
        self.feed_forward = nn.Sequential(
            nn.Conv2d(dim, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, dim, 1),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        return self._map(tokens, x) + self.feed_forward(self._map(self.norm2(tokens), x))

    @staticmethod
    def _map(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).reshape(like.shape)


class RVT(nn.Module):
    """Stem, stages of blocks with a halving of the map between them, mean over the tokens; -> [n, num_outputs].

    `positions` is the number of blocks, from the first, whose attention is position-aware.
    """

    def __init__(
        self,
        num_outputs: int,
        image_size: int,
        in_chans: int = 1,
        dims: tuple[int, ...] = (192, 384),
        depths: tuple[int, ...] = (10, 2),
        heads: tuple[int, ...] = (6, 12),
        positions: int = 10,
        stride: int | None = None,
    ):
        super().__init__()
        stride = stride or patch_size(image_size, STRIDES)
        side, built = image_size // stride, 0
        layers = [
            nn.Conv2d(in_chans, 32, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(32, dims[0], stride // 4, stride=stride // 4),
        ]
        for stage, (dim, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
            if stage:
                layers.append(nn.Conv2d(dims[stage - 1], dim, 3, stride=2, padding=1, groups=dims[stage - 1]))
                side = -(-side // 2)
            for _ in range(depth):
                layers.append(Block(dim, count, side**2, built < positions))
                built += 1
        self.features = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], num_outputs)
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.features(images).mean((2, 3))))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


SETTINGS = {
    "rvt": ("Ti*", {}),
    "rvt_s": ("S*", {"dims": (384,), "depths": (12,), "heads": (6,), "positions": 5}),
}


def _register(name: str, size: str, setting: dict) -> None:
    source = f"Mao et al. 2021, arXiv:2105.07926, RVT-{size}; lenslib"

    @register(name, "transformer", source=source, **patched(STRIDES), **TOKENS)
    def build(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
        return RVT(num_outputs, image_size, in_chans, **(setting | options))


for _name, _setting in SETTINGS.items():
    _register(_name, *_setting)
