"""One lens, with a dial for every quantity of its recipe.

A scene is the recipe itself with its priors pinned to single values, so all physics, from the populations of
substructure to the noise, is the recipe's own. It is the first image of its class in the recipe's chunk 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lenslib.errors import InputError, unknown
from lenslib.instruments import NumpyNoise
from lenslib.priors import Pair, Prior
from lenslib.recipe import Recipe, changed
from lenslib.simulate import as_points, brighten, render

# every dial: name as in `Batch.params`, place in the recipe (* is each population that has it), label with unit
_DIALS = """
theta_E          lens.theta_E                    θ_E [arcsec]
gamma            lens.slope                      slope γ
lens_e1          lens.ellipticity.e1             ellipticity e1
lens_e2          lens.ellipticity.e2             ellipticity e2
lens_center_x    lens.center.x                   centre x [arcsec]
lens_center_y    lens.center.y                   centre y [arcsec]
gamma1           shear.gamma1                    shear γ1
gamma2           shear.gamma2                    shear γ2
source_center_x  source.center.x                 position x [arcsec]
source_center_y  source.center.y                 position y [arcsec]
R_sersic         source.R_sersic                 half-light radius [arcsec]
n_sersic         source.n_sersic                 Sérsic index
source_e1        source.ellipticity.e1           ellipticity e1
source_e2        source.ellipticity.e2           ellipticity e2
amp              source.amp                      brightness [flux/s/arcsec²]
mass_fraction    substructure.mass_fraction      mass fraction [of θ_E²]
subhalo_count    substructure.populations.*.count      number of subhaloes
subhalo_heaviest substructure.populations.*.mass.high  heaviest subhalo [M☉]
vortex_mass      substructure.populations.*.mass       vortex mass [M☉]
vortex_length    substructure.populations.*.length     vortex length [arcsec]
axion_mass       substructure.populations.*.axion_mass axion mass [eV]
vortex_angle     substructure.populations.*.angle      vortex angle [rad]
peak_snr         instrument.noise.peak_snr       peak signal-to-noise
background_rms   instrument.noise.background_rms background rms [flux/s]
exposure_time    instrument.noise.exposure_time  exposure [s]
"""
_PSF = "psf_factor"


@dataclass(frozen=True)
class Dial:
    """One quantity: its range, its places in the recipe, and the classes it acts on (none named: all)."""

    name: str
    label: str
    low: float
    high: float
    log: bool = False
    places: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        return self.places[0].split(".")[0] if self.places else "instrument"


class Picture(NamedTuple):
    """One scene. Images are float32 [h, w] in rows of +y, the mean of all bands: without noise, with it, and without
    substructure (same total lens, same source). `params` and `substructure` are those of a `Batch`, for this image."""

    clean: np.ndarray
    noisy: np.ndarray
    smooth: np.ndarray
    params: dict[str, float]
    substructure: dict[str, np.ndarray]


def dials(recipe: Recipe) -> dict[str, Dial]:
    """What can be turned, by name, with the range of its prior; for what the recipe fixes, or leaves unbounded, a range
    around its value."""
    found, populations = {}, tuple(recipe.substructure.populations)
    for line in _DIALS.strip().splitlines():
        name, place, label = line.split(maxsplit=2)
        owners = populations if "*" in place or name == "mass_fraction" else ()
        places = {place.replace("*", owner): owner for owner in owners if "*" in place} or {place: None}
        things = {place: thing for place in places if (thing := _find(recipe, place)) is not None}
        if not things or _is_moot(recipe, name):
            continue
        low, high, log = _range(recipe, name, *next(iter(things.items())))
        classes = tuple(places[place] for place in things) if "*" in line else owners
        found[name] = Dial(name, label, low, high, log, tuple(things), classes)
    return found | {_PSF: Dial(_PSF, "PSF width [recipe's]", 0.5, 4.0, log=True)}


def _find(recipe: Recipe, place: str):
    """What a recipe has at a place: a prior, a number, the pair that holds a component, or None."""
    thing = recipe
    for name in place.split("."):
        if place == "lens.theta_E" and name == "theta_E":
            return recipe.lens.size
        if isinstance(thing, Pair):
            return thing
        thing = thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)
    return thing if isinstance(thing, Prior | Pair | int | float) else None


def _is_moot(recipe: Recipe, name: str) -> bool:
    """Whether something else decides: an sie its slope, the signal-to-noise the brightness, the mass the number, and
    without noise nothing its strength."""
    if recipe.instrument.noise.kind == "none" and name in ("background_rms", "exposure_time"):
        return True
    fractional = name == "subhalo_count" and recipe.substructure.mass_fraction is not None
    bright = name == "amp" and getattr(recipe.instrument.noise, "peak_snr", None) is not None
    return fractional or bright or (name == "gamma" and recipe.lens.profile == "sie")


def _range(recipe: Recipe, name: str, place: str, thing) -> tuple[float, float, bool]:
    """Smallest and largest value of a dial, and whether it turns by factors."""
    if isinstance(thing, Pair):
        component, size = getattr(thing, place.split(".")[-1]), getattr(thing, list(type(thing).model_fields)[2])
        if component is None:
            low, high = _support(size)
            high = (1 - low) / (1 + low) if hasattr(thing, "axis_ratio") else high
            return -high, high, False
        low, high = _support(component)
        return (low, high, False) if low < high else (low - 0.3, high + 0.3, False)
    low, high = _support(thing) if isinstance(thing, Prior) else (thing, thing)
    if name == "theta_E":
        low, high = (float(recipe.lens.einstein_radius(size, recipe.cosmology)) for size in (low, high))
    if low < high:
        return low, high, thing.log_uniform is not None
    return (low / 3, low * 3, True) if low > 0 else (0.0, 1.0, False)


def _support(prior: Prior) -> tuple[float, float]:
    if prior.normal is None or prior.within is not None:
        return prior.support()
    mean, sd = prior.normal
    return mean - 4 * sd, mean + 4 * sd


def default_scene(recipe: Recipe, label: str, seed: int = 0) -> dict[str, float]:
    """The value of every dial for the first image of class `label` in data set `seed`; the middle of its range for a
    dial that does not act on that class."""
    labels, params, _ = recipe.draw(seed, 0)
    image = _first(recipe, labels, label)
    drawn = {_PSF: 1.0} | {name: float(value[image]) for name, value in params.items()}
    for name in ("theta_E", "gamma1", "gamma2"):
        drawn[name] /= recipe.cosmology.deflection_scale  # as the recipe states it
    drawn["vortex_mass"] = drawn["mass_fraction"] * drawn["theta_E"] ** 2 / recipe.cosmology.theta_E_squared(1.0)
    values = {}
    for name, dial in dials(recipe).items():
        middle = float(np.sqrt(dial.low * dial.high)) if dial.log else (dial.low + dial.high) / 2
        acts = not dial.classes or label in dial.classes
        values[name] = drawn[name] if acts and np.isfinite(drawn.get(name, np.nan)) else middle
    return values


def _first(recipe: Recipe, labels: np.ndarray, label: str) -> int:
    if label not in recipe.classes:
        raise unknown("class", label, recipe.classes)
    return np.flatnonzero(labels == recipe.classes.index(label))[0]


def pinned(recipe: Recipe, values: dict[str, float]) -> Recipe:
    """The recipe with every dial fixed at its value; the places of substructure stay random.

    Raises InputError for an unknown or a missing dial and for a value that the recipe does not allow.
    """
    known = dials(recipe)
    for name in values:
        if name not in known:
            raise unknown("dial", name, known)
    if missing := sorted(set(known) - set(values)):
        raise InputError(f"no value for {', '.join(missing)}: start from default_scene and change what you like")
    changes = {"lens.mass": None, "lens.sigma_v": None, "by_class": {}}
    for name, dial in known.items():
        for place in dial.places:
            changes[place] = round(values[name]) if name == "subhalo_count" else float(values[name])
            if isinstance(pair := _find(recipe, place), Pair):
                changes |= {f"{place.rsplit('.', 1)[0]}.{polar}": None for polar in list(type(pair).model_fields)[2:]}
    psf, factor = recipe.instrument.psf.model_dump(), float(values[_PSF])
    if psf["airy"] is not None:
        changes["instrument.psf.airy"] = psf["airy"] * factor
    else:
        changes["instrument.psf.gaussians"] = [part | {"fwhm": part["fwhm"] * factor} for part in psf["gaussians"]]
    return changed(recipe, changes)


def draw_scene(recipe: Recipe, values: dict[str, float], label: str, seed: int = 0) -> Picture:
    """The scene of these values in class `label`; `seed` draws what has no dial (places of substructure, and noise).

    With the values of `default_scene(recipe, label, seed)` it is an image of the data set `seed`. A mass fraction of 0
    is no substructure. Raises InputError for an unknown class or dial and for a value that the recipe does not allow.
    """
    scene = pinned(recipe, values)
    labels, drawn, populations = scene.draw(seed, 0)
    image = _first(recipe, labels, label)
    params = {name: torch.tensor([value[image]], dtype=torch.float32) for name, value in drawn.items()}
    without, points = params | {"lens_theta_E": params["theta_E"]}, {}
    if label in populations and values.get("mass_fraction") != 0:
        points = as_points({name: value[:1] for name, value in populations[label].items()})
    else:
        params = dict(without)
    clean, smooth = render(scene, params, points), render(scene, without)
    noise = scene.instrument.noise
    if (factor := noise.scale(clean, params)) is not None:
        brighten(params, factor)
        clean, smooth = clean * factor, smooth * factor
    noisy = noise.add(clean, params, NumpyNoise(np.random.default_rng([seed, 1])))
    return Picture(
        *(picture[0].mean(0).numpy() for picture in (clean, noisy, smooth)),
        {name: float(value[0]) for name, value in params.items()},
        {name: value[0].numpy() for name, value in points.items()},
    )


def residual(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`image - a reference` over the image's peak, with the brightness `a` that makes its mean square smallest."""
    brightness = (image * reference).sum() / (reference**2).sum()
    return (image - brightness * reference) / image.max()
