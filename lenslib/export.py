"""`lenslib export`: a trained network as one ONNX file, from raw images to answers, and the use of such a file.

export("weights.safetensors", "network.onnx")       # of a classifier or an estimator
network = load_exported("network.onnx")             # runs in onnxruntime
network.answers(images)                             # as Classifier.answers and Estimator.answers of lenslib.inference
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenslib.dataset import normalise, resize
from lenslib.errors import InputError
from lenslib.inference import (
    Classifier,
    Estimator,
    classifier_facts,
    estimates_numbers,
    estimator_facts,
    judges_fits,
    load_classifier,
    load_estimator,
    metadata_of,
)
from lenslib.onnx_files import INSTALL, open_session
from lenslib.records import write_whole
from lenslib.targets import Targets

_OPSET = 18


class _FromRaw(nn.Module):
    """A network with what is done to its images before it, and to its answers after."""

    def __init__(self, loaded: Classifier | Estimator, temperature: float):
        super().__init__()
        self.network, self.units, self.temperature = _plain(loaded.network), loaded.units, temperature
        self.probabilities = isinstance(loaded, Classifier)
        size = loaded.crop or loaded.native_size
        edge = (loaded.native_size - size) // 2
        self.inner = slice(edge, edge + size)
        # resampling is linear along each side: a matrix needs no operator that runtimes differ in
        self.register_buffer("along", None if size == loaded.image_size else _resampling(size, loaded.image_size))

    def forward(self, images: Tensor) -> Tensor:
        images = images[..., self.inner, self.inner]
        if self.along is not None:
            images = self.along @ images @ self.along.T
        found = self.network(normalise(images) if self.units == "light" else images.asinh())
        return (found / self.temperature).softmax(1) if self.probabilities else found


def _plain(network: nn.Module) -> nn.Module:
    """A network that can be exported."""
    try:
        from lenslib.models.steerable import SteerableCNN, as_convolutions
    except ImportError:  # without e2cnn there is no steerable network
        return network
    return as_convolutions(network) if isinstance(network, SteerableCNN) else network


def _resampling(old: int, new: int) -> Tensor:
    """[new, old]: what `resize` does to one side of an image."""
    stripes = torch.eye(old)[None, :, :, None].expand(1, old, old, old)
    return resize(stripes.contiguous(), new)[0, :, :, 0].T.contiguous()


def export(weights: str | Path, out: str | Path, temperature: float = 1.0) -> Path:
    """Write trained weights as an ONNX file whose input `images` is float32 [n, c, native_size, native_size] in any
    units of brightness, and whose output is `probabilities` [n, classes] at a temperature, or `numbers` [n, columns],
    which `Targets.decode` makes parameters. Its metadata are those of the weights.

    InputError for weights of a network that cannot be exported, or that judge what a fit leaves and not an image.
    """
    out, metadata = Path(out), metadata_of(weights)
    if judges_fits(metadata):
        raise InputError(f"'{weights}' judges what a smooth fit leaves, and a fit cannot be exported")
    if out.suffix != ".onnx":
        raise InputError(f"'{out}': the name of an exported network ends in .onnx")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write '{out}': {error.strerror}") from None
    loaded = (load_estimator if estimates_numbers(weights) else load_classifier)(weights)
    program = _traced(loaded, temperature)
    for name, value in (metadata | {"temperature": repr(temperature)}).items():
        entry = program.metadata_props.add()
        entry.key, entry.value = name, value
    try:
        write_whole(out, program.SerializeToString())
    except OSError as error:
        raise InputError(f"cannot write '{out}': {error.strerror}") from None
    return out


def export_calibrated(weights: str | Path, out: str | Path) -> tuple[Path, float]:
    """As `export`, at the temperature that the weights were validated with (1 where they were not), which is returned
    as well."""
    from lenslib.validation import load_validation

    found = load_validation(Path(weights))
    temperature = found.temperature if found is not None and found.temperature is not None else 1.0
    return export(weights, out, temperature), temperature


def _traced(loaded: Classifier | Estimator, temperature: float):
    """The ONNX program of a network from raw images to answers."""
    network = _FromRaw(loaded, temperature).eval()
    example = torch.randn(2, loaded.in_chans, loaded.native_size, loaded.native_size)
    answer = "probabilities" if network.probabilities else "numbers"
    names = {"input_names": ["images"], "output_names": [answer]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
            found = torch.onnx.export(program, dynamo=True, opset_version=_OPSET, verbose=False, **names)
    except ImportError:
        raise InputError(f"networks cannot be exported here: {INSTALL}") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{loaded.model} cannot be exported: {reason}") from None
    return found.model_proto


@dataclass
class Exported:
    """An exported network. `native_size` pixels a side and `in_chans` colours, as in `lenslib.inference.Classifier`;
    `names` are the classes of a classifier, or what an estimator estimates, whose `targets` are not None."""

    session: Any
    model: str
    recipe: str
    names: tuple[str, ...]
    native_size: int
    in_chans: int
    targets: Targets | None = None

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities [n, classes], or estimates [n, names], of raw images [n, c, h, w]."""
        shape = (self.in_chans, self.native_size, self.native_size)
        if tuple(images.shape[1:]) != shape or not len(images):
            raise InputError(f"images have the shape {list(images.shape)}, and {self.model} needs [n, {shape}]")
        parts = (np.asarray(images[first : first + 512], np.float32) for first in range(0, len(images), 512))
        found = np.concatenate([self.session.run(None, {"images": part})[0] for part in parts])
        if self.targets is None:
            return found
        named = self.targets.decode(found)
        return np.stack([named[name] for name in self.names], 1)


def load_exported(path: str | Path, threads: int = 0) -> Exported:
    """The network in an ONNX file that `lenslib export` wrote, on so many threads (0: all).

    InputError when it is none (see `lenslib.onnx_files.open_session`).
    """
    session, program = open_session(path, threads)
    metadata = {entry.key: entry.value for entry in program.metadata_props}
    targets = None
    if "targets" in metadata:
        targets, (_, native_size, _, in_chans) = estimator_facts(path, metadata)
        names = targets.names
    else:
        names, (_, native_size, _, in_chans) = classifier_facts(path, metadata)
    exported = Exported(session, metadata["model"], metadata["recipe"], names, native_size, in_chans, targets)
    blank = np.zeros((1, in_chans, native_size, native_size), np.float32)
    try:  # what others wrote may take and give anything
        fits = exported.answers(blank).shape == (1, len(names))
    except Exception:
        fits = False
    if not fits:
        raise InputError(f"'{path}' does not give {len(names)} numbers for an image: export the network again")
    return exported
