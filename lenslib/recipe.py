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


class Source(Strict):
    """The lensed galaxy: an elliptical Sersic profile (lengths in arcsec, `amp` at the half-light radius)."""

    profile: Literal["sersic"] = "sersic"
    amp: prior(low=0) = Field(default={"value": 1.0}, validate_default=True)
    R_sersic: prior(low=1e-4)
    n_sersic: prior(0.3, 10)
    ellipticity: Ellipticity
    center: Position


class Substructure(Strict):
    """Dark substructure by class. `mass_fraction` is its share of the mass within the Einstein radius;
    `conserve_mass` takes what lies within out of the smooth lens, so that no class is heavier than another."""

    mass_fraction: prior(0, 0.5) | None = None
    conserve_mass: bool = False
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
    source: Source
    substructure: Substructure
    instrument: Instrument

    @model_validator(mode="after")
    def _classes(self):
        stray = set(self.substructure.populations) - set(self.classes)
        if stray:
            raise ValueError(f"substructure.populations names {sorted(stray)}, which are not among the classes")
        for name, population in self.substructure.populations.items():
            fractional = population.mass is None or getattr(population.mass, "low_fraction", None) is not None
            if fractional and self.substructure.mass_fraction is None:
                raise ValueError(f"substructure.mass_fraction is missing, and the population '{name}' needs it")
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
            if self.substructure.conserve_mass:
                self._take_out(params, mine, points[name])
        return labels, params, points

    def _draw_smooth(self, stream, n: int) -> dict[str, np.ndarray]:
        lens, source, params = self.lens, self.source, {}
        if lens.theta_E is not None:
            params["theta_E"] = lens.theta_E.draw(stream("theta_E"), n)
        else:
            params["theta_E"] = np.sqrt(self.cosmology.theta_E_squared(lens.mass.draw(stream("theta_E"), n)))
        params["lens_theta_E"] = params["theta_E"].copy()
        params["gamma"] = lens.slope.draw(stream("gamma"), n)
        params["lens_e1"], params["lens_e2"] = lens.ellipticity.draw(stream, n, "lens_")
        params["lens_center_x"], params["lens_center_y"] = lens.center.draw(stream, n, "lens_center_")
        params["gamma1"], params["gamma2"] = self.shear.draw(stream, n, "shear_")
        for name in ("amp", "R_sersic", "n_sersic"):
            params[name] = getattr(source, name).draw(stream(name), n)
        params["source_e1"], params["source_e2"] = source.ellipticity.draw(stream, n, "source_")
        params["source_center_x"], params["source_center_y"] = source.center.draw(stream, n, "source_center_")
        return params | self.instrument.noise.draw(stream, n)

    @staticmethod
    def _take_out(params, mine, points) -> None:
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
