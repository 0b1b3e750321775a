"""Steerable convolutional network (Weiler & Cesa 2019, arXiv:1911.08251) on e2cnn. Imported by its builder alone."""

import copy
from types import SimpleNamespace

import e2cnn
import e2cnn.kernels.irreps_basis
import e2cnn.kernels.utils
import numpy as np
import torch
from e2cnn import gspaces
from e2cnn import nn as enn
from e2cnn.nn.init import _generalized_he_init_variances
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lenslib.errors import InputError

FIELDS = (24, 48, 48, 96, 96, 64)  # regular fields of the six blocks of e2cnn's C8SteerableCNN example
KERNELS = ((7, 1), (5, 2), (5, 2), (5, 2), (5, 2), (5, 1))  # kernel size and padding of its blocks
STRIDE_AFTER = (2, 4)  # blocks followed by an antialiased pooling of stride 2

# how far the first weights of each kind of layer scatter, which takes e2cnn longer to find than all else of a layer
_WIDTHS = {}


class SteerableConv(enn.R2Conv):
    """R2Conv with its expanded kernel, a cache that exists in evaluation mode only, kept out of the state dict."""

    def __init__(self, in_type: enn.FieldType, out_type: enn.FieldType, kernel_size: int, **options):
        super().__init__(in_type, out_type, kernel_size, initialize=False, **options)
        kind = in_type, out_type, kernel_size, *sorted(options.items())
        if kind not in _WIDTHS:
            _WIDTHS[kind] = _generalized_he_init_variances(self.basisexpansion)
        with torch.no_grad():  # as e2cnn.nn.init.generalized_he_init
            self.weights.copy_(_WIDTHS[kind] * torch.randn_like(self.weights))

    def register_buffer(self, name, tensor, persistent=True):
        super().register_buffer(name, tensor, persistent=persistent and name not in ("filter", "expanded_bias"))

    @torch.no_grad()
    def train(self, mode: bool = True):
        return super().train(mode)


class Blur(enn.PointwiseAvgPoolAntialiased):
    """e2cnn's antialiased pooling, on a processor in float32, where its gradient in bf16 takes four times as long."""

    def forward(self, input: enn.GeometricTensor) -> enn.GeometricTensor:
        features = input.tensor
        if features.device.type != "cpu":
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            blurred = super().forward(enn.GeometricTensor(features.to(self.filter.dtype), input.type))
        return enn.GeometricTensor(blurred.tensor.to(features.dtype), self.out_type)


class SteerableCNN(nn.Module):
    """Six steerable blocks, pooling over the group, then over the image, and a small head.

    [n, in_chans, s, s] -> [n, num_outputs], invariant under right-angle turns (and mirrors for D_N) to rounding, and
    nearly so under the other turns of the group. `order` is N. `width` scales the published number of fields;
    by default it is 2 / group order, so that all groups have as many channels (48 to 192) and cost alike.

    Two changes from e2cnn's example: no circular mask, because the corners of an image hold signal too, and mean and
    maximum over the last map, whatever its size, in place of a last map of one pixel.
    The state dict holds what is learnt and nothing else: the kernel bases follow from the architecture.
    """

    def __init__(
        self,
        order: int,
        mirrors: bool,
        num_outputs: int,
        image_size: int,
        in_chans: int = 1,
        width: float | None = None,
    ):
        super().__init__()
        if mirrors:
            repair_mirrored_groups()
        gspace = gspaces.FlipRot2dOnR2(N=order) if mirrors else gspaces.Rot2dOnR2(N=order)
        width = 2 / gspace.fibergroup.order() if width is None else width
        if not 0 < width <= 1:
            raise InputError(f"width must be a share above 0 and up to 1, not {width}")
        fields = [max(1, round(width * count)) for count in FIELDS]
        self.image_size = image_size
        self.input_type = enn.FieldType(gspace, in_chans * [gspace.trivial_repr])
        self.blocks = enn.SequentialModule(*_layers(self.input_type, fields))
        self.read = MeanAndMaximum()
        self.head = nn.Sequential(nn.Linear(2 * fields[-1], 64), nn.ELU(), nn.Linear(64, num_outputs))
        _forget_constants(self.blocks)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            raise InputError(
                f"this network was made for {self.image_size}-pixel images, not {tuple(images.shape[-2:])}; "
                "resize them (another size can break its symmetry)"
            )
        return self.head(self.read(self.blocks(enn.GeometricTensor(images, self.input_type)).tensor))

    def _apply(self, change, *args, **kwargs):
        if change(torch.zeros(1)).dtype != torch.float32:
            raise InputError(
                "a steerable network has weights in float32, because e2cnn shares its kernels among networks: choose a "
                "mixed precision, or what lenslib.models.steerable.as_convolutions makes of a trained one"
            )
        return super()._apply(change, *args, **kwargs)


class MeanAndMaximum(nn.Module):
    """What the head sees of the last map: [n, fields, h, w] -> [n, 2 fields]."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)


class Mean(nn.Module):
    """[n, fields, h, w] -> [n, fields]."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean((2, 3))


