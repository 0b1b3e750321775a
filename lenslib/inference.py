"""From trained weights to answers: load a classifier from its file, and put images through it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from lenslib.dataset import prepare
from lenslib.errors import InputError
from lenslib.fits_files import is_fits, read_fits
from lenslib.foreign import split_masses
from lenslib.models import create_model, load_weights
from lenslib.npy_files import read_npy
from lenslib.training import predict_logits

METADATA = ("model", "recipe", "classes", "image_size", "native_size", "crop", "in_chans")


def classifier_metadata(
    model: str, recipe, image_size: int, crop: int | None = None, in_chans: int = 1
) -> dict[str, str]:
    """What a weights file must say of itself to be used on its own (safetensors metadata: texts)."""
    return {
        "model": model,
        "recipe": recipe.name,
        "classes": json.dumps(list(recipe.classes)),
        "image_size": str(image_size),
        "native_size": str(recipe.instrument.pixels),
        "crop": str(crop or recipe.instrument.pixels),
        "in_chans": str(in_chans),
    }


@dataclass
class Classifier:
    """A trained network with what it was trained for: images of `native_size` pixels a side, of which it sees the
    central `crop` (all, if None), resampled to `image_size`."""

    network: nn.Module
    model: str
    recipe: str
    classes: tuple[str, ...]
    image_size: int
    native_size: int
    crop: int | None = None
    in_chans: int = 1

    def probabilities(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Class probabilities [n, classes] of raw images [n, c, h, w] in any units of brightness.

        A part at a time, so that a data set may be larger than memory.
        """
        parts = (self.prepare(images[first : first + 512]) for first in range(0, len(images), 512))
        return np.concatenate([predict_logits(self.network, part).softmax(1).numpy() for part in parts])

    def prepare(self, images: Tensor | np.ndarray) -> Tensor:
        """Raw images as this network sees them."""
        return prepare(images, self.image_size, self.crop)


def load_classifier(path: str | Path) -> Classifier:
    """The classifier in a `weights.safetensors` that `lenslib train` wrote. InputError when it is not one."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"no weights file '{path}': give a weights.safetensors that `lenslib train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        raise InputError(
            f"'{path}' is not a safetensors file (pickled weights are refused: opening one can run code)"
        ) from None
    missing = [name for name in METADATA if name not in metadata]
    if missing:
        raise InputError(f"'{path}' does not say its {', '.join(missing)}: it was not written by `lenslib train`")
    try:
        classes = tuple(map(str, json.loads(metadata["classes"])))
        size, native_size, crop, in_chans = (int(metadata[name]) for name in METADATA[3:])
    except (ValueError, TypeError):
        raise InputError(
            f"'{path}' has a damaged entry among its classes, image_size, native_size, crop, in_chans"
        ) from None
    network = create_model(metadata["model"], len(classes), size, in_chans)
    load_weights(network, path)
    network = network.eval()
    return Classifier(network, metadata["model"], metadata["recipe"], classes, size, native_size, crop, in_chans)


def read_images(path: str | Path, size: int, in_chans: int = 1) -> np.ndarray:
    """Images [n, in_chans, size, size], float32, from a .npy file of one image, a stack of them or [image, axion mass],
    or from the first image of a FITS file. Colours may come first or last.

    InputError names what is wrong with the file; nothing in it is run.
    """
    path = Path(path)
    if is_fits(path):
        images = read_fits(path)[0]
    elif path.suffix == ".npy":
        images = read_npy(path)
        images = split_masses(path, images)[0] if images.dtype == object else images
    else:
        raise InputError(f"'{path}': only .npy and FITS images are read here")
    if images.dtype.kind not in "fiu":
        raise InputError(f"'{path}': holds {images.dtype}, not numbers")
    shape = images.shape
    if in_chans == 1 and images.ndim in (2, 3):
        images = images[..., None, :, :]
    elif images.ndim > 2 and shape[-1] == in_chans:
        images = np.moveaxis(images, -1, -3)
    one = (in_chans, size, size)
    if images.ndim not in (3, 4) or images.shape[-3:] != one:
        colours = f" in {in_chans} colours" if in_chans > 1 else ""
        raise InputError(f"'{path}': has shape {shape}, and the network was trained on {size} x {size} pixels{colours}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        images = images.reshape(-1, *one).astype(np.float32)
    if not np.isfinite(images).all():
        raise InputError(f"'{path}': has {int((~np.isfinite(images)).sum())} pixels that are NaN or infinite")
    if not len(images) or (np.ptp(images, axis=(2, 3)) == 0).any():
        raise InputError(f"'{path}': holds no image, or one whose pixels are all equal")
    return images


def find_images(paths: list[str | Path]) -> list[Path]:
    """The files among `paths`, and the .npy and FITS files in their folders. InputError for a folder without any."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix == ".npy" or is_fits(file))
            if not inside:
                raise InputError(f"'{path}' holds no .npy images and no FITS images")
            found += inside
        else:
            found.append(path)
    return found


def predict_files(classifier: Classifier, paths: list[Path], progress=True):
    """Yield (path, probabilities [n, classes] or the InputError that says why there are none), in order."""
    from tqdm import tqdm

    for path in tqdm(paths, desc="predict", unit="file", disable=None if progress else True):
        try:
            yield path, classifier.probabilities(read_images(path, classifier.native_size, classifier.in_chans))
        except InputError as error:
            yield path, error
