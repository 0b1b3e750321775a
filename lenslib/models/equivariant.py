"""Networks whose output does not change when the image is turned (C_N) or turned and mirrored (D_N)."""

import warnings
from collections.abc import Callable

from torch import nn

from lenslib.models.registry import register

STRIDES = 2  # poolings of stride 2 in the steerable network


def keeps_right_angles(size: int) -> bool:
    """Whether the steerable network commutes exactly with right-angle turns of size x size images.

    Its first block takes 4 pixels off. A stride of 2 is centred on the image only if the map has an odd side s,
    and leaves (s + 1) / 2 pixels; so the map before the first of k strides must have 1 mod 2^k pixels a side.
    """
    return size >= 17 and (size - 4) % 2**STRIDES == 1


FACTS = {
    "takes_size": keeps_right_angles,
    "size_rule": "right-angle symmetry needs 17 pixels or more, and a remainder of 1 after division by 4",
    "export": "e2cnn compares kernel bases by value, which tracing cannot follow; steerable.as_convolutions exports",
    "precision": "bf16-mixed",
}


def _quietly(build: Callable[..., nn.Module], *args, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "indexing with dtype torch.uint8")  # by e2cnn, harmless
        return build(*args, **options)


def _register(name: str, order: int, mirrors: bool) -> None:
    """Enter C_N (N = `order`) or, with `mirrors`, D_N."""

    @register(name, "equivariant", source="Weiler & Cesa 2019, arXiv:1911.08251; six-block example of e2cnn", **FACTS)
    def build(num_outputs: int, image_size: int, in_chans: int, width: float | None = None) -> nn.Module:
        from lenslib.models.steerable import SteerableCNN

        return _quietly(SteerableCNN, order, mirrors, num_outputs, image_size, in_chans, width)


for _name, _order, _mirrors in (
    ("c4_steerable", 4, False),
    ("c8_steerable", 8, False),
    ("d4_steerable", 4, True),
    ("d8_steerable", 8, True),
):
    _register(_name, _order, _mirrors)


@register(
    "c8_steerable_cnn",
    "equivariant",
    source="C8SteerableCNN of the examples of e2cnn (Weiler & Cesa 2019, arXiv:1911.08251), as lens finders use it",
    **FACTS
    | {
        "takes_size": lambda size: size >= 33 and keeps_right_angles(size),
        "size_rule": "right-angle symmetry needs 33 pixels or more, and a remainder of 1 after division by 4",
    },
)
def c8_steerable_cnn(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    """Options `order` (8), `mask` and `flatten` (False), `width` (1): see lenslib.models.steerable.C8SteerableCNN."""
    from lenslib.models.steerable import C8SteerableCNN

    return _quietly(C8SteerableCNN, num_outputs, image_size, in_chans, **options)
