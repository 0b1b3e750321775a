"""The project's own convolutional networks."""

import math

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, grid_sample

from lenslib.models.registry import register


def _block(before: int, after: int, stride: int = 1, padding: int | tuple[int, int] = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class SmallCNN(nn.Module):
    """Four stages of 3x3 convolutions for images of 32 to about 200 pixels; about 0.2 M parameters at 40 pixels.

    The first stage keeps full resolution. The last map is read in three ways: its mean (how much overall), its maximum
    (the strongest anomaly anywhere), and a coarse map of where things are, since a lens sits in mid-image.
    """

    def __init__(
        self, num_outputs: int, image_size: int, in_chans: int = 1, widths: tuple[int, ...] = (16, 32, 64, 80)
    ):
        super().__init__()
        first, *rest = widths
        layers, size = [_block(in_chans, first)], image_size
        for before, after in zip(widths, rest, strict=False):
            layers += [_block(before, after, stride=2), _block(after, after)]
            size = -(-size // 2)
        self.features = nn.Sequential(*layers)
        self.places = min(size, 8)
        squeeze = nn.Sequential(nn.Conv2d(widths[-1], 24, kernel_size=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        linear = nn.Sequential(nn.Dropout(0.2), nn.Linear(24 * self.places**2, 64), nn.ReLU())
        self.squeeze, self.where = squeeze, linear
        self.head = nn.Linear(2 * widths[-1] + 64, num_outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images)
        where = self.where(adaptive_avg_pool2d(self.squeeze(features), self.places).flatten(1))
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3)), where], dim=1))


class PolarCNN(nn.Module):
    """Convolutions over radius and azimuth about the centre of the image; about 0.2 M parameters.

    A lensed source is nearly a ring. On this grid the ring is a straight line: a mass that shifts a part of it in
    radius moves it between rows, and the same 3x3 kernels serve at every azimuth. The grid reaches into the corners, a
    cell is a mean over samples about a pixel apart (0 outside the image), and azimuth is periodic.
    """

    def __init__(
        self,
        num_outputs: int,
        image_size: int,
        in_chans: int = 1,
        rings: int = 20,
        sectors: int = 48,
        widths: tuple[int, ...] = (16, 32, 64, 80),
    ):
        super().__init__()
        samples, grid = self._grid(image_size, rings, sectors)
        self.samples = samples
        self.register_buffer("grid", grid, persistent=False)
        first, *rest = widths
        rows_only = (1, 0)  # `forward` closes the azimuth itself
        stages = [_block(in_chans, first, padding=rows_only)]
        for before, after in zip(widths, rest, strict=False):
            stages += [_block(before, after, 2, rows_only), _block(after, after, padding=rows_only)]
            rings, sectors = -(-rings // 2), -(-sectors // 2)
        self.stages = nn.ModuleList(stages)
        self.across = nn.Sequential(
            nn.Conv2d(widths[-1], 96, kernel_size=(rings, 1), bias=False), nn.BatchNorm2d(96), nn.ReLU()
        )
        self.where = nn.Sequential(nn.Dropout(0.2), nn.Linear(96 * sectors, 64), nn.ReLU())
        self.head = nn.Linear(2 * 96 + 64, num_outputs)

    @staticmethod
    def _grid(image_size: int, rings: int, sectors: int) -> tuple[tuple[int, int], torch.Tensor]:
        """Samples a cell (radial, azimuthal), about a pixel apart, and where they lie, -1 to 1 across the image."""
        radial = math.ceil(image_size * math.sqrt(0.5) / rings)
        azimuthal = math.ceil(image_size * math.pi / sectors)
        radius = (torch.arange(rings * radial) + 0.5) * math.sqrt(2) / (rings * radial)
        azimuth = (torch.arange(sectors * azimuthal) + 0.5) * 2 * math.pi / (sectors * azimuthal)
        grid = torch.stack([radius[:, None] * azimuth.cos(), radius[:, None] * azimuth.sin()], dim=-1)
        return (radial, azimuthal), grid

    def polar(self, images: torch.Tensor) -> torch.Tensor:
        """Means [n, c, rings, sectors] over the cells of the polar grid; 0 outside the image."""
        grid = self.grid.to(images.dtype).expand(images.shape[0], -1, -1, -1)
        return avg_pool2d(grid_sample(images, grid, align_corners=False), self.samples)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.polar(images)
        for stage in self.stages:
            features = stage(torch.cat([features[..., -1:], features, features[..., :1]], dim=-1))
        around = self.across(features)[:, :, 0]
        return self.head(torch.cat([around.mean(2), around.amax(2), self.where(around.flatten(1))], dim=1))


for _name, _network in (("small_cnn", SmallCNN), ("polar_cnn", PolarCNN)):
    register(
        _name,
        "convolutional",
        source="lenslib",
        takes_size=lambda size: size >= 16,
        size_rule="16 pixels or more",
        precision="bf16-mixed",
        channels_last=True,
        compile=_name == "small_cnn",
    )(_network)
