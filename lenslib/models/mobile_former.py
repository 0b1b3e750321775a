"""Mobile-Former: MobileNet blocks beside a transformer of six tokens (Chen et al. 2021, arXiv:2108.05895).

Every block is four: tokens read the map, tokens speak among themselves, the map is convolved with activations that the
first token shapes, and the map reads the tokens (section 3.2). Both readings are attention whose map side has no
projection, which is what makes them cheap. What the paper leaves open follows the authors' code (mobile_former_294m and
mobile_former_508m, AAboys/MobileFormer): norms after the sums, tokens that attend with a projection of their queries
alone, gates on what they read, and slopes without offsets in the activations. Its stochastic depth is left out.
"""

import torch
from torch import nn
from torch.nn.functional import hardsigmoid, scaled_dot_product_attention

from lenslib.models.libraries import DEPTHWISE, at_least
from lenslib.models.registry import register

HEADS = 2  # of both readings


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[n, m, d] -> [n, heads, m, d / heads]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class TokensReadMap(nn.Module):
    """norm(tokens [n, m, d] + W_o attention(W_q tokens, map, map)), map [n, c, h, w] (equation 1).

    Each token weighs the channels that it reads by a gate from 0 to 2.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.query, self.gate, self.out = nn.Linear(dim, channels), nn.Linear(dim, channels), nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        pixels = _heads(x.flatten(2).transpose(1, 2), HEADS)
        read = scaled_dot_product_attention(_heads(self.query(tokens), HEADS), pixels, pixels)
        gated = read.transpose(1, 2).flatten(2) * (2 * hardsigmoid(self.gate(tokens)))
        return self.norm(tokens + self.out(gated))


class MapReadsTokens(nn.Module):
    """Map [n, c, h, w] + attention(map, W_k tokens, W_v tokens), tokens [n, m, d] (equation 2)."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.key, self.value = nn.Linear(dim, channels), nn.Linear(dim, channels)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        pixels = _heads(x.flatten(2).transpose(1, 2), HEADS)
        read = scaled_dot_product_attention(pixels, _heads(self.key(tokens), HEADS), _heads(self.value(tokens), HEADS))
        return x + read.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)


class Former(nn.Module):
    """Self-attention and a feed-forward layer of ratio 2 over the tokens [n, m, d]."""

    def __init__(self, dim: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        own = _heads(tokens, self.heads)
        heard = scaled_dot_product_attention(_heads(self.query(tokens), self.heads), own, own)
        tokens = self.norm1(tokens + self.out(heard.transpose(1, 2).flatten(2)))
        return self.norm2(tokens + self.feed_forward(tokens))


class DynamicReLU(nn.Module):
    """max(a1 x, a2 x), each channel's slopes from a token [n, d]: a1 within 1 of 1, a2 within 1 of 0.

    DY-ReLU (Chen et al. 2020, arXiv:2003.10027) without its offsets; where the token says nothing, a plain ReLU.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, 2 * channels))
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        first, second = (2 * hardsigmoid(self.layers(token)))[..., None, None].chunk(2, dim=1)
        return torch.maximum(first * x, (second - 1) * x)


def _conv(before: int, after: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


class Light(nn.Module):
    """A bottleneck whose depthwise convolution widens the map itself; [n, before, h, w] -> [n, after, h, w]."""

    def __init__(self, dim: int, before: int, after: int, hidden: int, stride: int = 1):
        super().__init__()
        self.depthwise, self.project = _conv(before, hidden, 3, stride, groups=before), _conv(hidden, after)
        self.activation = DynamicReLU(dim, hidden)

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return self.project(self.activation(self.depthwise(x), token))


class Halving(nn.Module):
    """Two light bottlenecks, the first of stride 2, the second of ratio 4 and with a shortcut."""

    def __init__(self, dim: int, before: int, after: int, hidden: int):
        super().__init__()
        self.first, self.second = Light(dim, before, after, hidden, 2), Light(dim, after, after, 4 * after)

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        x = self.first(x, token)
        return x + self.second(x, token)


class Mobile(nn.Module):
    """An inverted bottleneck; [n, before, h, w] -> [n, after, h, w], with a shortcut where these are equal."""

    def __init__(self, dim: int, before: int, after: int, hidden: int):
        super().__init__()
        self.shortcut = before == after
        self.expand, self.activation1 = _conv(before, hidden), DynamicReLU(dim, hidden)
        self.depthwise, self.activation2 = _conv(hidden, hidden, 3, groups=hidden), DynamicReLU(dim, hidden)
        self.project = _conv(hidden, after)

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        hidden = self.activation1(self.expand(x), token)
        out = self.project(self.activation2(self.depthwise(hidden), token))
        return x + out if self.shortcut else out


class Block(nn.Module):
    """(map [n, before, h, w], tokens [n, m, d]) -> (map [n, after, h / stride, w / stride], tokens)."""

    def __init__(self, dim: int, before: int, after: int, hidden: int, stride: int):
        super().__init__()
        self.read, self.former = TokensReadMap(dim, before), Former(dim)
        self.mobile = (Halving if stride == 2 else Mobile)(dim, before, after, hidden)
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
        self.stem = nn.Sequential(_conv(in_chans, stem, 3, stride=2), nn.ReLU6(inplace=True))
        self.light = nn.Sequential(_conv(stem, 2 * stem, 3, groups=stem), nn.ReLU6(inplace=True), _conv(2 * stem, stem))
        self.tokens = nn.Parameter(torch.randn(1, tokens, dim))
        self.blocks, before = nn.ModuleList(), stem
        for hidden, after, stride in blocks:
            self.blocks.append(Block(dim, before, after, hidden, stride))
            before = after
        self.read = TokensReadMap(dim, before)
        self.last = nn.Sequential(_conv(before, 6 * before), nn.ReLU6(inplace=True))
        layers = nn.Linear(6 * before + dim, head), nn.BatchNorm1d(head), nn.Hardswish(), nn.Linear(head, num_outputs)
        self.head = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, tokens = self.stem(images), self.tokens.expand(images.shape[0], -1, -1)
        x = x + self.light(x)
        for block in self.blocks:
            x, tokens = block(x, tokens)
        tokens, seen = self.read(tokens, x), nn.functional.hardswish(self.last(x).mean((2, 3)))
        return self.head(torch.cat([seen, tokens[:, 0]], dim=1))


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
