"""CSWin Transformer: self-attention within crosses of stripes (Dong et al. 2021, arXiv:2107.00652).

Depths, heads, stripes and the convolutions between stages are those of CSWin_64_12211_tiny_224 in the authors' code,
microsoft/CSWin-Transformer, models/cswin.py; its stochastic depth is left out.
"""

import torch
from torch import nn
from torch.nn.functional import conv2d, scaled_dot_product_attention

from lenslib.models.libraries import TOKENS, multiples_of
from lenslib.models.registry import register


class CrossShapedAttention(nn.Module):
    """Half of the heads attend within horizontal stripes, half within vertical ones; [n, h, w, dim] -> the same.

    `stripe` is the width of a stripe in tokens and divides the map; a stripe as wide as the map is full attention, and
    then all heads share it. A depthwise convolution of the values tells positions apart (LePE, equation 7). Within a
    stripe too, as in the authors' code: at the border of a stripe it sees zeros, not the stripe beside it.
    """

    def __init__(self, dim: int, heads: int, stripe: int):
        super().__init__()
        self.head_dim, self.stripe = dim // heads, stripe
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=True), nn.Linear(dim, dim)
        self.positions = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, height, width, _ = x.shape
        cells = [(self.stripe, width), (height, self.stripe)]
        if self.stripe >= max(height, width):
            cells = [(height, width)]
        parts = zip(
            *(t.chunk(len(cells), dim=-1) for t in self.qkv(x).chunk(3, dim=-1)),
            self.positions.weight.chunk(len(cells)),
            self.positions.bias.chunk(len(cells)),
            strict=True,
        )
        attended = [self._within(*cell, *part) for cell, part in zip(cells, parts, strict=True)]
        return self.out(torch.cat(attended, dim=-1))

    def _within(self, height: int, width: int, q, k, v, weight, bias) -> torch.Tensor:
        """Attention and LePE within the height x width cells of the map [n, h, w, dim]."""
        n, all_rows, all_columns, dim = q.shape
        split = (n, all_rows // height, height, all_columns // width, width, dim)
        cells = [t.reshape(split).transpose(2, 3).flatten(0, 2) for t in (q, k, v)]  # [cell, height, width, dim]
        heads = (cell.flatten(1, 2).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for cell in cells)
        attended = scaled_dot_product_attention(*heads).transpose(1, 2).reshape(cells[2].shape)
        positions = conv2d(cells[2].permute(0, 3, 1, 2), weight, bias, padding=1, groups=dim).permute(0, 2, 3, 1)
        whole = (attended + positions).reshape(n, split[1], split[3], height, width, dim)
        return whole.transpose(2, 3).reshape(q.shape)


class Block(nn.Module):
    """[n, h, w, dim] -> the same."""

    def __init__(self, dim: int, heads: int, stripe: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CrossShapedAttention(dim, heads, stripe)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Embedding(nn.Module):
    """A strided convolution and a norm: [n, h, w, before] -> [n, h / stride, w / stride, after]."""

    def __init__(self, before: int, after: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class CSWin(nn.Module):
    """Four stages at strides 4, 8, 16, 32, then the mean; [n, in_chans, s, s] -> [n, num_outputs].

    Stripes are 1, 2, and s/32 tokens wide, and full in the last stage: 1, 2, 7, 7 at 224 pixels, as published.
    """

    def __init__(
        self,
        num_outputs: int,
        image_size: int,
        in_chans: int = 1,
        dim: int = 64,
        depths: tuple[int, ...] = (1, 2, 9, 1),
        heads: tuple[int, ...] = (2, 4, 8, 16),
    ):
        super().__init__()
        last = image_size // 32
        layers = [Embedding(in_chans, dim, kernel_size=7, stride=4, padding=2)]
        for stage, (depth, count, stripe) in enumerate(zip(depths, heads, (1, 2, last, last), strict=True)):
            if stage:
                layers.append(Embedding(dim, 2 * dim, kernel_size=3, stride=2, padding=1))
                dim = 2 * dim
            layers += [Block(dim, count, stripe) for _ in range(depth)]
        self.features = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_outputs)
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images.permute(0, 2, 3, 1))
        return self.head(self.norm(features).mean((1, 2)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


SETTINGS = {
    "cswin": ("9 blocks in stage 3", {}),
    "cswin_t": ("CSWin-T", {"depths": (1, 2, 21, 1)}),
}


def _register(name: str, text: str, setting: dict) -> None:
    source = f"Dong et al. 2021, arXiv:2107.00652, {text}; lenslib"

    @register(name, "transformer", source=source, **multiples_of(32), **TOKENS)
    def build(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
        return CSWin(num_outputs, image_size, in_chans, **(setting | options))


for _name, _setting in SETTINGS.items():
    _register(_name, *_setting)
