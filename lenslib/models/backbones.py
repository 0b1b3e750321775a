"""Convolutional networks of timm and torchvision, one line a model: name, paper, sizes, what is fast, weights.

Sizes are those of which every pixel reaches the output: kernels without padding drop the last rows of others.
"""

from torch import nn

from lenslib.models.libraries import (
    DENSE,
    DEPTHWISE,
    IMAGENET,
    at_least,
    covered,
    multiples_of,
    register_timm,
    register_torchvision,
    remainders,
)
from lenslib.models.registry import register

VGG = "Simonyan & Zisserman 2014, arXiv:1409.1556"
RESNET = "He et al. 2015, arXiv:1512.03385"
RESNEXT = "Xie et al. 2016, arXiv:1611.05431"
WIDE = "Zagoruyko & Komodakis 2016, arXiv:1605.07146"
DENSENET = "Huang et al. 2016, arXiv:1608.06993"
INCEPTION = "Szegedy et al. 2015, arXiv:1512.00567"
MNASNET = "Tan et al. 2018, arXiv:1807.11626"
EFFICIENTNET = "Tan & Le 2019, arXiv:1905.11946"
EFFICIENTNET_V2 = "Tan & Le 2021, arXiv:2104.00298"
CONVNEXT = "Liu et al. 2022, arXiv:2201.03545"
CONVNEXT_ATTO = "Liu et al. 2022, arXiv:2201.03545, atto: Woo et al. 2023, arXiv:2301.00808"


def _timm(name: str, paper: str, sizes: dict, facts: dict, model: str | None = None) -> None:
    register_timm(name, "convolutional", paper, sizes, facts, model)


# the paper's shallowest, with 512 in place of 4096 in its head, where most of the weights of a VGG are
register_timm("vgg11_bn_narrow", "convolutional", VGG, at_least(32), DENSE, "vgg11_bn", mlp_ratio=0.125)
_timm("vgg16_bn", VGG, at_least(32), DENSE | IMAGENET)
_timm("vgg19_bn", VGG, at_least(32), DENSE | IMAGENET)
_timm("resnet18", RESNET, at_least(32), DENSE | IMAGENET)
_timm("resnet34", RESNET, at_least(32), DENSE | IMAGENET)
_timm("resnet50", RESNET, at_least(32), DENSE | IMAGENET)
_timm("resnet101", RESNET, at_least(32), DENSE | IMAGENET)
_timm("resnet152", RESNET, at_least(32), DENSE | IMAGENET)
_timm("resnext50", RESNEXT, at_least(32), DENSE | IMAGENET, model="resnext50_32x4d")
_timm("wide_resnet50", WIDE, at_least(32), DENSE | IMAGENET, model="wide_resnet50_2")
_timm("densenet121", DENSENET, at_least(32), DENSE | IMAGENET)
_timm("densenet201", DENSENET, at_least(32), DENSE | IMAGENET)
_timm("inception_v3", INCEPTION, remainders(8, (3, 5), least=75), DENSE | IMAGENET)
_timm("mnasnet1_0", MNASNET, at_least(32), DEPTHWISE | IMAGENET, model="mnasnet_100")
_timm("efficientnet_b0", EFFICIENTNET, at_least(32), DEPTHWISE | IMAGENET)
_timm("efficientnet_b2", EFFICIENTNET, at_least(32), DEPTHWISE | IMAGENET)
_timm("convnext_atto", CONVNEXT_ATTO, multiples_of(4), DEPTHWISE | IMAGENET)
_timm("convnext_tiny", CONVNEXT, multiples_of(4), DEPTHWISE | IMAGENET)
_timm("convnext_base", CONVNEXT, multiples_of(4), DEPTHWISE | IMAGENET)


def _squeezenet_head(network: nn.Module, final_relu: bool = False) -> None:
    """Take away the ReLU after the last convolution, unless `final_relu`: behind it no output can be negative."""
    if not final_relu:
        network.classifier[2] = nn.Identity()


register_torchvision(
    "alexnet",
    "Krizhevsky 2014, arXiv:1404.5997",
    remainders(8, (0, 1, 7), least=63),  # kernel 11, stride 4, padding 2, then a pooling of 3, stride 2
    DENSE | IMAGENET,
)


def _narrow_head(network: nn.Module, width: int = 512) -> None:
    """Two hidden layers of `width` in place of 4096, which hold nine tenths of AlexNet's weights."""
    head = network.classifier
    head[1], head[4] = nn.Linear(head[1].in_features, width), nn.Linear(width, width)
    head[6] = nn.Linear(width, head[6].out_features)


register_torchvision(
    "alexnet_narrow",
    "Krizhevsky 2014, arXiv:1404.5997, a head of 512",
    remainders(8, (0, 1, 7), least=63),
    DENSE,
    model="alexnet",
    change=_narrow_head,
)
register_torchvision(
    "squeezenet1_1",
    "Iandola et al. 2016, arXiv:1602.07360",
    covered(3, stride=2),
    DENSE | IMAGENET,
    change=_squeezenet_head,
)
# timm has no weights for these under the papers' own padding, torchvision has
register_torchvision("efficientnet_b7", EFFICIENTNET, at_least(32), DEPTHWISE | IMAGENET)
register_torchvision("efficientnetv2_s", EFFICIENTNET_V2, at_least(32), DEPTHWISE | IMAGENET, model="efficientnet_v2_s")
register_torchvision("efficientnetv2_l", EFFICIENTNET_V2, at_least(32), DEPTHWISE | IMAGENET, model="efficientnet_v2_l")


@register("mnasnet6_0", "convolutional", source=f"{MNASNET}, width x 6; torchvision", **at_least(32), **DEPTHWISE)
def mnasnet6_0(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    """MnasNet of six times the published width, as the roulette regressions used it."""
    from torchvision.models import MNASNet

    class Current(MNASNet):
        """Loads without the version number that torchvision wants and safetensors does not keep."""

        _load_from_state_dict = nn.Module._load_from_state_dict

    network = Current(6.0, num_classes=num_outputs, **options)
    stem = network.layers[0]
    if in_chans != stem.in_channels:
        network.layers[0] = nn.Conv2d(in_chans, stem.out_channels, 3, stride=2, padding=1, bias=False)
    return network


def _register_scratch(name: str, block: str, text: str) -> None:
    @register(name, "convolutional", source=f"{RESNET}, {text}; timm", **at_least(32), **DENSE)
    def build(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
        from timm.models import resnet

        return resnet.ResNet(getattr(resnet, block), (3, 4, 6, 3), num_outputs, in_chans, **options)


# The pair of the 2025 DeepLense test: 7x7 stride 2, max pool, stages of 3-4-6-3 blocks, never pre-trained
_register_scratch("resnet34_scratch", "BasicBlock", "3-4-6-3 basic blocks")
_register_scratch("resnet34_bottleneck", "Bottleneck", "3-4-6-3 bottleneck blocks, which is ResNet-50")
