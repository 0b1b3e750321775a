"""What a regression learns: labels of images as numbers that a network can be trained on, and back.

Kinds of targets:

- `parameters` of a roulette recipe, those that it varies. Two sets of (sigma1, sigma2, theta) are one image, so sigma1
  is the larger and theta lies in 0 to 180; theta is learned as (cos 2 theta, sin 2 theta) times the ellipticity
  (sigma1 - sigma2) / (sigma1 + sigma2), which vanishes where a source has no direction. All are scaled.
- `raw`: the same labels as they are drawn, neither ordered nor scaled.
- `amplitudes`: the roulette amplitudes of orders 1 to 5 at the image, in the lens plane.
- `axion_mass` (eV) of vortex images and `mass_fraction` of images with substructure, as decimal logarithms.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from lenslib.errors import InputError, unknown

KINDS = ("parameters", "raw", "amplitudes", "axion_mass", "mass_fraction")
ORDER = 5
# angles of directions, in degrees, and the two sizes whose difference is their weight (None: the number 1)
_ANGLES = {"theta": ("sigma1", "sigma2"), "orientation": (None, "axis_ratio")}
_SIZES = ("sigma1", "sigma2")
# of floor and ceiling, by which CosmoSim reads its bitmap: how far it moves the source of an image
_FLOOR = (0.5, -0.5)

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Targets:
    """What is learned of a recipe's images. `names` are judged; the columns [k] that a network gives are (column -
    offset) / scale of what `columns` says. `constants` are the parameters that the recipe does not vary."""

    kind: str
    names: tuple[str, ...]
    constants: dict[str, float] = field(default_factory=dict)
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def columns(self) -> list[tuple[str, int]]:
        """Name and spin of each column: 0 for a number, m for the two parts of what goes as exp(i m angle)."""
        if self.kind == "amplitudes":
            return [
                (f"{part}{m}{s}", s)
                for m, s in _orders(self.names)
                for part in (("alpha", "beta") if s else ("alpha",))
            ]
        if self.kind != "parameters":
            return [(name, 0) for name in self.names]
        columns = [("x", 1), ("y", 1)] if "x" in self.names else []
        columns += [(name, 0) for name in self.names if name not in ("x", "y", *_ANGLES)]
        return columns + [(f"{part} {name}", 2) for name in _ANGLES if name in self.names for part in ("cos", "sin")]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The first of each two columns that are parts of one, and its spin."""
        firsts, k = [], 0
        while k < len(self.columns):
            spin = self.columns[k][1]
            firsts += [(k, spin)] if spin else []
            k += 2 if spin else 1
        return firsts

    def label(self, params: Values) -> dict[str, np.ndarray]:
        """The labels, float64 [n] by name, that go with the params of a data set."""
        given = {name: np.asarray(value, float) for name, value in params.items() if name in _USED}
        if self.kind == "amplitudes":
            return amplitudes(given, self.constants["profile"], self.names)
        if self.kind in ("axion_mass", "mass_fraction"):
            with np.errstate(divide="ignore"):
                return {self.names[0]: np.log10(given[self.kind])}
        labels = {name: given[name] for name in self.names}
        return labels if self.kind == "raw" else ordered(labels)

    def encode(self, labels: Values) -> np.ndarray:
        """What the network is to give, float64 [n, k], of labels by name."""
        return (self._columns(labels) - np.array(self.offset)) / np.array(self.scale)

    def decode(self, outputs) -> dict[str, np.ndarray]:
        """Labels by name, float64 [n], of what the network gave [n, k]."""
        given = np.asarray(outputs, float) * np.array(self.scale) + np.array(self.offset)
        found = {name: given[:, k] for k, (name, _) in enumerate(self.columns)}
        if self.kind == "amplitudes":
            for m, s in _orders(self.names):
                names = [f"{part}{m}{s}" for part in ("alpha", "beta")][: 2 if s else 1]
                size = np.sqrt(sum(found[name] ** 2 for name in names)) ** (m - 1)
                found |= {name: found[name] * size for name in names}
        for name in _ANGLES:
            if self.kind == "parameters" and name in self.names:
                turn = 0.5 * np.arctan2(found[f"sin {name}"], found[f"cos {name}"])
                found[name] = np.rad2deg(turn) % 180
        if self.kind == "parameters":
            found = ordered(found)
        return {name: found[name] for name in self.names}

    def _columns(self, labels: Values) -> np.ndarray:
        if self.kind == "amplitudes":
            labels = dict(labels)
            for m, s in _orders(self.names):
                names = [f"{part}{m}{s}" for part in ("alpha", "beta")][: 2 if s else 1]
                # roots: amplitudes go as powers of the distance, so that of plain ones the nearest lenses would be all
                size = np.sqrt(sum(labels[name] ** 2 for name in names)).clip(1e-300) ** (1 / m - 1)
                labels |= {name: labels[name] * size for name in names}
        elif self.kind == "parameters":
            labels = ordered(labels)
            for name in _ANGLES:
                if name in self.names:
                    angle, weight = np.deg2rad(2 * labels[name]), _weight(labels, name)
                    labels |= {f"cos {name}": weight * np.cos(angle), f"sin {name}": weight * np.sin(angle)}
        return np.stack([np.asarray(labels[name], float) for name, _ in self.columns], 1)

    def turned(self, encoded: Tensor, kind: int) -> Tensor:
        """Encoded labels [n, k] of images that `training.turn_images` has turned."""
        result = encoded.clone()
        for k, spin in self.pairs:
            value = torch.complex(encoded[:, k], encoded[:, k + 1])
            if kind >= 4:  # x changes its sign
                value = (-1) ** spin * value.conj()
            value = value * (-1j) ** (spin * (kind % 4))
            result[:, k], result[:, k + 1] = value.real, value.imag
        return result

    def deviations(self, truth: Values, found: Values) -> dict[str, np.ndarray]:
        """Found less true, [n] by name, both with sigma1 >= sigma2 and angles the short way round; NaN where an angle
        has no meaning."""
        truth, found = ordered(truth), ordered(found)
        result = {name: np.asarray(found[name], float) - truth[name] for name in self.names}
        for name in _ANGLES:
            if name in result:
                result[name] = (result[name] + 90) % 180 - 90
                if all(part is None or part in truth for part in _ANGLES[name]):
                    result[name] = np.where(_weight(truth, name) > 0, result[name], np.nan)
        return result

    def to_dict(self) -> dict:
        """As JSON holds it; `Targets(**...)` takes it back."""
        return asdict(self)


