"""Networks of the registry with a share of their channels, to be compared where the whole ones cost too much."""

from torch import nn

from lenslib.errors import InputError
from lenslib.models.registry import create_model

STEERABLE = {"c4_steerable": 4, "c8_steerable": 8, "d4_steerable": 8, "d8_steerable": 16}  # elements of the group


def narrowed(name: str, share: float, num_outputs: int, image_size: int, in_chans: int = 1, **options) -> nn.Module:
    """A network with that share of the channels of its convolutions: the steerable ones, ResNets and `vgg16_bn`, but
    for those that timm fixes (a ResNet's first layer, a VGG's last hidden one). At a share of 1 it is `create_model`'s,
    whose errors are raised and which takes the `options`, and the steerable groups have about the same channels.

    InputError for a share above 1, and below 1/64, or 1/8 for a ResNet and a VGG: of fewer than eight channels,
    oneDNN's kernels crash on some processors; and for another network that is to be narrower.
    """
    steerable = name in STEERABLE or name == "c8_steerable_cnn"
    least = 64 if steerable else 8 if name == "vgg16_bn" or name.startswith("resnet") else 1
    if not 1 / least <= share <= 1:
        known = f"from 1/{least} to 1" if least > 1 else "1: it has no narrower form here"
        raise InputError(f"the share of {name}'s channels must be {known}, not {share}")
    if share < 1 and name == "vgg16_bn":
        return _vgg16(share, num_outputs, in_chans)
    if share < 1 and steerable:
        options["width"] = 2 * share / STEERABLE[name] if name in STEERABLE else share
    elif share < 1:
        options["channels"] = tuple(round(share * channels) for channels in (64, 128, 256, 512))
    return create_model(name, num_outputs, image_size, in_chans, **options)


def _vgg16(share: float, num_outputs: int, in_chans: int) -> nn.Module:
    from timm.models.vgg import VGG, cfgs

    layers = [layer if layer == "M" else round(share * layer) for layer in cfgs["vgg16"]]
    return VGG(layers, num_outputs, in_chans, mlp_ratio=share, norm_layer=nn.BatchNorm2d)
