"""Mobile-Former: MobileNet blocks beside a transformer of six tokens (Chen et al. 2021, arXiv:2108.05895).

Every block is four: tokens read the map, tokens speak among themselves, the map is convolved with activations that the
first token shapes, and the map reads the tokens (section 3.2). Both readings are attention whose map side has no
projection, which is what makes them cheap.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lenslib.models.libraries import DEPTHWISE, at_least
from lenslib.models.registry import register

HEADS = 2  # of both readings


class TokensReadMap(nn.Module):
    """Tokens [n, m, d] + W_o attention(W_q tokens, map, map), map [n, c, h, w] (equation 1)."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query, self.out = nn.Linear(dim, channels), nn.Linear(channels, dim)

    def forward(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        pixels = x.unflatten(1, (HEADS, -1)).flatten(3).transpose(2, 3)
        query = self.query(self.norm(tokens)).unflatten(2, (HEADS, -1)).transpose(1, 2)
        read = scaled_dot_product_attention(query, pixels, pixels)
        return tokens + self.out(read.transpose(1, 2).flatten(2))


class MapReadsTokens(nn.Module):
    """Map [n, c, h, w] + attention(map, W_k tokens, W_v tokens), tokens [n, m, d] (equation 2)."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * channels)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        key, value = self.key_value(self.norm(tokens)).unflatten(2, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        pixels = x.unflatten(1, (HEADS, -1)).flatten(3).transpose(2, 3)
        read = scaled_dot_product_attention(pixels, key, value)
        return x + read.transpose(2, 3).reshape(x.shape)


class Former(nn.Module):
    """Self-attention and a feed-forward layer of ratio 2 over the tokens [n, m, d]."""

    def __init__(self, dim: int, heads: int = 4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm1(tokens)
        tokens = tokens + self.attention(x, x, x, need_weights=False)[0]
        return tokens + self.feed_forward(self.norm2(tokens))


class Shape(nn.Module):
    """Slopes and offsets [4, n, channels, 1, 1] of a dynamic ReLU from a token [n, d]; a plain ReLU at the start.

    DY-ReLU (Chen et al. 2020, arXiv:2003.10027): slopes within 1 of (1, 0), offsets within 0.5 of 0.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, 4 * channels))
        self.register_buffer("start", torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None], persistent=False)
        self.register_buffer("reach", torch.tensor([1.0, 1.0, 0.5, 0.5])[:, None], persistent=False)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        change = torch.tanh(self.layers(token) / 2).unflatten(1, (4, -1))
        return (self.start + self.reach * change).transpose(0, 1)[..., None, None]


def dynamic_relu(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """max(a1 x + b1, a2 x + b2), every channel and image with its own slopes and offsets."""
    slope1, slope2, offset1, offset2 = shape
    return torch.maximum(slope1 * x + offset1, slope2 * x + offset2)


def _conv(before: int, after: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


class Mobile(nn.Module):
    """An inverted bottleneck with a shortcut; one token shapes its activations. [n, before, h, w] -> [n, after, h, w].

    With `stride` 2 it is the light one: its depthwise convolution halves the map and widens it in one.
    """

    def __init__(self, dim: int, before: int, after: int, hidden: int, stride: int):
        super().__init__()
        self.shape = Shape(dim, hidden)
        self.shortcut = stride == 1 and before == after
        self.expand = _conv(before, hidden) if stride == 1 else None
        self.depthwise = _conv(hidden if stride == 1 else before, hidden, 3, stride, hidden if stride == 1 else before)
        self.project = _conv(hidden, after)

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        shape = self.shape(token)
        hidden = x if self.expand is None else dynamic_relu(self.expand(x), shape)
        out = self.project(dynamic_relu(self.depthwise(hidden), shape))
        return x + out if self.shortcut else out


class Block(nn.Module):
    """(map [n, before, h, w], tokens [n, m, d]) -> (map [n, after, h / stride, w / stride], tokens)."""

    def __init__(self, dim: int, before: int, after: int, hidden: int, stride: int):
        super().__init__()
        self.read, self.former = TokensReadMap(dim, before), Former(dim)
        self.mobile = Mobile(dim, before, after, hidden, stride)
        self.write = MapReadsTokens(dim, after)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.former(self.read(tokens, x))
        return self.write(self.mobile(x, tokens[:, 0]), tokens), tokens


class MobileFormer(nn.Module):
    """Stem, a light bottleneck, blocks given as (hidden, channels, stride), then mean map and first token to the head.

    [n, in_chans, s, s] -> [n, num_outputs].
    """

    def __init__(
        self,
        num_outputs: int,
        in_chans: int,
        stem: int,
        blocks: tuple[tuple[int, int, int], ...],
        tokens: int = 6,
        dim: int = 192,
        head: int = 1920,
    ):
        super().__init__()
        light = _conv(stem, 2 * stem, 3, groups=stem), nn.ReLU6(inplace=True), _conv(2 * stem, stem)
        self.stem = nn.Sequential(_conv(in_chans, stem, 3, stride=2), nn.Hardswish(), *light)
        self.tokens = nn.Parameter(torch.randn(1, tokens, dim))
        self.blocks, before = nn.ModuleList(), stem
        for hidden, after, stride in blocks:
            self.blocks.append(Block(dim, before, after, hidden, stride))
            before = after
        last = blocks[-1][0]
        self.last = nn.Sequential(_conv(before, last), nn.ReLU6(inplace=True))
        self.head = nn.Sequential(nn.Linear(last + dim, head), nn.Hardswish(), nn.Linear(head, num_outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, tokens = self.stem(images), self.tokens.expand(len(images), -1, -1)
        for block in self.blocks:
            x, tokens = block(x, tokens)
        return self.head(torch.cat([self.last(x).mean((2, 3)), tokens[:, 0]], dim=1))


SETTINGS = {  # table 1 and appendix A: multiply-adds (millions) at 224 pixels, width of the stem, blocks
    "mobileformer": (
        294,
        16,
        ((96, 24, 2), (96, 24, 1), (144, 48, 2), (192, 48, 1), (288, 96, 2), (384, 96, 1), (576, 128, 1))
        + ((768, 128, 1), (768, 192, 2), (1152, 192, 1), (1152, 192, 1)),
    ),
    "mobileformer_508": (
        508,
        24,
        ((144, 40, 2), (120, 40, 1), (240, 72, 2), (216, 72, 1), (432, 128, 2), (512, 128, 1), (768, 176, 1))
        + ((1056, 176, 1), (1056, 240, 2), (1440, 240, 1), (1440, 240, 1)),
    ),
}


def _register(name: str, cost: int, stem: int, blocks: tuple) -> None:
    source = f"Chen et al. 2021, arXiv:2108.05895, Mobile-Former-{cost}M; lenslib"

    @register(name, "transformer", source=source, **at_least(32), **DEPTHWISE)
    def build(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
        return MobileFormer(num_outputs, in_chans, stem, blocks, **options)


for _name, _setting in SETTINGS.items():
    _register(_name, *_setting)
