"""Vision transformers of timm and vit-pytorch: name, paper, sizes, what is fast, weights.

What no library has is written from its paper in a file of its own: a_vit.py, rvt.py, cswin.py, mobile_former.py.
timm accepts a patch that does not divide the image and silently never looks at the last rows and columns; here the
patch follows from the image size, or the size is refused.
"""

from collections.abc import Iterable

from torch import nn

from lenslib.models.libraries import (
    DENSE,
    DEPTHWISE,
    IMAGENET,
    TOKENS,
    at_least,
    covered,
    multiples_of,
    register_timm,
)
from lenslib.models.registry import register

PATCH_SIZES = range(5, 17)
TNT_PATCH_SIZES = (8, 12, 16)  # whole numbers of its inner patches of 4 pixels


def patch_size(image_size: int, patches: Iterable[int] = PATCH_SIZES) -> int | None:
    """The patch (pixels) that tiles the image, with tokens a side nearest to the 14 of ViT; None if none does."""
    fitting = [patch for patch in patches if image_size % patch == 0 and image_size >= 4 * patch]
    return min(fitting, key=lambda patch: (abs(image_size // patch - 14), -patch), default=None)


def window_size(image_size: int) -> int:
    """The window (tokens, at least 4) that tiles all four maps of a pyramid of strides 4, 8, 16, 32.

    It is the 7 of the papers at 224 pixels, and 8 at 256. `image_size` is a multiple of 32.
    """
    window = image_size // 32
    while window < 4:
        window *= 2
    return window


def _two_patches(image_size: int) -> list[int] | None:
    """The two patches of CrossViT: that of a ViT, and the next larger one, at most thrice, that tiles the image."""
    fine = patch_size(image_size)
    coarse = (patch for patch in range(fine + 1, 3 * fine + 1) if image_size % patch == 0) if fine else ()
    return next(([fine, patch] for patch in coarse if image_size >= 3 * patch), None)


def patched(patches: Iterable[int] = PATCH_SIZES) -> dict:
    """The size rule of a network of square patches."""
    patches = tuple(patches)
    some = f"{patches[0]} to {patches[-1]}" if len(patches) > 4 else ", ".join(map(str, patches))
    return {
        "takes_size": lambda size: patch_size(size, patches) is not None,
        "size_rule": f"at least 4 patches of {some} pixels a side, without a rest",
    }


def _timm(name: str, paper: str, sizes: dict, facts: dict, model: str, by_size=None, **fixed) -> None:
    def sized(size: int) -> dict:
        return {"img_size": size} | (by_size(size) if by_size else {})

    register_timm(name, "transformer", paper, sizes, facts, model, sized, **fixed)


def _patch(size: int) -> dict:
    return {"patch_size": patch_size(size)}


def _tnt_patch(size: int) -> dict:
    return {"patch_size": patch_size(size, TNT_PATCH_SIZES)}


def _window(size: int) -> dict:
    return {"window_size": window_size(size)}


VIT = "Dosovitskiy et al. 2020, arXiv:2010.11929"
DEIT = f"{VIT}, this size: Touvron et al. 2020, arXiv:2012.12877"
TNT = "Han et al. 2021, arXiv:2103.00112"
SWIN = "Liu et al. 2021, arXiv:2103.14030"
SWIN_V2 = "Liu et al. 2021, arXiv:2111.09883"
PVT = "Wang et al. 2021, arXiv:2106.13797 (version 2)"
CAIT = "Touvron et al. 2021, arXiv:2103.17239"
CONVIT = "d'Ascoli et al. 2021, arXiv:2103.10697"
CROSSVIT = "Chen et al. 2021, arXiv:2103.14899"
TWINS = "Chu et al. 2021, arXiv:2104.13840"
EFFICIENTFORMER = "Li et al. 2022, arXiv:2212.08059 (version 2)"
COAT = "Xu et al. 2021, arXiv:2104.06399"
COATNET = "Dai et al. 2021, arXiv:2106.04803"
BOTNET = "Srinivas et al. 2021, arXiv:2101.11605"
LEVIT = "Graham et al. 2021, arXiv:2104.01136"
PIT = "Heo et al. 2021, arXiv:2103.16302"
MOBILEVIT = "Mehta & Rastegari 2021, arXiv:2110.02178"
EVEN_LAST_MAP = {  # its attention there works on a halved map and doubles it again
    "takes_size": lambda size: size >= 32 and -(-size // 16) % 2 == 0,
    "size_rule": "32 pixels or more, of which a sixteenth rounds up to an even number",
}
# weights whose tables of positions timm does not resample
AT_224, AT_256 = {"imagenet": 224}, {"imagenet": 256}
SMALL_SWIN = {"embed_dim": 64, "depths": (2, 2, 4, 2), "num_heads": (2, 4, 8, 16)}

_timm("vit_tiny", DEIT, patched(), TOKENS | IMAGENET, "vit_tiny_patch16_224", _patch)
_timm("vit", DEIT, patched(), TOKENS | IMAGENET, "vit_small_patch16_224", _patch)
_timm("vit_b_16", VIT, multiples_of(16, least=64), TOKENS | IMAGENET, "vit_base_patch16_224")
_timm("tnt", TNT, patched(TNT_PATCH_SIZES), TOKENS | AT_224, "tnt_s_patch16_224", _tnt_patch)
_timm("swin", SWIN, multiples_of(32), TOKENS, "swin_tiny_patch4_window7_224", _window, **SMALL_SWIN)
_timm("swin_tiny", SWIN, multiples_of(32), TOKENS | IMAGENET, "swin_tiny_patch4_window7_224", _window)
_timm("swin_v2", SWIN_V2, multiples_of(32), TOKENS, "swinv2_tiny_window8_256", _window, **SMALL_SWIN)
_timm("swin_v2_b", SWIN_V2, multiples_of(32), TOKENS | IMAGENET, "swinv2_base_window8_256", _window)
_timm("cait", CAIT, patched(), TOKENS | AT_224, "cait_xxs24_224", _patch)
_timm("convit", CONVIT, patched(), TOKENS | AT_224, "convit_tiny", _patch)
_timm("twins_svt", TWINS, multiples_of(32), TOKENS | IMAGENET, "twins_svt_small")
_timm("efficientformer", EFFICIENTFORMER, EVEN_LAST_MAP, DENSE | AT_224, "efficientformerv2_s1")
_timm("coat", COAT, multiples_of(4), TOKENS | IMAGENET, "coat_lite_mini")
_timm("coatnet", COATNET, multiples_of(32), DENSE | IMAGENET, "coatnet_nano_rw_224")
_timm("botnet", BOTNET, multiples_of(32), DENSE | AT_256, "botnet26t_256")
_timm("levit", LEVIT, multiples_of(16), TOKENS | AT_224, "levit_128s")
_timm("pit", PIT, multiples_of(8, least=48), TOKENS | AT_224, "pit_xs_224")
register_timm("pvt", "transformer", PVT, at_least(32), TOKENS | IMAGENET, "pvt_v2_b1")
register_timm("mobilevit", "transformer", MOBILEVIT, at_least(32), DEPTHWISE | IMAGENET, "mobilevit_s")

register_timm(
    "crossvit",
    "transformer",
    CROSSVIT,
    {
        "takes_size": lambda size: _two_patches(size) is not None,
        "size_rule": f"{patched()['size_rule']}, and at least 3 of a larger patch",
    },
    TOKENS,
    "crossvit_tiny_240",
    # timm resizes the image for one branch by default; equal scales show both branches every pixel
    lambda size: {"img_size": size, "img_scale": (1.0, 1.0), "patch_size": _two_patches(size)},
)


@register(
    "cpvt",
    "transformer",
    source="Chu et al. 2021, arXiv:2102.10882; timm",
    **patched(),
    **TOKENS,
)
def cpvt(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    """CPVT-Ti with global pooling: a ViT that learns where tokens are from their neighbours, after the first block."""
    import timm
    from timm.models.twins import PosConv

    class WithPositions(nn.Module):
        def __init__(self, block: nn.Module, dim: int, tokens: int):
            super().__init__()
            self.block, self.positions, self.side = block, PosConv(dim, dim), tokens

        def forward(self, x, *args, **kwargs):
            return self.positions(self.block(x, *args, **kwargs), (self.side, self.side))

    patch = patch_size(image_size)
    fixed = {"class_token": False, "global_pool": "avg", "pos_embed": "none", "img_size": image_size}
    options = fixed | {"patch_size": patch, "num_classes": num_outputs, "in_chans": in_chans} | options
    network = timm.create_model("vit_tiny_patch16_224", **options)
    network.blocks[0] = WithPositions(network.blocks[0], network.embed_dim, image_size // patch)
    return network


def _vit_pytorch(name: str, paper: str, sizes: dict, facts: dict, module: str, build) -> None:
    """Enter `build(library module, num_outputs, image_size, in_chans, **options)` for a network of vit-pytorch."""

    def imported(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
        from importlib import import_module

        return build(import_module(f"vit_pytorch.{module}"), num_outputs, image_size, in_chans, **options)

    register(name, "transformer", source=f"{paper}; vit-pytorch", **sizes, **facts)(imported)


def _t2t_vit(library, num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    options = {"dim": 256, "depth": 6, "heads": 8, "mlp_dim": 512} | options
    return library.T2TViT(image_size=image_size, num_classes=num_outputs, channels=in_chans, **options)


def _cvt(library, num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    return library.CvT(num_classes=num_outputs, channels=in_chans, **options)


def _region_vit(library, num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    options = {"window_size": window_size(image_size)} | options
    network = library.RegionViT(num_classes=num_outputs, channels=in_chans, **options)
    # the library lays out its local encoder for three channels, whatever it is asked for
    conv = network.local_encoder
    network.local_encoder = nn.Conv2d(in_chans, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    return network


def _crossformer(library, num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    window = window_size(image_size)
    local = tuple(min(window, image_size // stride) for stride in (4, 8, 16, 32))
    options = {"local_window_size": local, "global_window_size": (8, 4, 2, 1)} | options
    return library.CrossFormer(num_classes=num_outputs, channels=in_chans, **options)


def _cct(library, num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    """CCT-7 with two 3x3 convolutions; stride 2 in large images keeps their tokens to a few hundred."""
    small = {"embedding_dim": 256, "num_layers": 7, "num_heads": 4, "mlp_ratio": 2, "n_conv_layers": 2}
    kernel = {"kernel_size": 3, "stride": 1 if image_size <= 96 else 2, "padding": 1}
    options = small | kernel | {"positional_embedding": "learnable"} | options
    return library.CCT(img_size=image_size, n_input_channels=in_chans, num_classes=num_outputs, **options)


def _cct_14(library, num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
    paper = {"embedding_dim": 384, "num_layers": 14, "num_heads": 6, "mlp_ratio": 3, "kernel_size": 7}
    return _cct(library, num_outputs, image_size, in_chans, **(paper | {"stride": 2, "padding": 3} | options))


def _small(build):
    """`build` with a pyramid of about 10 M parameters."""

    def built(library, num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
        options = {"dim": (48, 96, 192, 384), "depth": (2, 2, 4, 2)} | options
        return build(library, num_outputs, image_size, in_chans, **options)

    return built


T2T = "Yuan et al. 2021, arXiv:2101.11986"
CVT = "Wu et al. 2021, arXiv:2103.15808"
REGIONVIT = "Chen et al. 2021, arXiv:2106.02689"
CROSSFORMER = "Wang et al. 2021, arXiv:2108.00154"
CCT = "Hassani et al. 2021, arXiv:2104.05704"
TEST_2023 = "DeepLense test of 2023: dim 64 to 512, depth 2-2-8-2"

_vit_pytorch("t2t_vit", T2T, covered(7, stride=4, padding=2), TOKENS, "t2t", _t2t_vit)
_vit_pytorch("cvt", CVT, at_least(32), TOKENS, "cvt", _cvt)
# in float32: it strides over maps of one pixel, where the processor's kernel for bf16 leaves gradients unwritten
_vit_pytorch("regionvit", REGIONVIT, multiples_of(32), {}, "regionvit", _small(_region_vit))
_vit_pytorch("regionvit_2023", f"{REGIONVIT}, {TEST_2023}", multiples_of(32), {}, "regionvit", _region_vit)
_vit_pytorch("crossformer", CROSSFORMER, multiples_of(32), TOKENS, "crossformer", _small(_crossformer))
_vit_pytorch("crossformer_2023", f"{CROSSFORMER}, {TEST_2023}", multiples_of(32), TOKENS, "crossformer", _crossformer)
_vit_pytorch("cct", CCT, at_least(32), TOKENS, "cct", _cct)
_vit_pytorch("cct_14", CCT, at_least(64), TOKENS, "cct", _cct_14)
