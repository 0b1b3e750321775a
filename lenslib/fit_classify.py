"""From images to probabilities: a smooth lens and source are fitted, and a network judges what they leave.

classifier = load_fit_classifier("weights.safetensors")          # trained on what `lenslib fit` writes
answers = classifier.answers(images, noise)                      # of a recipe's own instrument
answers = classifier.answers(images, noise, psf=kernel, mask=mask)    # of a frame with a point-spread function
answers.probabilities, answers.reasons                           # NaN and why, where there is nothing to go by
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lenslib.errors import InputError
from lenslib.inference import Classifier, judges_fits, load_classifier, metadata_of
from lenslib.instruments import PSF
from lenslib.recipe import Recipe, parse_recipe
from lenslib.refine import Fit, Templates, joined, noise_map
from lenslib.residuals import CHANNELS, fit_and_subtract

# images that are fitted at once
_AT_ONCE = 480
# of all that the arcs stand out by, squared and summed, the share that a mask may hide
_HIDDEN = 0.2
# share by which a fitted Einstein radius may lie beyond those that were drawn
_ERRS = 0.05
# what is known of photon noise
_PHOTONS = ("background_rms", "exposure_time")
# what the unmasked arcs must stand out by, squared and summed: the faintest lens of `matched_hst` has ten times that
_LEAST_LIGHT = 500.0


@dataclass(frozen=True)
class Answers:
    """What is said of n images.

    probabilities: [n, classes], NaN where they are withheld. reasons: n texts, empty where they are not. highest: [n],
    the highest significance of a single mass over all places, a score that needs no training. fit: see `Fit`.
    """

    probabilities: np.ndarray
    reasons: tuple[str, ...]
    highest: np.ndarray
    fit: Fit

    @property
    def withheld(self) -> np.ndarray:
        """Bool [n]."""
        return np.array([bool(reason) for reason in self.reasons])


@dataclass
class FitClassifier:
    """A network that judges residuals, with the `recipe` of the smooth lenses that are fitted first.

    limit, most_significant: a fit that leaves a larger chi-square for each degree of freedom, or in which a mass is
        more significant, for or against, is not believed (see `lenslib.inference.fit_metadata`).
    templates: how many smooth lenses are searched for the one that a fit begins with.
    """

    classifier: Classifier
    recipe: Recipe
    limit: float
    most_significant: float
    templates: int = 16384

    def __post_init__(self):
        self._library: Templates | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.classifier.classes

    @property
    def native_size(self) -> int:
        return self.classifier.native_size

    def answers(
        self,
        images: Tensor | np.ndarray,
        noise: Mapping[str, Tensor] | Tensor | np.ndarray,
        psf: np.ndarray | None = None,
        mask: Tensor | np.ndarray | None = None,
        starts: Mapping[str, Tensor] | None = None,
        turns: bool = False,
    ) -> Answers:
        """Judge images [n, 1, h, w], in any unit.

        `noise` is the standard deviation of every pixel, as images (or one for all of them), or background_rms and
        exposure_time by name, each [n], of images in electrons a second. `psf` is a kernel [k, k] at the scale of the
        image's pixels (default: that of the recipe's instrument), `mask` is true where a pixel is not to count, as
        images or one for all. Fits begin at `starts`, parameters by name, such as a network's estimates; by default at
        the most alike of a library of templates. `turns`: see `Classifier.probabilities`.
        Raises InputError for images of another size than those trained on, that are zero everywhere or not finite
        where no mask is, and for noise that is not positive.
        """
        images = self._checked(images)
        recipe = self.recipe if psf is None else with_psf(self.recipe, psf)
        noise = _known(images, noise)
        mask = None if mask is None else _spread(images, torch.as_tensor(np.asarray(mask), dtype=torch.bool), "mask")
        if mask is not None and bool(mask.flatten(1).all(1).any()):
            raise InputError(f"the mask leaves no pixel of image {int(mask.flatten(1).all(1).nonzero()[0])}")
        starts = starts or self._search()
        parts = []
        for rows in torch.arange(len(images)).split(_AT_ONCE):
            begun = starts if isinstance(starts, Templates) else {name: value[rows] for name, value in starts.items()}
            known = noise[rows] if isinstance(noise, Tensor) else {name: value[rows] for name, value in noise.items()}
            hidden = None if mask is None else mask[rows]
            parts.append(self._judged(recipe, images[rows], known, hidden, begun, turns))
        return _joined(parts)

    def _judged(self, recipe, images, noise, mask, starts, turns) -> Answers:
        if isinstance(noise, Tensor) and bool((endless := noise.isinf()).any()):
            # noise without end hides a pixel as a mask does
            mask = endless if mask is None else mask | endless
            noise = torch.where(endless, noise[~endless].median(), noise)
        channels, fit = fit_and_subtract(recipe, images, noise, starts, mask)
        significance = channels[:, CHANNELS.index("significance")].flatten(1)
        deviation = noise if isinstance(noise, Tensor) else noise_map(recipe, noise, fit.model)
        shown, extreme = (fit.model / deviation).square().flatten(1), significance.abs().amax(1)
        reasons = self._reasons(fit, shown, extreme, mask)
        probabilities = self.classifier.probabilities(channels, turns)
        probabilities[[bool(reason) for reason in reasons]] = np.nan
        return Answers(probabilities, reasons, significance.amax(1).numpy(), fit)

    def _reasons(self, fit: Fit, shown: Tensor, extreme: Tensor, mask: Tensor | None) -> tuple[str, ...]:
        """Why there is no answer, image by image, empty where there is one; of fits whose light stands out by `shown`
        [n, pixels], squared, and in which a mass is at most as significant as `extreme` [n]."""
        seen = shown.sum(1) if mask is None else shown.masked_fill(mask.flatten(1), 0).sum(1)
        hidden, left = 1 - seen / shown.sum(1).clamp(min=1e-30), fit.chi_square / fit.freedom
        size, (smallest, largest) = fit.params["lens_theta_E"], self._radii()
        said = []
        for k in range(len(shown)):
            if not seen[k] > _LEAST_LIGHT:
                said.append("no arcs are seen" + ("" if mask is None else ": the mask covers them"))
            elif hidden[k] > _HIDDEN:
                said.append(f"the mask covers {hidden[k]:.0%} of what the arcs show")
            elif not fit.converged[k]:
                said.append("the fit did not converge")
            elif left[k] > self.limit:
                said.append(f"the fit failed: chi-square {left[k]:.3g} a degree of freedom, above {self.limit:.3g}")
            elif left[k] < 2 - self.limit:
                said.append(f"the noise is less than was said: chi-square {left[k]:.3g} a degree of freedom")
            elif extreme[k] > self.most_significant:
                said.append(
                    f"the fit leaves more than any substructure trained on: a significance of {extreme[k]:.3g}, above "
                    f"{self.most_significant:.3g}, as a star, another source or another point-spread function would"
                )
            elif not smallest <= size[k] <= largest:
                said.append(f"no lens of the kind trained on: an Einstein radius of {size[k]:.3g} arcsec fits best")
            else:
                said.append("")
        return tuple(said)

    def _radii(self) -> tuple[float, float]:
        """Einstein radii that the recipe draws, and a little beyond, as a fit errs; none is refused where they follow
        from a mass or a dispersion."""
        if self.recipe.lens.theta_E is None:
            return 0.0, float("inf")
        low, high = self.recipe.lens.theta_E.support()
        return (1 - _ERRS) * low, (1 + _ERRS) * high

    def _checked(self, images) -> Tensor:
        images = torch.as_tensor(images if isinstance(images, Tensor) else np.array(images), dtype=torch.float32)
        size = self.native_size
        if images.ndim != 4 or images.shape[1:] != (1, size, size):
            raise InputError(
                f"images have the shape {list(images.shape)}, and the network was trained on [n, 1, {size}, {size}]: "
                "cut or resample them to that"
            )
        return images

    def _search(self) -> Templates:
        if self._library is None:
            self._library = Templates(self.recipe, self.templates)
        return self._library


def load_fit_classifier(path: str | Path) -> FitClassifier:
    """The classifier in a `weights.safetensors` that was trained on a set of `lenslib fit`. InputError otherwise."""
    metadata = metadata_of(path)
    if not judges_fits(metadata):
        raise InputError(f"'{path}' was not trained on what `lenslib fit` writes: load it with load_classifier")
    try:
        limits = float(metadata["fit_limit"]), float(metadata["most_significant"])
    except (KeyError, ValueError):
        raise InputError(f"'{path}' does not say which fits to believe: train it again") from None
    return FitClassifier(load_classifier(path), parse_recipe(metadata["fitted_recipe"], str(path)), *limits)


def with_psf(recipe: Recipe, kernel: np.ndarray) -> Recipe:
    """The recipe with a measured point-spread function [k, k] at the scale of its pixels. InputError for another."""
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise InputError(f"the point-spread function has the shape {kernel.shape}: it must be square with an odd side")
    if not np.isfinite(kernel).all() or kernel.sum() <= 0:
        raise InputError("the point-spread function has NaNs or no light")
    if len(kernel) > 2 * recipe.instrument.pixels - 1:
        raise InputError(
            f"the point-spread function is {len(kernel)} pixels wide, the image {recipe.instrument.pixels}"
        )
    psf = PSF(measured=tuple(map(tuple, (kernel / kernel.sum()).tolist())))
    return recipe.model_copy(update={"instrument": recipe.instrument.model_copy(update={"psf": psf})})


def _known(images: Tensor, noise) -> Tensor | dict[str, Tensor]:
    """Noise as deviations of every pixel or as facts of every image."""
    if isinstance(noise, Mapping):
        if missing := [name for name in _PHOTONS if name not in noise]:
            raise InputError(f"the noise of photons needs {' and '.join(missing)}: give them, or a noise map")
        facts = {name: torch.as_tensor(noise[name], dtype=torch.float32) for name in _PHOTONS}
        for name, value in facts.items():
            if not (value > 0).all():
                raise InputError(f"{name} must be above 0")
        return {name: value.expand(len(images)) for name, value in facts.items()}
    return _spread(images, torch.as_tensor(np.asarray(noise), dtype=torch.float32), "noise map")


def _spread(images: Tensor, given: Tensor, what: str) -> Tensor:
    """One map for all images, or one for each, as [n, 1, h, w]."""
    if given.shape[-2:] != images.shape[-2:] or given.numel() not in (images[0].numel(), images.numel()):
        raise InputError(f"the {what} has the shape {list(given.shape)}, the images {list(images.shape)}")
    return given.reshape(-1, *images.shape[1:]).expand(len(images), -1, -1, -1)


def _joined(parts: list[Answers]) -> Answers:
    fits = [part.fit for part in parts]
    return Answers(
        np.concatenate([part.probabilities for part in parts]),
        sum((part.reasons for part in parts), ()),
        np.concatenate([part.highest for part in parts]),
        joined(fits, torch.arange(sum(len(part.reasons) for part in parts))),
    )
