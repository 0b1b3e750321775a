"""A network that sees the moments of an image, and nothing else of it.

A roulette is a power series about the image, and the moments of the light are integrals over powers: few numbers that
hold how an image is bent. Hu 1962, IRE Trans. Inf. Theory 8, 179, recognised shapes by them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from lenslib.models.registry import register

# of the brightness, whose moments are taken: faint and bright parts of an image each have their say
POWERS = (0.5, 1.0, 2.0)


class MomentNetwork(nn.Module):
    """Central moments to `order` of each channel, in units of its width, then three hidden layers of `width`.

    The light is what lies above the faintest pixel, in units of the brightest: made for dark skies without noise.
    """

    def __init__(self, num_outputs: int, image_size: int, in_chans: int = 1, order: int = 6, width: int = 256):
        super().__init__()
        self.order = order
        self.terms = [(i, j) for i in range(order + 1) for j in range(order + 1 - i) if i + j]
        self.register_buffer("axis", 8 * (torch.arange(image_size) - (image_size - 1) / 2) / image_size)
        features = in_chans * (1 + len(POWERS) * (1 + len(self.terms)))
        # by the average over all batches: that of one batch is as uncertain as what is to be measured
        self.scale = nn.BatchNorm1d(features, affine=False, momentum=None)
        layers = [nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width), nn.SiLU(), nn.Linear(width, num_outputs))

    def moments(self, images: Tensor) -> Tensor:
        """[n, features] of images [n, c, h, w]."""
        light = images.flatten(0, 1)
        light = light - light.amin((1, 2), keepdim=True)
        light = light / light.amax((1, 2), keepdim=True).clamp(min=1e-12)
        total = light.sum((1, 2)).clamp(min=1e-6)
        offsets = []
        for dim in (1, 2):
            profile = light.sum(dim) / total[:, None]
            offsets.append(self.axis - (profile * self.axis).sum(1, keepdim=True))
        squares = [(light.sum(dim) * offset**2).sum(1) / total for dim, offset in zip((1, 2), offsets, strict=True)]
        size = (sum(squares) + 1e-6).sqrt()
        x, y = (torch.stack([(offset / size[:, None]) ** k for k in range(self.order + 1)], 1) for offset in offsets)
        found = [size.log()[:, None]]
        for power in POWERS:
            # the slope of a root at zero is infinite
            shown = light if power == 1 else (light + 1e-12) ** power
            table = y @ shown @ x.transpose(1, 2)
            mass = table[:, :1, :1].clamp(min=1e-6)
            found.append((mass[:, 0] / size[:, None] ** 2).log())
            found.append(torch.stack([(table / mass)[:, i, j] for i, j in self.terms], 1))
        return torch.cat(found, 1).view(images.shape[0], -1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.moments(images).float()
        if self.training:
            self.scale(found)
        scaled = batch_norm(found, self.scale.running_mean, self.scale.running_var)
        # high moments of single lenses are large
        return self.layers(torch.asinh(scaled))


@register(
    "moments",
    "moments",
    source="central moments to order 6 (Hu 1962, IRE Trans. Inf. Theory 8, 179) and three hidden layers; lenslib",
    takes_size=lambda size: size >= 16,
    size_rule="16 pixels or more",
)
def moments(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    """Image moments and a small perceptron."""
    return MomentNetwork(num_outputs, image_size, in_chans, **options)
