"""A recipe: one readable YAML file that says what a data set is made of, and the draws it stands for."""

import os
import re
import zlib
from difflib import get_close_matches
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from lenslib.cosmology import Cosmology
from lenslib.errors import InputError, unknown
from lenslib.instruments import PSF, Instrument
from lenslib.lenses import ClassLens, Companions, Lens
from lenslib.pictures import PictureGalaxy
from lenslib.priors import Shear, Strict, prior
from lenslib.roulette_recipe import RouletteRecipe
from lenslib.sources import Galaxy
from lenslib.substructure import Population, smooth_theta_E, tracers
from lenslib.untrusted import parse_yaml

# images of one class in a chunk; a chunk is the unit that is drawn and rendered with one fixed shape
PER_CLASS = 32


class Band(Strict):
    """One colour: magnitudes to add to the source's and the lens galaxy's light, and its own point-spread function."""

    source: prior() = Field(default={"value": 0.0}, validate_default=True)
    lens_light: prior() = Field(default={"value": 0.0}, validate_default=True)
    psf: PSF | None = None


class Substructure(Strict):
    """Dark substructure by class. `mass_fraction` is its share of the mass within the Einstein radius.

    `conserve_mass` takes out of the smooth lens what the substructure holds within the Einstein radius
    (`within_theta_E`), so that no class is heavier than another, or all that it holds (`total`).
    """

    mass_fraction: prior(0, 0.5) | None = None
    conserve_mass: Literal["none", "total", "within_theta_E"] = "none"
    populations: dict[str, Population]


class Recipe(Strict):
    """All that a data set is made of. Load one with `load_recipe`; draw images with `sample`.

    `by_class` gives a class a lens or shear of its own, `companions` names more lenses in the lens's plane, and `bands`
    the colours of an image, one channel each.
    """

    kind: Literal["lens"] = Field("lens", exclude=True)
    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    title: str
    references: tuple[str, ...] = ()
    classes: tuple[str, ...] = Field(min_length=1)
    cosmology: Cosmology
    lens: Lens
    shear: Shear
    by_class: dict[str, ClassLens] = {}
    companions: dict[str, Companions] = {}
    source: Annotated[Galaxy | PictureGalaxy, Field(discriminator="profile")]
    lens_light: Galaxy | None = None
    bands: dict[str, Band] | None = Field(None, min_length=1)
    substructure: Substructure
    instrument: Instrument

    @field_validator("source", mode="before")
    @classmethod
    def _sersic_by_default(cls, value):
        return {"profile": "sersic"} | value if isinstance(value, dict) else value

    @field_validator("instrument", mode="before")
    @classmethod
    def _instrument_is_described(cls, value):
        if isinstance(value, str):
            raise ValueError(f"'{value}': describe it by name, pixels, pixel_scale, psf and noise, as the recipes do")
        return value

    @field_validator("companions", "bands")
    @classmethod
    def _plain_names(cls, value):
        for name in value or ():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"'{name}' is not a plain name: use letters, digits and _")
        return value

    @model_validator(mode="after")
    def _classes(self):
        for name, own in self.by_class.items():
            if name not in self.classes:
                raise ValueError(f"by_class names '{name}', which is not among the classes")
            if own.lens is not None and own.lens.profile != self.lens.profile:
                raise ValueError(
                    f"by_class.{name}.lens must have the profile of the recipe's lens, {self.lens.profile}"
                )
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

    @property
    def channels(self) -> int:
        """Of an image: one a band."""
        return len(self.bands or "1")

    def psfs(self) -> tuple[PSF, ...]:
        """The point-spread function of each channel."""
        return tuple(band.psf or self.instrument.psf for band in (self.bands or {"": Band()}).values())

    def to_yaml(self) -> str:
        """The recipe as text that loads to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def draw(self, seed: int, chunk: int) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Everything drawn for one chunk, in float64, image order.

        Returns labels [chunk_size], params (name to [chunk_size]) and, for each class with substructure, its pieces
        (see `lenslib.substructure`; each array [PER_CLASS, k]) in the order of that class's images. Every quantity has
        a random stream of its own, named after it: changing one prior leaves all other draws as they were.
        """
        n = self.chunk_size
        stream = partial(_stream, seed, chunk)
        labels = stream("order").permutation(np.repeat(np.arange(len(self.classes)), PER_CLASS))
        params = self._draw_smooth(stream, labels)
        fraction = self.substructure.mass_fraction
        fraction = np.zeros(n) if fraction is None else fraction.draw(stream("mass_fraction"), n)
        params["mass_fraction"] = np.zeros(n)
        points = {}
        for label, name in enumerate(self.classes):
            population = self.substructure.populations.get(name)
            if population is None:
                continue
            pieces, drawn = population.draw(stream, n, self.cosmology, params["theta_E"], fraction)
            mine = labels == label
            points[name] = {key: value[mine] for key, value in pieces.items()}
            params["mass_fraction"][mine] = points[name]["mass"].sum(1) / params["theta_E"][mine] ** 2
            params |= {key: np.where(mine, value, params.get(key, np.nan)) for key, value in drawn.items()}
            self._take_out(params, mine, points[name])
            if not np.isfinite(params["lens_theta_E"][mine]).all():
                raise InputError(
                    f"substructure.populations.{name}: it holds more mass than the lens it is taken out of"
                )
        scale = self.cosmology.deflection_scale
        for name in ("theta_E", "lens_theta_E", "gamma1", "gamma2"):
            params[name] *= scale
        for part in points.values():
            part["mass"] *= scale
        return labels, params, points

    def _draw_smooth(self, stream, labels) -> dict[str, np.ndarray]:
        n = len(labels)
        params = self.lens.draw(stream, n, self.cosmology)
        params["gamma1"], params["gamma2"] = self.shear.draw(stream, n, "shear_")
        for name, own in self.by_class.items():
            mine = labels == self.classes.index(name)
            drawn = own.lens.draw(stream, n, self.cosmology) if own.lens is not None else {}
            if own.shear is not None:
                drawn["gamma1"], drawn["gamma2"] = own.shear.draw(stream, n, "shear_")
            params |= {key: np.where(mine, value, params[key]) for key, value in drawn.items()}
        for name, companions in self.companions.items():
            params |= companions.draw(stream, n, name, self.cosmology.deflection_scale)
        params |= self.source.draw(stream, n, "source_", "", self.instrument.zero_point)
        if self.lens_light is not None:
            params |= self.lens_light.draw(stream, n, "lens_light_", "lens_light_", self.instrument.zero_point)
        for band, colours in (self.bands or {}).items():
            for galaxy in ("source", "lens_light") if self.lens_light is not None else ("source",):
                name = f"{galaxy}_colour_{band}"
                params[name] = getattr(colours, galaxy).draw(stream(name), n)
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
        params["lens_theta_E"][mine] = smooth_theta_E(*lens, center, *tracers(points))

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


