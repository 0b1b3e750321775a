"""From trained weights to answers: load a classifier or an estimator from its file, and put images through it."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lenslib.augmentation import AUGMENTATIONS, turn_images
from lenslib.dataset import CHANNELS, DataSet, prepare
from lenslib.errors import InputError
from lenslib.image_files import read_images
from lenslib.models import create_model, load_weights
from lenslib.targets import KINDS, Targets
from lenslib.training import predict_logits
from lenslib.untrusted import parse_json

# a side of an image, and its colours, that weights can ask for
MOST_PIXELS, MOST_COLOURS = 1024, 32
METADATA = ("model", "recipe", "classes", "image_size", "native_size", "crop", "in_chans")
ESTIMATOR_METADATA = ("model", "recipe", "recipe_digest", "targets", *METADATA[3:])


def classifier_metadata(
    model: str, recipe, image_size: int, crop: int | None = None, in_chans: int = 1, units: str = "light"
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
        "units": units,
    }


def judges_fits(metadata: Mapping[str, str]) -> bool:
    """Whether weights with this metadata judge what a fit leaves."""
    return metadata.get("units") == "deviations" and "fitted_recipe" in metadata


def fit_metadata(data: DataSet) -> dict[str, str]:
    """What weights that are trained on a set of residuals must say of its fits, to be used on images: the recipe, and
    the largest chi-square for each degree of freedom and the largest significance of a mass that are believed."""
    left = data.params["fit_chi_square"][data.params["fit_converged"]].to_numpy()
    # twice the excess that one in a hundred has: fits that found another lens leave far more
    limit = 1 + 2 * max(float(np.quantile(left, 0.99)) - 1, 0.0)
    believed = (data.params["fit_converged"] & (data.params["fit_chi_square"] <= limit)).to_numpy()
    at = CHANNELS.index("significance")
    parts = (np.abs(data.images[first : first + 512, at]).max((1, 2)) for first in range(0, len(data), 512))
    most = 1.5 * np.concatenate(list(parts))[believed].max(initial=0.0)
    return {"fitted_recipe": data.recipe.to_yaml(), "fit_limit": f"{limit:.6g}", "most_significant": f"{most:.6g}"}


@dataclass
class Classifier:
    """A trained network with what it was trained for: images of `native_size` pixels a side, of which it sees the
    central `crop` (all, if None), resampled to `image_size`; units as in `lenslib.dataset.prepare`."""

    network: nn.Module
    model: str
    recipe: str
    classes: tuple[str, ...]
    image_size: int
    native_size: int
    crop: int | None = None
    in_chans: int = 1
    units: str = "light"

    def probabilities(self, images: Tensor | np.ndarray, turns: bool = False) -> np.ndarray:
        """Class probabilities [n, classes] of raw images [n, c, h, w] in any units of brightness.

        A part at a time, so that a data set may be larger than memory. With `turns`, the mean over the eight ways to
        turn and mirror an image, which its classes do not depend on: steadier, at eight times the cost.
        """
        kinds = AUGMENTATIONS["d4" if turns else "none"]
        parts = (self.prepare(images[first : first + 512]) for first in range(0, len(images), 512))
        return np.concatenate([np.mean([self._judged(part, kind) for kind in kinds], axis=0) for part in parts])

    def _judged(self, prepared: Tensor, kind: int) -> np.ndarray:
        return predict_logits(self.network, turn_images(prepared, kind)).softmax(1).numpy()

    answers = probabilities

    def prepare(self, images: Tensor | np.ndarray) -> Tensor:
        """Raw images as this network sees them."""
        return prepare(images, self.image_size, self.crop, self.units)


def load_classifier(path: str | Path) -> Classifier:
    """The classifier in a `weights.safetensors` that `lenslib train` wrote. InputError when it is not one."""
    metadata = metadata_of(path)
    if "targets" in metadata:
        raise InputError(f"'{path}' estimates numbers, not classes: load it with load_estimator")
    classes, (size, native_size, crop, in_chans) = classifier_facts(path, metadata)
    network = _network(path, metadata["model"], len(classes), size, in_chans)
    units = metadata.get("units", "light")
    return Classifier(network, metadata["model"], metadata["recipe"], classes, size, native_size, crop, in_chans, units)


def classifier_facts(path: str | Path, metadata: Mapping[str, str]) -> tuple[tuple[str, ...], list[int]]:
    """What the metadata of a classifier's file say: its classes, and image_size, native_size, crop and in_chans."""
    classes, sizes = _facts(path, metadata, METADATA)
    if not isinstance(classes, list):
        raise InputError(f"'{path}' has a damaged entry among its {', '.join(METADATA[2:])}")
    return tuple(map(str, classes)), sizes


