"""Convolutional networks."""

import torch
from torch import nn

from lenslib.models.registry import register


class SmallCNN(nn.Module):
    """Four stages of 3x3 convolutions for images of 32 to about 200 pixels; 0.17 M parameters.

    Substructure shows as kinks of one or two pixels along the arcs, so the first stage keeps full resolution.
    The last map is pooled by mean (how much overall) and by maximum (the strongest anomaly anywhere).
    """

    def __init__(self, num_outputs: int, in_chans: int = 1, widths: tuple[int, ...] = (16, 32, 64, 80)):
        super().__init__()
        first, *rest = widths
        layers = [self._block(in_chans, first)]
        for before, after in zip(widths, rest, strict=False):
            layers += [self._block(before, after, stride=2), self._block(after, after)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * widths[-1], num_outputs)

    @staticmethod
    def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images)
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))


@register(
    "small_cnn",
    "convolutional",
    source="lenslib",
    takes_size=lambda size: size >= 16,
    size_rule="16 pixels or more",
    precision="bf16-mixed",
    channels_last=True,
)
def small_cnn(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    return SmallCNN(num_outputs, in_chans, **options)


@register(
    "resnet18",
    "convolutional",
    source="He et al. 2015, arXiv:1512.03385; timm",
    takes_size=lambda size: size >= 32,
    size_rule="32 pixels or more",
    precision="bf16-mixed",
    channels_last=True,
    imagenet=True,
)
def resnet18(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    import timm

    return timm.create_model("resnet18", num_classes=num_outputs, in_chans=in_chans, **options)