def list_recipes(kind: str | None = None) -> list[str]:
    """Names of the recipes that come with the library; of one `kind`, lens or roulette, only."""
    names = sorted(
        path.name.removesuffix(".yaml")
        for path in files("lenslib").joinpath("recipes").iterdir()
        if path.name.endswith(".yaml")
    )
    return [name for name in names if kind is None or kind == load_recipe(name).kind]


def load_recipe(name: str | os.PathLike, overrides: dict[str, object] | None = None) -> Recipe | RouletteRecipe:
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
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the recipe file '{path}' cannot be read: {error}") from None
    elif str(name) in list_recipes():
        text = files("lenslib").joinpath("recipes", f"{name}.yaml").read_text()
    else:
        raise unknown("recipe", str(name), list_recipes())
    return parse_recipe(text, str(name), overrides)


def parse_recipe(
    text: str, origin: str = "recipe", overrides: dict[str, object] | None = None
) -> Recipe | RouletteRecipe:
    """A recipe from YAML text; `origin` names it in errors."""
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{origin}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{origin}: a recipe is a mapping of names to values")
    return _validated(content, origin, overrides or {})


def changed(recipe: Recipe | RouletteRecipe, overrides: dict[str, object]) -> Recipe | RouletteRecipe:
    """The recipe with values at dotted keys set, as `load_recipe` sets them. InputError for what it does not allow."""
    return _validated(recipe.model_dump(mode="json", exclude_none=True), recipe.name, overrides)


def _validated(content: dict, origin: str, overrides: dict[str, object]) -> Recipe | RouletteRecipe:
    for key, value in overrides.items():
        _override(content, key.split("."), value, origin)
    try:
        return (RouletteRecipe if content.get("kind") == "roulette" else Recipe).model_validate(content)
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
        # pydantic names the kind of a thing on the way to its fields
        field = re.sub(r"^(source|instrument\.noise|substructure\.populations\.\w+)\.[a-z]+\b", r"\1", field)
        faults.append(f"{field}: {_said(fault)}")
    more = len(error.errors()) - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more > 0 else "")


def _said(fault) -> str:
    """One of pydantic's faults in words, with the nearest keys for one that there is not."""
    if fault["type"] != "extra_forbidden":
        return fault["msg"].removeprefix("Value error, ")
    close = get_close_matches(str(fault["loc"][-1]), _keys(Strict))
    return "there is no such key" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _keys(part: type[Strict]) -> set[str]:
    """The keys that a recipe and all its parts can have."""
    return set(part.model_fields).union(*map(_keys, part.__subclasses__()))
