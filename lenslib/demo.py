"""What the demo says of one frame: class probabilities, what they hang on, whether the frame is like those the network
knows, and a fit of a smooth lens with its Einstein radius and its source without the lens.

subject = load_subject("classification/deeplense_1/polar_cnn")
answer = subject.judge(image)                        # [1, 1, h, w], as lenslib.image_files.read_images gives it
fitted = subject.measure(image)
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenslib.errors import InputError
from lenslib.fit_classify import load_fit_classifier
from lenslib.inference import (
    Classifier,
    Estimator,
    delens,
    judges_fits,
    load_classifier,
    load_estimator,
    metadata_of,
    refine,
)
from lenslib.recipe import list_recipes, load_recipe, parse_recipe
from lenslib.validation import Validation, load_validation
from lenslib.weights import check_named

# smooth lenses that a fit's start is sought among; windows of the attribution, and how far they move
TEMPLATES, WINDOW, STRIDE = 2048, 0.1, 0.05
UNVALIDATED = "These weights were never validated: read nothing into how sure they look."
LEAVES_MORE = " The smooth lens leaves more than noise: substructure, other noise or source, or no lens."
UNEXPOSED = " The photons of the arcs were not counted as noise, so that the interval is too narrow: give the exposure."
# what the source is shown in, beside the largest of its sizes
_SOURCE = 6.0


@dataclass(frozen=True)
class Answer:
    """Of one frame: `classes` (probabilities by name) or `numbers` (by name), and `warning`, empty where there is
    none."""

    classes: dict[str, float]
    numbers: dict[str, float]
    warning: str


@dataclass(frozen=True)
class Measured:
    """A fit to one frame. `radius`: the Einstein radius with the ends of its 95 % interval, in `unit`. `model`,
    `residual` [h, w], the residual in deviations; `source` [k, k]. `words`: whether it is to be believed."""

    radius: tuple[float, float, float]
    unit: str
    model: np.ndarray
    residual: np.ndarray
    source: np.ndarray
    words: str


@dataclass
class Subject:
    """A network of the demo: `exported` runs it in onnxruntime, `network` is the same with what it was trained for."""

    name: str
    network: Classifier | Estimator
    exported: Any
    validation: Validation | None
    recipe: Any
    templates: int = TEMPLATES

    @property
    def size(self) -> int:
        return self.network.native_size

    def judge(self, image: np.ndarray, photons: float = 0.0) -> Answer:
        """What the network says of an image [1, c, h, w], at the temperature of its validation."""
        found = self.exported.answers(image)[0]
        strange = []
        if self.validation is not None:
            prepared = self.network.prepare(torch.from_numpy(image)).numpy()
            strange = self.validation.strange(prepared)[0]
        warning = "" if self.validation is not None else UNVALIDATED
        if strange:
            warning = f"Unlike every image that this network knows in its {', '.join(strange)}: do not believe it."
        told = dict(zip(self.exported.names, map(float, found), strict=True))
        return Answer({}, told, warning) if isinstance(self.network, Estimator) else Answer(told, {}, warning)

    def attribution(self, image: np.ndarray) -> np.ndarray:
        """How much lower the likeliest class's probability is when a window about a pixel is dark, [h, w]: occlusion
        (Zeiler & Fergus 2014, arXiv:1311.2901), by captum."""
        from captum.attr import Occlusion

        if isinstance(self.network, Estimator):
            raise InputError("numbers have no class whose probability could fall")
        window, stride = (max(2, round(share * self.size)) for share in (WINDOW, STRIDE))
        target = int(self.exported.answers(image)[0].argmax())
        occlusion = Occlusion(lambda images: torch.from_numpy(self.exported.answers(images.numpy())))
        shape = (image.shape[1], window, window)
        found = occlusion.attribute(
            torch.from_numpy(image), shape, (image.shape[1], stride, stride), float(np.median(image)), target,
            perturbations_per_eval=64,
        )  # fmt: skip
        return found[0].mean(0).numpy()

    @cached_property
    def starts(self):
        """The library of lenses that fits of this recipe begin with."""
        if self.recipe.kind == "roulette":
            return None
        from lenslib.refine import Templates

        return Templates(self.recipe, self.templates)

    def measure(self, image: np.ndarray, photons: float = 0.0) -> Measured:
        """A smooth lens and source fitted to an image [1, 1, h, w].

        The noise of the sky is that at the frame's edge; where it is known how many `photons` make one unit of the
        image (the exposure in seconds, of an image in electrons a second), the arcs have theirs as well. A roulette
        recipe knows its noise. InputError for a recipe that no smooth lens can be fitted to.
        """
        images = torch.from_numpy(image)
        if self.recipe.kind == "roulette":
            starts = self.network.params(images) if isinstance(self.network, Estimator) else None
            fit = refine(self.recipe, images, starts, evolutions=1)
            return self._measured(images, fit, "einstein_radius", "pixels")
        noise = edge_noise(images, photons)
        fit = refine(self.recipe, images, self.starts.starts(images), noise)
        return self._measured(images, fit, "lens_theta_E", "arcsec", "" if photons > 0 else UNEXPOSED)

    def _measured(self, images: Tensor, fit, name: str, unit: str, doubt: str = "") -> Measured:
        value, deviation = float(fit.params[name][0]), float(fit.uncertainty(name)[0])
        left = float(fit.chi_square[0] / fit.freedom[0])
        words = f"Chi-square {left:.2f} a degree of freedom."
        if not fit.converged[0]:
            words = "The fit did not converge: do not believe it."
        elif not fit.good[0]:
            words += doubt or LEAVES_MORE
        sizes = [float(fit.params[key][0]) for key in ("R_sersic", "sigma1") if key in fit.params]
        source = delens(self.recipe, images, fit.params, width=_SOURCE * max(sizes))
        radius = (value, value - 1.96 * deviation, value + 1.96 * deviation)
        plain = (part[0, 0].numpy() for part in (fit.model, fit.residual, source))
        return Measured(radius, unit, *plain, words)


@dataclass
class FitSubject(Subject):
    """A network that judges what a fit leaves: `network` is a `FitClassifier`, and nothing is exported."""

    def judge(self, image: np.ndarray, photons: float = 0.0) -> Answer:
        answers = self.network.answers(image, edge_noise(torch.from_numpy(image), photons))
        if answers.reasons[0]:
            return Answer({}, {}, f"No answer: {answers.reasons[0]}.")
        found = answers.probabilities if self.validation is None else self.validation.calibrated(answers.probabilities)
        warning = "" if self.validation is not None else UNVALIDATED
        return Answer(dict(zip(self.network.classes, map(float, found[0]), strict=True)), {}, warning)

    def attribution(self, image: np.ndarray) -> np.ndarray:
        raise InputError("this network looks at what the fit leaves: see the residual")


def edge_noise(images: Tensor, photons: float = 0.0) -> Tensor:
    """Standard deviations of every pixel of images [n, 1, h, w], from the median absolute deviation at their edges, and
    of the arcs where so many `photons` make one unit. InputError where the edge has no noise."""
    width = max(2, images.shape[-1] // 15)
    edge = torch.ones(images.shape[-2:], dtype=torch.bool)
    edge[width:-width, width:-width] = False
    sky = images[..., edge]
    middle = sky.median(-1, keepdim=True).values
    rms = 1.4826 * (sky - middle).abs().median(-1).values[..., None, None]
    rms = torch.where(rms > 0, rms, sky.std(-1)[..., None, None])  # where most of the sky counted no photon
    if not (rms > 0).all():
        raise InputError("the edge of the frame has no noise, so that nothing says how well a fit must do")
    light = (images - middle[..., None]).clamp(min=0)
    return (rms**2 + (light / photons if photons > 0 else 0.0)).sqrt().expand_as(images)


def photons_of(batch) -> list[float]:
    """Of each image of a batch, how many photons make one of its units, by the noise that they add; 0 of roulettes."""
    if "exposure_time" not in batch.params:
        return [0.0] * len(batch.images)
    noise = batch.recipe.instrument.noise
    counted = noise.kind == "deeplense"  # its images are counts
    return [(1.0 if counted else float(seconds)) / noise.photon_draws for seconds in batch.params["exposure_time"]]


def load_subject(weights: str | Path, templates: int = TEMPLATES) -> Subject:
    """The network of a weights file or name, exported, with its recipe. InputError for what is neither."""
    from lenslib.export import export_calibrated, load_exported

    path = check_named(weights)
    metadata = metadata_of(path)
    if judges_fits(metadata):
        fits = load_fit_classifier(path)
        fits.templates = templates
        return FitSubject(str(weights), fits, None, load_validation(path), fits.recipe, templates)
    network = (load_estimator if "targets" in metadata else load_classifier)(path)
    if path.with_suffix(".onnx").is_file():  # a hosted folder has them ready
        exported = load_exported(path.with_suffix(".onnx"))
    else:
        with TemporaryDirectory() as folder:
            exported = load_exported(export_calibrated(path, Path(folder) / "network.onnx")[0])
    return Subject(str(weights), network, exported, load_validation(path), recipe_of(path), templates)


def recipe_of(weights: str | Path):
    """The recipe that weights by path or name were trained on: of a set that changes lines of one, the one that it
    changes. InputError where there is none."""
    path = check_named(weights)
    metadata = metadata_of(path)
    if judges_fits(metadata):
        return parse_recipe(metadata["fitted_recipe"], str(path))
    name = metadata.get("recipe", "")
    known = max((one for one in list_recipes() if name.startswith(one)), key=len, default=None)
    if known is None:
        raise InputError(f"'{path}' was trained on {name}, which is no recipe here: nothing can be fitted")
    return load_recipe(known)
