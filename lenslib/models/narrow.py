"""Networks of the registry with a share of their channels, to be compared where the whole ones cost too much."""

from torch import nn

from lenslib.errors import InputError
from lenslib.models.registry import create_model

STEERABLE = {"c4_steerable": 4, "c8_steerable": 8, "d4_steerable": 8, "d8_steerable": 16}  # elements of the group


def narrowed(name: str, share: float, num_outputs: int, image_size: int, in_chans: int = 1, **options) -> nn.Module:
    """A network with that share of the channels of its convolutions: the steerable ones, ResNets and `vgg16_bn`, but
    for those that timm fixes (a ResNet's first layer, a VGG's last hidden one); others are built as they are. At a
    share of 1 the steerable groups have about the same channels. `options` go to `create_model`, as do its errors.

    InputError for a share above 1, and below 1/64, or 1/8 for a ResNet and a VGG: of fewer than eight channels,
    oneDNN's kernels crash on some processors.
    """
    timms = name.startswith(("resnet", "vgg16_bn"))
    least = 8 if timms else 64
    if not 1 / least <= share <= 1:
        raise InputError(f"the share of {name}'s channels must be from 1/{least} to 1, not {share}")
    if name == "vgg16_bn" and share < 1:
        return _vgg16(share, num_outputs, in_chans)
    if name in STEERABLE:
        options["width"] = 2 * share / STEERABLE[name]
    elif name == "c8_steerable_cnn":
        options["width"] = share
    elif timms and name != "vgg16_bn":
        options["channels"] = tuple(round(share * channels) for channels in (64, 128, 256, 512))
    return create_model(name, num_outputs, image_size, in_chans, **options)


def _vgg16(share: float, num_outputs: int, in_chans: int) -> nn.Module:
    from timm.models.vgg import VGG, cfgs

    layers = [layer if layer == "M" else round(share * layer) for layer in cfgs["vgg16"]]
    return VGG(layers, num_outputs, in_chans, mlp_ratio=share, norm_layer=nn.BatchNorm2d)
