"""A recipe: one readable YAML file that says what a data set is made of, and the draws it stands for."""

import os
import zlib
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from lenslib.errors import InputError, unknown
from lenslib.instruments import Instrument
from lenslib.priors import Ellipticity, Position, Shear, Strict, prior
from lenslib.sources import sersic_flux
from lenslib.substructure import Cosmology, Population, smooth_theta_E

# images of one class in a chunk; a chunk is the unit that is drawn and rendered with one fixed shape
PER_CLASS = 32


class Lens(Strict):
    """The smooth lens: `sie`, or `epl` with a logarithmic density slope. Its size is an Einstein radius in arcsec, or a
    mass in solar masses turned into one with the recipe's cosmology."""

    profile: Literal["sie", "epl"] = "sie"
    theta_E: prior(low=1e-3) | None = None
    mass: prior(low=0) | None = None
    slope: prior(1.05, 2.95) = Field(default={"value": 2.0}, validate_default=True)
    ellipticity: Ellipticity
    center: Position

    @model_validator(mode="after")
    def _one_size(self):
        if (self.theta_E is None) == (self.mass is None):
            raise ValueError("give exactly one of theta_E and mass")
        if self.profile == "sie" and self.slope.support() != (2.0, 2.0):
            raise ValueError("an sie has slope 2; use profile epl for other slopes")
        return self


class Galaxy(Strict):
    """A galaxy's light: an elliptical Sersic profile, lengths in arcsec. `amp` is its brightness at the half-light
    radius (flux an arcsec^2); with `magnitude` instead, that follows from the instrument's zero point."""

    profile: Literal["sersic"] = "sersic"
    amp: prior(low=0) | None = None
    magnitude: prior() | None = None
    R_sersic: prior(low=1e-4)
    n_sersic: prior(0.3, 10)
    ellipticity: Ellipticity
    center: Position

    @model_validator(mode="after")
    def _one_brightness(self):
        if self.amp is not None and self.magnitude is not None:
            raise ValueError("give one of amp and magnitude (neither: amp 1)")
        return self

    def draw(self, stream, n: int, prefix: str, own: str, zero_point: float | None) -> dict[str, np.ndarray]:
        """Parameters [n]; names of the profile begin with `own`, those of place and shape with `prefix`."""
        amp = self.amp.draw(stream(own + "amp"), n) if self.amp is not None else np.ones(n)
        drawn = {f"{own}amp": amp}
        drawn |= {own + name: getattr(self, name).draw(stream(own + name), n) for name in ("R_sersic", "n_sersic")}
        if self.magnitude is not None:
            flux = 10 ** (-0.4 * (self.magnitude.draw(stream(own + "magnitude"), n) - zero_point))
            drawn[f"{own}amp"] = flux / sersic_flux(drawn[f"{own}R_sersic"], drawn[f"{own}n_sersic"])
        drawn[f"{prefix}e1"], drawn[f"{prefix}e2"] = self.ellipticity.draw(stream, n, prefix)
        center = self.center.draw(stream, n, f"{prefix}center_")
        return drawn | {f"{prefix}center_x": center[0], f"{prefix}center_y": center[1]}


class Substructure(Strict):
    """Dark substructure by class. `mass_fraction` is its share of the mass within the Einstein radius.

    `conserve_mass` takes out of the smooth lens what the substructure holds within the Einstein radius
    (`within_theta_E`), so that no class is heavier than another, or all that it holds (`total`).
    """

    mass_fraction: prior(0, 0.5) | None = None
    conserve_mass: Literal["none", "total", "within_theta_E"] = "none"
    populations: dict[str, Population]