def metadata_of(path: str | Path) -> dict[str, str]:
    """What a weights file says of itself."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"no weights file '{path}': give a weights.safetensors that `lenslib train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        raise InputError(
            f"'{path}' is not a safetensors file (pickled weights are refused: opening one can run code)"
        ) from None


def _facts(path: str | Path, metadata: Mapping[str, str], names: tuple[str, ...]):
    """What is JSON before the sizes, and the sizes: image_size, native_size, crop, in_chans."""
    missing = [name for name in names if name not in metadata]
    if missing:
        raise InputError(f"'{path}' does not say its {', '.join(missing)}: it was not written by `lenslib train`")
    try:
        facts, sizes = parse_json(metadata[names[-5]]), [int(metadata[name]) for name in names[-4:]]
    except ValueError:
        raise InputError(f"'{path}' has a damaged entry among its {', '.join(names[-5:])}") from None
    # memory is taken for a network of these sizes before its weights are seen not to fit
    for name, size, most in zip(names[-4:], sizes, (*[MOST_PIXELS] * 3, MOST_COLOURS), strict=True):
        if not 0 < size <= most:
            raise InputError(f"'{path}' says {name} {size}, which is not between 1 and {most}")
    return facts, sizes


def _network(path: str | Path, model: str, outputs: int, size: int, in_chans: int) -> nn.Module:
    network = create_model(model, outputs, size, in_chans)
    load_weights(network, path)
    return network.eval()


def recipe_digest(recipe) -> str:
    """SHA-256 over what the images of a recipe follow from: all but its title and references."""
    plain = recipe.model_copy(update={"title": "", "references": ()})
    return hashlib.sha256(plain.to_yaml().encode()).hexdigest()


def estimator_metadata(
    model: str,
    recipe,
    targets: Targets,
    image_size: int,
    crop: int | None = None,
    in_chans: int = 1,
    units: str = "light",
) -> dict[str, str]:
    """What the weights file of a regression must say of itself."""
    pixels = recipe.instrument.pixels
    return {
        "model": model,
        "recipe": recipe.name,
        "recipe_digest": recipe_digest(recipe) if hasattr(recipe, "model_copy") else "",
        "targets": json.dumps(targets.to_dict()),
        "image_size": str(image_size),
        "native_size": str(pixels),
        "crop": str(crop or pixels),
        "in_chans": str(in_chans),
        "units": units,
    }


@dataclass
class Estimator:
    """A network that gives numbers, with what it was trained for; sizes as in `Classifier`."""

    network: nn.Module
    model: str
    recipe: str
    recipe_digest: str
    targets: Targets
    image_size: int
    native_size: int
    crop: int | None = None
    in_chans: int = 1
    units: str = "light"

    def params(self, images: Tensor | np.ndarray) -> dict[str, Tensor]:
        """Estimates [n], float64 by name, and the parameters that the recipe does not vary, of raw images [n, c, h, w].

        InputError for images of another size, and ones whose pixels are all equal or not finite.
        """
        found = {name: torch.from_numpy(value) for name, value in self.labels(images).items()}
        same = {name: value for name, value in self.targets.constants.items() if not isinstance(value, str)}
        return found | {name: torch.full((len(images),), value, dtype=torch.float64) for name, value in same.items()}

    def answers(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Estimates [n, names], in the order of `targets.names`."""
        found = self.labels(images)
        return np.stack([found[name] for name in self.targets.names], 1)

    def labels(self, images: Tensor | np.ndarray) -> dict[str, np.ndarray]:
        """Estimates [n], float64 by name, of what was learned alone."""
        shape = (self.in_chans, self.native_size, self.native_size)
        if tuple(images.shape[1:]) != shape or not len(images):
            raise InputError(
                f"images have the shape {list(images.shape)}, and {self.model} was trained on {self.recipe}: "
                f"[n, {', '.join(map(str, shape))}]"
            )
        parts = []
        for first in range(0, len(images), 512):
            part = images[first : first + 512]
            part = torch.as_tensor(part if isinstance(part, Tensor) else np.array(part), dtype=torch.float32)
            flat = part.flatten(2)
            bad = (~flat.isfinite().all(2) | (flat.amax(2) == flat.amin(2))).any(1)
            if bad.any():
                number = first + int(bad.nonzero()[0])
                raise InputError(f"image {number} is of one brightness or not finite: there is nothing to measure")
            parts.append(predict_logits(self.network, prepare(part, self.image_size, self.crop, self.units)))
        return self.targets.decode(torch.cat(parts).numpy())


