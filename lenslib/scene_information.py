"""What the image of one scene tells: how well its smooth lens and source are measured, which direction of them is seen
least, and how far substructure stands out of what a smooth lens can take up.

told = tell(recipe, values, picture)      # of `lenslib.scene`
told.weakest                              # {"lens_e1": 0.004, ...}: a step of one standard deviation
told.ceiling                              # the AUC of one who knows the substructure, but nothing of the lens before
"""

from dataclasses import dataclass

import numpy as np
import torch

from lenslib.ceiling import beside, paired_auc
from lenslib.errors import InputError
from lenslib.information import parameters
from lenslib.recipe import Recipe
from lenslib.scene import Picture, dials, pinned
from lenslib.simulate import render

# of a dial's range, for derivatives; and what a direction may move one dial by when an image hardly shows it
_STEP, _FARTHEST = 1e-4, 0.05
# of the largest singular value
_ROUNDING = 1e-9
# the dial of a parameter that is called otherwise
_DIAL = {"lens_theta_E": "theta_E"}


@dataclass(frozen=True)
class Told:
    """Of one scene. `bounds`: the smallest standard deviation of any unbiased estimate (Cramer-Rao) of each dial of
    lens and source, were the lens smooth. `weakest`: by dial, a step in the direction, measured in shares of the dials'
    ranges, that the image shows least: of one standard deviation, or less where that would move a dial by more than a
    twentieth of its range. `signal`: the signal-to-noise of the substructure, over all pixels, after a smooth lens and
    source have taken up what they can, to first order; `unfitted`: before; 0 without substructure. `deviation`: of the
    noise of each pixel [h, w]."""

    bounds: dict[str, float]
    weakest: dict[str, float]
    signal: float
    unfitted: float
    deviation: np.ndarray

    @property
    def ceiling(self) -> float:
        """The AUC of one who knows what substructure there would be, and where, but of lens and source nothing
        beforehand: `lenslib.ceiling` for this one lens. No blind search reaches it, but one who knows how the recipe
        draws lenses can pass it."""
        return float(paired_auc(self.signal**2, self.signal**2))

    def change(self, image: np.ndarray, other: np.ndarray) -> float:
        """How many deviations two noise-free images [h, w] are apart in all."""
        return float(np.sqrt((((image - other) / self.deviation) ** 2).sum()))


@torch.no_grad()
def tell(recipe: Recipe, values: dict[str, float], picture: Picture) -> Told:
    """InputError for a recipe without noise, whose images tell everything, and for more than one band."""
    if recipe.instrument.noise.kind == "none":
        raise InputError(f"{recipe.name} has no noise, so that an image tells all")
    if recipe.channels > 1 or recipe.instrument.divide_by_peak:
        raise InputError(f"{recipe.name}: only images of one band that are not divided by their peak are judged here")
    scene, known = pinned(recipe, values), dials(recipe)
    params = {name: torch.tensor([value], dtype=torch.float64) for name, value in picture.params.items()}
    params["lens_theta_E"] = params["theta_E"]  # about the smooth lens, from which the substructure is told
    names = [name for name in parameters(recipe, params) if _DIAL.get(name, name) in known or name == "amp"]
    widths = [_width(known, name, picture.params[name]) for name in names]
    deviation = scene.instrument.noise.deviation(torch.tensor(picture.clean)[None, None].double(), params)[0, 0].numpy()
    slopes = _slopes(scene, params, names, widths) / deviation.ravel()
    _, size, turned = np.linalg.svd(slopes.T, full_matrices=False)
    bounds = np.linalg.norm(turned.T / np.maximum(size, _ROUNDING * size[0]), axis=1) * widths
    named = [_DIAL.get(name, name) for name in names]
    turnable = [k for k, name in enumerate(named) if name in known]
    follows = None if "amp" in known else names.index("amp")
    steps = _weakest(slopes, turnable, follows, picture.smooth.argmax()) * np.array(widths)[turnable]
    change = ((picture.clean - picture.smooth) / deviation).ravel()
    return Told(
        dict(zip(named, bounds.tolist(), strict=True)),
        dict(zip([named[k] for k in turnable], steps.tolist(), strict=True)),
        float(np.linalg.norm(beside(slopes, change))) if picture.substructure else 0.0,
        float(np.linalg.norm(change)) if picture.substructure else 0.0,
        deviation,
    )


def _weakest(slopes: np.ndarray, turnable: list[int], follows: int | None, peak: int) -> np.ndarray:
    """The step of one deviation in the direction that is seen least, of what can be turned; where the brightness,
    number `follows`, has no dial, it keeps the brightest pixel as bright as it is."""
    if follows is not None:
        slopes = slopes - np.outer(slopes[:, peak] / slopes[follows, peak], slopes[follows])
    _, size, turned = np.linalg.svd(slopes[turnable].T, full_matrices=False)
    step = turned[-1] * min(1 / max(size[-1], 1e-30), _FARTHEST / np.abs(turned[-1]).max())
    return step * np.sign(step[np.abs(step).argmax()])


def _width(known, name: str, value: float) -> float:
    """What a direction measures a parameter by: its dial's range, or its value where it has none."""
    dial = known.get(_DIAL.get(name, name))
    return dial.high - dial.low if dial else value


def _slopes(scene: Recipe, params, names: list[str], widths: list[float]) -> np.ndarray:
    """Derivatives [k, pixels] of the noise-free image without substructure, a unit being a dial's range."""
    count, moved = len(names), {name: value.repeat(2 * len(names)) for name, value in params.items()}
    for k, (name, width) in enumerate(zip(names, widths, strict=True)):
        moved[name][k] += _STEP * width
        moved[name][count + k] -= _STEP * width
    images = render(scene, moved)[:, 0].flatten(1).numpy()
    return (images[:count] - images[count:]) / (2 * _STEP)