class Recipe(Strict):
    """All that a data set is made of. Load one with `load_recipe`; draw images with `sample`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    title: str
    references: tuple[str, ...] = ()
    classes: tuple[str, ...] = Field(min_length=1)
    cosmology: Cosmology
    lens: Lens
    shear: Shear
    source: Galaxy
    lens_light: Galaxy | None = None
    substructure: Substructure
    instrument: Instrument

    @model_validator(mode="after")
    def _classes(self):
        stray = set(self.substructure.populations) - set(self.classes)
        if stray:
            raise ValueError(f"substructure.populations names {sorted(stray)}, which are not among the classes")
        for name, population in self.substructure.populations.items():
            if population.needs_fraction and self.substructure.mass_fraction is None:
                raise ValueError(f"substructure.mass_fraction is missing, and the population '{name}' needs it")
        for name in ("source", "lens_light"):
            galaxy = getattr(self, name)
            if galaxy is not None and galaxy.magnitude is not None and self.instrument.zero_point is None:
                raise ValueError(f"{name}.magnitude needs instrument.zero_point")
        return self

    @property
    def chunk_size(self) -> int:
        return PER_CLASS * len(self.classes)

    def to_yaml(self) -> str:
        """The recipe as text that loads to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def draw(self, seed: int, chunk: int) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Everything drawn for one chunk, in float64, image order.

        Returns labels [chunk_size], params (name to [chunk_size]) and, for each class with substructure, its point
        masses (x, y in arcsec and mass in arcsec^2, each [PER_CLASS, k]) in the order of that class's images. Every
        quantity has a random stream of its own, named after it: changing one prior leaves all other draws as they were.
        """
        n = self.chunk_size
        stream = partial(_stream, seed, chunk)
        labels = stream("order").permutation(np.repeat(np.arange(len(self.classes)), PER_CLASS))
        params = self._draw_smooth(stream, n)
        fraction = self.substructure.mass_fraction
        fraction = np.zeros(n) if fraction is None else fraction.draw(stream("mass_fraction"), n)
        params["mass_fraction"] = np.zeros(n)
        points = {}
        for label, name in enumerate(self.classes):
            population = self.substructure.populations.get(name)
            if population is None:
                continue
            x, y, mass, drawn = population.draw(stream, n, self.cosmology, params["theta_E"], fraction)
            mine = labels == label
            points[name] = {"x": x[mine], "y": y[mine], "mass": mass[mine]}
            params["mass_fraction"][mine] = mass[mine].sum(1) / params["theta_E"][mine] ** 2
            params |= {key: np.where(mine, value, np.nan) for key, value in drawn.items()}
            self._take_out(params, mine, points[name])
        scale = self.cosmology.deflection_scale
        for name in ("theta_E", "lens_theta_E", "gamma1", "gamma2"):
            params[name] *= scale
        for part in points.values():
            part["mass"] *= scale
        return labels, params, points

    def _draw_smooth(self, stream, n: int) -> dict[str, np.ndarray]:
        lens, params = self.lens, {}
        if lens.theta_E is not None:
            params["theta_E"] = lens.theta_E.draw(stream("theta_E"), n)
        else:
            params["theta_E"] = np.sqrt(self.cosmology.theta_E_squared(lens.mass.draw(stream("theta_E"), n)))
        params["lens_theta_E"] = params["theta_E"].copy()
        params["gamma"] = lens.slope.draw(stream("gamma"), n)
        params["lens_e1"], params["lens_e2"] = lens.ellipticity.draw(stream, n, "lens_")
        params["lens_center_x"], params["lens_center_y"] = lens.center.draw(stream, n, "lens_center_")
        params["gamma1"], params["gamma2"] = self.shear.draw(stream, n, "shear_")
        params |= self.source.draw(stream, n, "source_", "", self.instrument.zero_point)
        if self.lens_light is not None:
            params |= self.lens_light.draw(stream, n, "lens_light_", "lens_light_", self.instrument.zero_point)
        return params | self.instrument.noise.draw(stream, n)

    def _take_out(self, params, mine, points) -> None:
        if self.substructure.conserve_mass == "none":
            return
        if self.substructure.conserve_mass == "total":
            # an isothermal lens of mass M has theta_E as the point mass M has: proportional to the root of M
            params["lens_theta_E"][mine] *= np.sqrt(1 - points["mass"].sum(1) / params["theta_E"][mine] ** 2)
            return
        lens = [params[name][mine] for name in ("theta_E", "gamma", "lens_e1", "lens_e2")]
        center = params["lens_center_x"][mine], params["lens_center_y"][mine]
        params["lens_theta_E"][mine] = smooth_theta_E(*lens, center, points["x"], points["y"], points["mass"])

    def sample(
        self, count: int, seed: int = 0, start: int = 0, device="cpu", noise: bool = True, progress: bool = False
    ):
        """Draw images `start` to `start + count` of the endless data set named by this recipe and `seed`.

        Returns a `Batch` (see `lenslib.simulate`). Image i depends on the recipe, the seed and i alone.
        Raises InputError for a count below 1 or a negative seed or start.
        """
        from lenslib.simulate import sample

        return sample(self, count, seed, start, device, noise, progress)


def _stream(seed: int, chunk: int, name: str) -> np.random.Generator:
    """The random stream of one quantity in one chunk."""
    return np.random.default_rng([seed, chunk, zlib.crc32(name.encode())])


def list_recipes() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in files("lenslib").joinpath("recipes").iterdir()
        if path.name.endswith(".yaml")
    )


def load_recipe(name: str | os.PathLike, overrides: dict[str, object] | None = None) -> Recipe:
    """The recipe of that name, or of that YAML file; `overrides` maps dotted keys to values.

    `load_recipe("matched_hst", {"substructure.mass_fraction": 0.01})`. Raises InputError, which names the field, for an
    unknown name, an unreadable file, a misspelt key or an impossible value.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(
                f"no recipe file '{path}': give the path of an existing YAML file or one of {', '.join(list_recipes())}"
            )
        text = path.read_text()
    elif str(name) in list_recipes():
        text = files("lenslib").joinpath("recipes", f"{name}.yaml").read_text()
    else:
        raise unknown("recipe", str(name), list_recipes())
    return parse_recipe(text, str(name), overrides)


def parse_recipe(text: str, origin: str = "recipe", overrides: dict[str, object] | None = None) -> Recipe:
    """A recipe from YAML text; `origin` names it in errors."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{origin}: a recipe is a mapping of names to values")
    for key, value in (overrides or {}).items():
        _override(content, key.split("."), value, origin)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{origin}: {_first(error)}") from None


def _override(content: dict, keys: list[str], value: object, origin: str) -> None:
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise InputError(f"{origin}: cannot set '{'.'.join(keys)}', because '{key}' is a plain value")
    content[keys[-1]] = value


def _first(error: ValidationError) -> str:
    """The first few faults in one line, each with the field it is about."""
    faults = []
    for fault in error.errors()[:3]:
        field = ".".join(str(part) for part in fault["loc"]) or "recipe"
        faults.append(f"{field}: {fault['msg'].removeprefix('Value error, ')}")
    more = len(error.errors()) - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more > 0 else "")