def answered(network: Classifier | Estimator, data, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """A network's `answers` [n, k] to those images of a data set, a part at a time, and the images judged a second."""
    start = time.perf_counter()
    parts = np.split(rows, range(512, len(rows), 512))
    found = np.concatenate([network.answers(data.images[part]) for part in parts])
    return found, len(rows) / (time.perf_counter() - start)


def estimates_numbers(path: str | Path) -> bool:
    """Whether a weights file is that of an estimator."""
    return "targets" in metadata_of(path)


def load_estimator(path: str | Path, recipe=None) -> Estimator:
    """The estimator in a `weights.safetensors` that `lenslib regress` wrote, for images of a `recipe` if one is given.

    InputError when it is none, or was trained on another recipe.
    """
    metadata = metadata_of(path)
    if "classes" in metadata:
        raise InputError(f"'{path}' tells classes, it estimates no numbers: load it with load_classifier")
    targets, (size, native_size, crop, in_chans) = estimator_facts(path, metadata)
    if recipe is not None and metadata["recipe_digest"] != recipe_digest(recipe):
        same = " as it was then" if recipe.name == metadata["recipe"] else ""
        raise InputError(f"'{path}' was trained on {metadata['recipe']}{same}, not on {recipe.name}: train it on that")
    network = _network(path, metadata["model"], len(targets.columns), size, in_chans)
    facts = metadata["model"], metadata["recipe"], metadata["recipe_digest"], targets
    return Estimator(network, *facts, size, native_size, crop, in_chans, metadata.get("units", "light"))


def estimator_facts(path: str | Path, metadata: Mapping[str, str]) -> tuple[Targets, list[int]]:
    """What the metadata of an estimator's file say: its targets, and image_size, native_size, crop and in_chans."""
    entry, sizes = _facts(path, metadata, ESTIMATOR_METADATA)
    try:
        targets = Targets(**{name: tuple(part) if isinstance(part, list) else part for name, part in entry.items()})
        numbers = np.array([targets.offset, targets.scale], float)
        if targets.kind not in KINDS or numbers.shape != (2, len(targets.columns)) or not np.isfinite(numbers).all():
            raise ValueError("not what Targets.to_dict gives")
    except (TypeError, AttributeError, ValueError, LookupError, OverflowError):
        raise InputError(f"'{path}' has a damaged entry among its targets") from None
    return targets, sizes


def refine(
    recipe,
    images: Tensor,
    starts,
    noise: Tensor | None = None,
    steps: int | None = None,
    progress: bool = False,
    evolutions: int = 5,
):
    """Lenses and sources fitted to images [n, 1, h, w] by Levenberg and Marquardt's method through the simulator, from
    `starts`: parameters by name, each [n] (`Estimator.params`), or a search's (`Templates`, `RouletteTemplates`).

    Of a roulette recipe, whose noise is its own, or a smooth lens and source of any other (see
    `lenslib.roulette_fit.refine_roulettes` and `lenslib.refine.refine`), which needs `noise`: the standard deviation of
    every pixel. Returns a `Fit`: parameters with covariances, chi-square, whether it converged, residuals.
    Roulettes keep to the distances and Einstein radii that the recipe draws; an image that stays in doubt costs half a
    minute, which fewer `evolutions` save.
    InputError for images of the wrong size, of one brightness or not finite, starts that do not fit them, and a noise
    map that is missing or not positive.
    """
    most = () if steps is None else (steps,)
    if recipe.kind == "roulette":
        from lenslib.roulette_fit import refine_roulettes

        if noise is not None:
            raise InputError(f"{recipe.name} knows its noise, instrument.noise_sd: leave out the noise map")
        return refine_roulettes(recipe, images, starts, *most, progress=progress, evolutions=evolutions)
    from lenslib import refine as smooth

    if noise is None:
        raise InputError(f"{recipe.name} needs the noise of every pixel: see lenslib.refine.noise_map")
    return smooth.refine(recipe, images, starts, noise, *most, progress=progress)


def delens(recipe, images: Tensor, params: dict[str, Tensor], width: float, pixels: int = 64) -> Tensor:
    """The sources without their lenses, [n, 1, pixels, pixels]: see `lenslib.delens.delens`."""
    from lenslib import delens as undone

    return undone.delens(recipe, images, params, width, pixels)


def predict_files(network, paths: list[Path], progress=True):
    """Yield (path, what `answers` of its images or the InputError that says why there is nothing), in order.

    `network`: a `Classifier`, an `Estimator`, or anything with `answers`, `native_size`, `in_chans` and, where some
    pixels do not count, a `mask`.
    """
    from tqdm import tqdm

    for path in tqdm(paths, desc="predict", unit="file", disable=None if progress else True):
        try:
            images = read_images(path, network.native_size, network.in_chans, getattr(network, "mask", None))
            yield path, network.answers(images)
        except InputError as error:
            yield path, error
