"""Networks of timm, torchvision and vit-pytorch under the registry's contract, one call a model.

A call names the model, the paper, the sizes it takes and what is fast; the library is imported when it is built.
"""

from collections.abc import Callable, Iterable

from torch import nn

from lenslib.models.registry import register

# What makes a training step fast on a processor with bf16 instructions. Measured on one network or two of a kind
# (resnet18, densenet121; efficientnet_b0, mobilevit; vit_tiny, swin_tiny), the others go by kind: dense kernels gain
# from bf16 and channels-last, depthwise kernels are slower in bf16, token-wise layers have no channels to lay out.
DENSE = {"precision": "bf16-mixed", "channels_last": True}
DEPTHWISE = {"precision": "32-true", "channels_last": True}
TOKENS = {"precision": "bf16-mixed"}
IMAGENET = {"imagenet": True}


def at_least(pixels: int) -> dict:
    """The size rule of a network that sees every pixel of any image of `pixels` or more."""
    return {"takes_size": lambda size: size >= pixels, "size_rule": f"{pixels} pixels or more"}


def multiples_of(step: int, least: int = 32) -> dict:
    """The size rule of a network whose strides, without padding, would drop the last rows of other sizes."""
    least = -(-least // step) * step
    return {
        "takes_size": lambda size: size >= least and size % step == 0,
        "size_rule": f"a multiple of {step}, {least} pixels or more",
    }


def remainders(step: int, good: Iterable[int], least: int) -> dict:
    """The size rule of a network whose kernels, in part without padding, end on the last row of some sizes only."""
    good = tuple(good)
    return {
        "takes_size": lambda size: size >= least and size % step in good,
        "size_rule": f"{least} pixels or more, with a remainder of {' or '.join(map(str, good))} after division by "
        f"{step}: of others the last rows would be lost",
    }


def covered(kernel: int, stride: int, padding: int = 0, least: int = 32) -> dict:
    """The size rule of a network whose first kernel alone may stop short of the last rows."""
    good = [rest for rest in range(stride) if (rest + 2 * padding - kernel) % stride <= padding]
    return remainders(stride, good, least)


def register_timm(
    name: str,
    family: str,
    paper: str,
    sizes: dict,
    facts: dict,
    model: str | None = None,
    by_size: Callable[[int], dict] = lambda size: {},
    **fixed,
) -> None:
    """Enter timm's `model` (default: `name`); `by_size` gives the options that follow from the image size."""

    def build(num_outputs: int, image_size: int, in_chans: int, **options) -> nn.Module:
        import timm

        options = fixed | by_size(image_size) | options
        return timm.create_model(model or name, num_classes=num_outputs, in_chans=in_chans, **options)

    register(name, family, source=f"{paper}; timm", **sizes, **facts)(build)


def register_torchvision(
    name: str,
    paper: str,
    sizes: dict,
    facts: dict,
    model: str | None = None,
    change: Callable[..., None] = lambda network: None,
) -> None:
    """Enter a convolutional network of torchvision; `change(network, **options)` takes what the caller adds."""

    def build(num_outputs: int, image_size: int, in_chans: int, pretrained: bool = False, **options) -> nn.Module:
        from torchvision.models import get_model

        network = get_model(model or name, num_classes=num_outputs)
        _open_for(network, in_chans)
        change(network, **options)
        if pretrained:
            _load_imagenet(network, model or name, in_chans)
        return network

    register(name, "convolutional", source=f"{paper}; torchvision", **sizes, **facts)(build)


def _first_conv(network: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _open_for(network: nn.Module, in_chans: int) -> None:
    """Replace the first convolution, made for three channels, by a new one for `in_chans`."""
    name, old = _first_conv(network)
    if old.in_channels != in_chans:
        parent, _, child = name.rpartition(".")
        new = nn.Conv2d(in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
        setattr(network.get_submodule(parent), child, new)


def _load_imagenet(network: nn.Module, model: str, in_chans: int) -> None:
    """ImageNet weights of everything but the head; those of the first convolution are summed over colours."""
    from timm.models import adapt_input_conv
    from torchvision.models import get_model_weights

    state = get_model_weights(model).DEFAULT.get_state_dict(progress=False)
    first = f"{_first_conv(network)[0]}.weight"
    state[first] = adapt_input_conv(in_chans, state[first])
    own = network.state_dict()
    network.load_state_dict({key: value for key, value in state.items() if value.shape == own[key].shape}, strict=False)
