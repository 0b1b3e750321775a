"""The registry: one name, one builder, one set of facts about the model."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lenslib.errors import InputError, unknown
from lenslib.seals import check_beside

FAMILIES = ("convolutional", "transformer", "equivariant", "autoencoder", "moments")


@dataclass(frozen=True)
class ModelInfo:
    """What the registry knows of a model.

    `precision` and `channels_last` are the faster choice for a training step on a CPU with bf16 instructions, `compile`
    says that compiling was found to make such a step faster still.
    `imagenet` tells whether weights="imagenet" exists: True, False, or the one image size that they fit.
    `export` is the reason why torch.export fails, else None.
    """

    name: str
    family: str
    source: str
    build: Callable[..., nn.Module]
    takes_size: Callable[[int], bool]
    size_rule: str
    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False
    imagenet: bool | int = False
    export: str | None = None


_REGISTRY: dict[str, ModelInfo] = {}


def register(name: str, family: str, **facts) -> Callable:
    """Decorator: enter `build(num_outputs, image_size, in_chans, **options)` under `name`; `facts` as in ModelInfo.

    A builder with `imagenet=True` also takes the keyword `pretrained`.
    """
    if name in _REGISTRY or family not in FAMILIES:
        raise ValueError(f"model '{name}' is registered twice, or its family '{family}' is not one of {FAMILIES}")

    def enter(build):
        _REGISTRY[name] = ModelInfo(name=name, family=family, build=build, **facts)
        return build

    return enter


def list_models(family: str | None = None) -> list[str]:
    """Registered names in alphabetical order, of one family if given. InputError on an unknown family."""
    if family is not None and family not in FAMILIES:
        raise unknown("model family", family, FAMILIES)
    return sorted(name for name, info in _REGISTRY.items() if family in (None, info.family))


def model_info(name: str) -> ModelInfo:
    """The facts about one model. InputError on an unknown name, with the closest ones."""
    if name not in _REGISTRY:
        raise unknown("model", name, _REGISTRY)
    return _REGISTRY[name]


def legal_size(name: str, size: int) -> int:
    """The image size (pixels a side) nearest to `size` that the model takes; of two equally near ones, the larger."""
    takes_size = model_info(name).takes_size
    _positive("image_size", size)
    return next(s for d in range(size + 1000) for s in (size + d, size - d) if s > 0 and takes_size(s))


def create_model(
    name: str,
    num_outputs: int,
    image_size: int,
    in_chans: int = 1,
    weights: str | Path | None = None,
    **options,
) -> nn.Module:
    """Build a registered model, in training mode: float32 [n, in_chans, image_size, image_size] -> [n, num_outputs].

    An autoencoder gives images of the shape it was given; `num_outputs` is the length of its code.
    Initial weights follow torch's generator (torch.manual_seed). `weights` is None, the path of a .safetensors file
    of the same model, or "imagenet". `options` go to the builder (such as `width`).
    InputError: unknown name, a size the model cannot take, weights that are missing, foreign or do not match.
    """
    info = model_info(name)
    for label, value in (("num_outputs", num_outputs), ("image_size", image_size), ("in_chans", in_chans)):
        _positive(label, value)
    if not info.takes_size(image_size):
        below = next((s for s in range(image_size, 0, -1) if info.takes_size(s)), None)
        above = next(s for s in range(image_size, image_size + 1000) if info.takes_size(s))
        near = f"{below} or {above}" if below else f"{above}"
        raise InputError(f"{name} cannot take {image_size}-pixel images ({info.size_rule}); resize them to {near}")
    if weights == "imagenet":
        model = _build_pretrained(info, num_outputs, image_size, in_chans, options)
    else:
        model = info.build(num_outputs, image_size, in_chans, **options)
    model.register_state_dict_post_hook(_untie)
    model.register_load_state_dict_post_hook(_forget_caches)
    if weights not in (None, "imagenet"):
        load_weights(model, weights)
    return model


def _untie(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """Copy tensors that layers share (as in CoaT): safetensors refuses two names for one memory."""
    seen = set()
    for key, value in state.items():
        if value.data_ptr() in seen and value.numel():
            state[key] = value.clone()
        seen.add(value.data_ptr())


def _forget_caches(model: nn.Module, _) -> None:
    """Of a model in evaluation mode: layers of LeViT and e2cnn keep there what they derived from the old weights."""
    if not model.training:
        model.train().eval()


def load_weights(model: nn.Module, path: str | Path, new: Collection[str] = ()) -> None:
    """Load a .safetensors state dict in place: all of it, but tensors that `new` names stay new where shapes differ.

    `path` may be the folder of a run. InputError when it is missing, not safetensors, or does not fit.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path) / "weights.safetensors" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise InputError(f"weights file '{path}' does not exist; give the path of a .safetensors file")
    check_beside(path)
    try:
        with safe_open(path, framework="pt") as file:
            said, state = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{path}' is not a safetensors file; convert it with safetensors.torch.save_file "
            "(pickled weights are refused: opening one can run code)"
        ) from error
    own = model.state_dict()
    for key in new:
        if key not in state or state[key].shape != own[key].shape:
            state[key] = own[key]
    if wrong := _differences(state, own):
        of = f" of {said['model']}" if "model" in said else ""
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"weights '{path}'{of} do not fit the model: {'; '.join(wrong[:3])}{more}; create it with the name, "
            "outputs, size and options it was trained with"
        )
    model.load_state_dict(state)


def _differences(state: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """What a state dict lacks, has too much, or has in another shape than the model."""
    wrong = [f"'{key}' is missing" for key in own if key not in state]
    wrong += [f"'{key}' is unknown to the model" for key in state if key not in own]
    return wrong + [
        f"'{key}' has the shape {list(value.shape)}, the model's {list(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]


def _build_pretrained(info: ModelInfo, num_outputs: int, image_size: int, in_chans: int, options: dict) -> nn.Module:
    if not info.imagenet:
        have = ", ".join(name for name in list_models() if _REGISTRY[name].imagenet)
        raise InputError(f"{info.name} has no ImageNet weights; use weights=None, or one of: {have}")
    if info.imagenet is not True and info.imagenet != image_size:
        raise InputError(
            f"the ImageNet weights of {info.name} fit images of {info.imagenet} pixels alone, not {image_size}; "
            "resize the images, or use weights=None"
        )
    random_state = torch.get_rng_state()
    info.build(
        num_outputs, image_size, in_chans, **options
    )  # so that a wrong option is not taken for a failed download
    torch.set_rng_state(random_state)
    try:
        return info.build(num_outputs, image_size, in_chans, pretrained=True, **options)
    except Exception as error:  # the download stack raises its own types, which differ between versions
        raise InputError(
            f"ImageNet weights of {info.name} could not be fetched ({type(error).__name__}); "
            "connect to the internet, or use weights=None or a .safetensors file"
        ) from error


def _positive(label: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{label} must be a whole number of at least 1, not {value!r}")
