"""Vision transformers."""

from torch import nn

from lenslib.models.registry import register

PATCH_SIZES = range(5, 17)


def patch_size(image_size: int) -> int | None:
    """The patch (pixels) that tiles the image exactly, with tokens a side nearest to the 14 of ViT; None if none does.

    timm accepts a patch that does not divide the image and silently never looks at the last rows and columns.
    """
    fitting = [patch for patch in PATCH_SIZES if image_size % patch == 0 and image_size >= 4 * patch]
    return min(fitting, key=lambda patch: (abs(image_size // patch - 14), -patch), default=None)


@register(
    "vit_tiny",
    "transformer",
    source="Dosovitskiy et al. 2020, arXiv:2010.11929, tiny: Touvron et al. 2020, arXiv:2012.12877; timm",
    takes_size=lambda size: patch_size(size) is not None,
    size_rule=f"at least 4 patches of {PATCH_SIZES[0]} to {PATCH_SIZES[-1]} pixels a side, without a rest",
    precision="bf16-mixed",
    imagenet=True,
)
def vit_tiny(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=image_size,
        patch_size=patch_size(image_size),
        num_classes=num_outputs,
        in_chans=in_chans,
        **options,
    )