class C8SteerableCNN(SteerableCNN):
    """The network of e2cnn's example, at its full width unless `width` is less, with its third pooling and its head.

    The example's last map has one pixel; here the head sees the mean over the map. `mask` blackens the corners, as the
    example does. Among lens finders it was met with `order=4, mask=True, flatten=True`: four turns in place of eight,
    and a head that sees where a feature is, so that its answer changes when the image is turned.
    """

    def __init__(
        self,
        num_outputs: int,
        image_size: int,
        in_chans: int = 1,
        order: int = 8,
        mask: bool = False,
        flatten: bool = False,
        width: float = 1.0,
    ):
        super().__init__(order, False, num_outputs, image_size, in_chans, width)
        *layers, pool = self.blocks.children()
        first = [enn.MaskModule(self.input_type, image_size, margin=1)] if mask else []
        third = Blur(layers[-1].out_type, sigma=0.66, stride=1, padding=0)
        self.blocks = enn.SequentialModule(*first, *layers, third, pool)
        self.read = nn.Flatten() if flatten else Mean()
        _forget_constants(self.blocks)
        side = (
            -(-(image_size - 4) // 2 ** len(STRIDE_AFTER)) - 2 - 4
        )  # the last kernel takes 2 pixels off, the pooling 4
        features = max(1, round(width * FIELDS[-1])) * (side**2 if flatten else 1)
        self.head = nn.Sequential(
            nn.Linear(features, 64), nn.BatchNorm1d(64), nn.ELU(inplace=True), nn.Linear(64, num_outputs)
        )


def _layers(input_type: enn.FieldType, fields: list[int]) -> list[enn.EquivariantModule]:
    gspace, before, layers = input_type.gspace, input_type, []
    for block, (count, (kernel_size, padding)) in enumerate(zip(fields, KERNELS, strict=True), start=1):
        after = enn.FieldType(gspace, count * [gspace.regular_repr])
        conv = SteerableConv(before, after, kernel_size, padding=padding, bias=False)
        layers += [conv, enn.InnerBatchNorm(after), enn.ReLU(after, inplace=True)]
        if block in STRIDE_AFTER:
            layers.append(Blur(after, sigma=0.66, stride=2))
        before = after
    return [*layers, enn.GroupPooling(before)]


def _forget_constants(blocks: nn.Module) -> None:
    """Take buffers that follow from the architecture out of the state dict (bases shared by layers, index tables)."""
    for module in blocks.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, buffer in list(module.named_buffers(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, buffer, persistent=False)


def repair_mirrored_groups() -> None:
    """Let e2cnn 0.2.3 build mirrored groups under numpy 2, which took away array(copy=False) and ndarray.tostring."""
    e2cnn.kernels.utils.np = SimpleNamespace(
        **{**vars(np), "array": lambda x, copy=True: np.array(x, copy=copy or None)}
    )
    basis = e2cnn.kernels.irreps_basis.R2FlipsDiscreteRotationsSolution
    basis.__hash__ = lambda self: hash((self.in_irrep, self.out_irrep))


class Mask(nn.Module):
    """Multiply images by a fixed one."""

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.mask


class GroupMaximum(nn.Module):
    """The largest of the `order` channels of each field: [n, fields * order, h, w] -> [n, fields, h, w]."""

    def __init__(self, order: int):
        super().__init__()
        self.order = order

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.unflatten(1, (-1, self.order)).amax(2)


def as_convolutions(network: SteerableCNN) -> nn.Sequential:
    """What a trained steerable network computes, to rounding, in layers of torch alone, for use and export.

    Kernels are expanded once and batch norms are part of them; the result is in evaluation mode and not to be trained.
    e2cnn exports no antialiased pooling and no mask, which are layers of torch already but for their types.
    """
    layers, blocks = [], list(copy.deepcopy(network).eval().blocks.children())
    for block in blocks:
        if isinstance(block, enn.InnerBatchNorm):
            layers[-1] = fuse_conv_bn_eval(layers[-1].eval(), block.export())
        elif isinstance(block, enn.MaskModule):
            layers.append(Mask(block.mask.detach()))
        elif isinstance(block, enn.PointwiseAvgPoolAntialiased):
            layers.append(_blur(block))
        elif isinstance(block, enn.GroupPooling):
            layers.append(GroupMaximum(block.in_type.gspace.fibergroup.order()))
        else:
            layers.append(block.export())
    plain = nn.Sequential(*layers, copy.deepcopy(network.read), copy.deepcopy(network.head))
    return plain.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _blur(pool: enn.PointwiseAvgPoolAntialiased) -> nn.Conv2d:
    """The antialiased pooling as a convolution of each channel."""
    channels = pool.in_type.size
    options = {"stride": pool.stride, "padding": pool.padding, "groups": channels, "bias": False}
    conv = nn.Conv2d(channels, channels, pool.kernel_size, **options)
    conv.weight = nn.Parameter(pool.filter)
    return conv