# what labels are made of
_USED = (
    "x",
    "y",
    "chi",
    "einstein_radius",
    *_SIZES,
    "theta",
    "axis_ratio",
    "orientation",
    "axion_mass",
    "mass_fraction",
)


def _weight(labels: Values, angle: str) -> np.ndarray:
    large, small = (1.0 if name is None else labels[name] for name in _ANGLES[angle])
    return (large - small) / (large + small)


def _orders(names) -> list[tuple[int, int]]:
    return [(int(name[-2]), int(name[-1])) for name in names if name.startswith("alpha")]


def ordered(labels: Values) -> dict[str, np.ndarray]:
    """The same images with sigma1 >= sigma2 and angles from 0 to 180 degrees, where the labels have them."""
    labels = {name: np.asarray(value, float) for name, value in labels.items()}
    if all(name in labels for name in _SIZES):
        swap = labels["sigma1"] < labels["sigma2"]
        one, two = (labels[name] for name in _SIZES)
        labels |= {"sigma1": np.maximum(one, two), "sigma2": np.minimum(one, two)}
        if "theta" in labels:
            labels["theta"] = labels["theta"] + 90 * swap
    return labels | {name: labels[name] % 180 for name in _ANGLES if name in labels}


def amplitudes(params: Values, profile: str, names=None) -> dict[str, np.ndarray]:
    """Roulette amplitudes alpha and beta [n] of orders 1 to 5, by names such as alpha21, in the lens plane (pixels) at
    the image; those of `names`, or all."""
    from lenslib import roulettes

    params = {name: torch.as_tensor(np.asarray(value, float)) for name, value in params.items()}
    place = [params["chi"] / 100 * part for part in roulettes.image_position(profile, params)]
    more = (params["axis_ratio"], params["orientation"]) if profile == "sie" else ()
    closed = getattr(roulettes, f"{profile}_amplitudes")
    found = closed(params["einstein_radius"], *place, ORDER, *more)
    result = {}
    for m, s in roulettes.indices(ORDER):
        if m and (profile != "pm" or s == m + 1):  # the others of a point mass are zero
            result |= {f"alpha{m}{s}": found[:, m, s].real.numpy()}
            result |= {f"beta{m}{s}": found[:, m, s].imag.numpy()} if s else {}
    return result if names is None else {name: result[name] for name in names}


def find_targets(recipe, kind: str) -> Targets:
    """The targets of a kind that a recipe has, not yet scaled. InputError where it has none."""
    if kind not in KINDS:
        raise unknown("targets", kind, KINDS)
    roulette = getattr(recipe, "kind", "") == "roulette"
    if kind in ("axion_mass", "mass_fraction"):
        drawn = {} if roulette or not hasattr(recipe, "draw") else recipe.draw(0, 0)[1]
        values = np.nan_to_num(np.asarray(drawn.get(kind, np.zeros(1)), float))
        if len(np.unique(values[values > 0])) < 2:
            raise InputError(
                f"{recipe.name} does not draw the {kind.replace('_', ' ')} of its images: nothing to learn"
            )
        return Targets(kind, (f"log10_{kind}",))
    if not roulette:
        raise InputError(f"{kind} are those of roulette recipes, such as roulette_sis, not of {recipe.name}")
    drawn = recipe.draw(0, 0)
    constants = {name: float(value[0]) for name, value in drawn.items() if np.ptp(value) == 0}
    if kind == "amplitudes":
        profile = recipe.lens.profile
        return Targets(kind, tuple(amplitudes(drawn, profile)), constants | {"profile": profile})
    names = [name for name in recipe.targets if name not in constants]
    if recipe.sampling.source == "round":
        names = [name for name in names if name not in ("sigma2", "theta")]
    return Targets(kind, tuple(names), constants)


def fit_targets(targets: Targets, labels: Values, recipe) -> Targets:
    """The targets with the scale of `labels`, those of the training images."""
    count = len(targets.columns)
    if targets.kind == "raw":
        return _replace(targets, np.zeros(count), np.ones(count))
    columns = targets._columns(labels)
    offset, scale = columns.mean(0), columns.std(0)
    for k, _ in targets.pairs:
        # turned images have turned labels about one centre, with one scale for both parts
        both = slice(k, k + 2)
        offset[both] = 0.0
        if targets.columns[k][0] == "x" and recipe.instrument.lookup == "floor":
            # what is read to the left and above moves to the right and down: that place turns about the lens
            offset[both] = -_FLOOR[0], -_FLOOR[1]
        scale[both] = np.sqrt(((columns - offset)[:, both] ** 2).mean())
    if not (scale > 0).all() or not np.isfinite(scale).all():
        raise InputError("the training images have one value of a target, or none: nothing to learn")
    return _replace(targets, offset, scale)


def _replace(targets: Targets, offset, scale) -> Targets:
    return Targets(targets.kind, targets.names, targets.constants, tuple(offset.tolist()), tuple(scale.tolist()))


def counted(targets: Targets, data) -> np.ndarray:
    """The rows of a data set that have these targets: all, vortex images, or those with substructure."""
    rows = np.arange(len(data))
    if targets.kind in ("axion_mass", "mass_fraction"):
        value = data.params[targets.kind].to_numpy(float)
        rows = rows[np.nan_to_num(value) > 0]
    if len(rows) < 3:
        raise InputError(f"'{data.folder}' has {len(rows)} images with {' and '.join(targets.names)}: too few")
    return rows
