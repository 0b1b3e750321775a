"""A recipe of the CosmoSim kind: one round or elliptical lens, a Gaussian source, grey levels on square pixels.

Lengths are pixels, angles degrees and chi per cent, as in CosmoSim. The outward interface is that of `Recipe`.
"""

import zlib
from typing import Literal

import numpy as np
import torch
import yaml
from pydantic import Field, model_validator

from lenslib.errors import InputError
from lenslib.priors import Strict
from lenslib.roulettes import MAX_ORDER

# images in a chunk; a chunk is the unit that is drawn
CHUNK = 32
# standard deviations of a Gaussian source within which it has at least half a grey level of 255
REACH = float(np.sqrt(2 * np.log(510)))

Whole = tuple[int, int]


class RouletteLens(Strict):
    """`raytrace` follows every ray through the lens; `roulette` sums `terms` terms of its series about the image."""

    profile: Literal["sis", "pm", "sie"]
    model: Literal["roulette", "raytrace"]
    terms: int | None = Field(None, ge=1, le=MAX_ORDER)

    @model_validator(mode="after")
    def _terms_of_a_series(self):
        if (self.terms is None) == (self.model == "roulette"):
            raise ValueError("a roulette needs terms, and a raytrace has none")
        return self


class Sampling(Strict):
    """Whole numbers between two bounds, both included; the source at (R cos phi, R sin phi) from the lens.

    Sizes of the source go up to int(a + b einstein_radius + c R) with `largest_sigma` = (a, b, c). Where that is below
    the smallest, einstein_radius is drawn again, and R again within `radius_again`. The thesis fitted the formula by
    eye, so that no source reaches the ring of convergence.
    """

    chi: Whole
    einstein_radius: Whole
    radius: Whole
    radius_again: Whole
    phi: Whole = (0, 359)
    smallest_sigma: int = Field(ge=1)
    largest_sigma: tuple[float, float, float]
    theta: Whole = (0, 179)
    source: Literal["elliptical", "round"] = "elliptical"
    axis_ratio: tuple[float, float] | None = None
    orientation: Whole = (0, 179)

    @model_validator(mode="after")
    def _bounds(self):
        for name in ("chi", "einstein_radius", "radius", "radius_again"):
            if getattr(self, name)[0] < 1:
                raise ValueError(f"{name} must be at least 1, but can be {getattr(self, name)[0]}")
        for name in ("chi", "einstein_radius", "radius", "radius_again", "phi", "theta", "orientation"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"the lower bound {low} of {name} is above the upper bound {high}")
        if self.axis_ratio is not None and not 0 < self.axis_ratio[0] <= self.axis_ratio[1] < 1:
            raise ValueError("axis_ratio must lie between 0 and 1, without the ends")
        worst = self.largest(np.array([self.einstein_radius[1]]), np.array([self.radius_again[0]]))
        worst = min(worst, self.largest(np.array([self.einstein_radius[0]]), np.array([self.radius_again[0]])))
        if worst[0] < self.smallest_sigma:
            raise ValueError(f"largest_sigma can be {worst[0]}, below smallest_sigma, even after radius_again")
        return self

    def largest(self, einstein_radius: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """The largest size of a source."""
        a, b, c = self.largest_sigma
        return (a + b * einstein_radius + c * radius).astype(int)


class Frame(Strict):
    """The camera: an image computed on `frame` x `frame` pixels, its centre of light brought to the middle by whole
    pixels, and the middle `pixels` x `pixels` kept, in 255 whole grey levels.

    `lookup` is where light is read: `exact`, or as CosmoSim reads a bitmap of the source, from its pixel to the left
    and above (`floor`, since 2.3) or the nearest one (`round`, before); or `turned`, as `floor` with the source on the
    x axis, the picture then turned into place between its pixels, as its point mass by roulettes does. `masked` leaves
    out what is outside the ring of convergence. `noise_sd` (grey levels) is added before rounding.
    """

    name: str
    pixels: int = Field(ge=8, le=4096, multiple_of=2)
    frame: int = Field(ge=8, le=8192, multiple_of=2)
    lookup: Literal["exact", "floor", "round", "turned"] = "exact"
    centring: Literal["none", "whole"] = "none"
    masked: bool = False
    noise_sd: float = Field(0.0, ge=0)

    @property
    def pixel_scale(self) -> float:
        """Of a pixel, which is the unit of length."""
        return 1.0

    @model_validator(mode="after")
    def _fits(self):
        if self.pixels > self.frame:
            raise ValueError(f"pixels, {self.pixels}, are more than those of the frame, {self.frame}")
        return self


class RouletteRecipe(Strict):
    """All that a CosmoSim data set is made of; load one with `load_recipe`, draw images with `sample`."""

    kind: Literal["roulette"]
    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    title: str
    references: tuple[str, ...] = ()
    lens: RouletteLens
    sampling: Sampling
    instrument: Frame

    @model_validator(mode="after")
    def _whole(self):
        if (self.lens.profile == "sie") == (self.sampling.axis_ratio is None):
            raise ValueError("sampling.axis_ratio belongs to the profile sie, and sie needs it")
        if self.instrument.masked and self.lens.model == "raytrace":
            raise ValueError("instrument.masked leaves out what is outside a roulette's ring; a raytrace has none")
        draws, half = self.sampling, self.instrument.frame / 2
        farthest = max(draws.radius[1], draws.radius_again[1]) + 100 * draws.einstein_radius[1] / draws.chi[0]
        if farthest >= half:
            raise ValueError(
                f"images can lie {farthest:g} pixels from the lens, outside the frame, which ends at {half:g}"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        return ("lens",)

    @property
    def chunk_size(self) -> int:
        return CHUNK

    @property
    def channels(self) -> int:
        return 1

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the parameters of an image, without the place of the camera."""
        shape = ("axis_ratio", "orientation") if self.lens.profile == "sie" else ()
        return ("x", "y", "chi", "einstein_radius", *shape, "sigma1", "sigma2", "theta")

    def to_yaml(self) -> str:
        """The recipe as text that loads to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def draw(self, seed: int, chunk: int) -> dict[str, np.ndarray]:
        """Parameters of one chunk, each float64 [CHUNK]; every quantity has a random stream of its own."""

        def stream(name: str) -> np.random.Generator:
            return np.random.default_rng([seed, chunk, zlib.crc32(name.encode())])

        def whole(name: str, bounds: Whole) -> np.ndarray:
            return stream(name).integers(*bounds, size=CHUNK, endpoint=True)

        draws = self.sampling
        einstein_radius, radius = whole("einstein_radius", draws.einstein_radius), whole("radius", draws.radius)
        again = draws.largest(einstein_radius, radius) < draws.smallest_sigma
        einstein_radius[again] = whole("einstein_radius_again", draws.einstein_radius)[again]
        radius[again] = whole("radius_again", draws.radius_again)[again]
        largest = draws.largest(einstein_radius, radius)
        phi = np.deg2rad(whole("phi", draws.phi))
        params = {"x": radius * np.cos(phi), "y": radius * np.sin(phi), "chi": whole("chi", draws.chi)}
        params["einstein_radius"] = einstein_radius
        if draws.axis_ratio is not None:
            params["axis_ratio"] = stream("axis_ratio").uniform(*draws.axis_ratio, size=CHUNK)
            params["orientation"] = whole("orientation", draws.orientation)
        for name in ("sigma1", "sigma2"):
            params[name] = stream(name).integers(draws.smallest_sigma, largest, endpoint=True)
        if draws.source == "round":
            params["sigma2"] = params["sigma1"].copy()
        params["theta"] = whole("theta", draws.theta)
        return {name: value.astype(float) for name, value in params.items()}

    def check(self, params: dict[str, torch.Tensor]) -> None:
        """InputError, in one line, for parameters of no image: sizes of zero, a missing name, a source that reaches
        the ring of convergence of a masked roulette, an image outside the frame."""
        from lenslib.roulette_images import check_params

        check_params(self, params)

    def render(self, params: dict[str, torch.Tensor]) -> torch.Tensor:
        """Images [n, 1, h, w] in grey levels, not rounded, the source read exactly (see `roulette_images.render`).

        InputError for a scene that has no image (see `check`).
        """
        from lenslib.roulette_images import render

        self.check(params)
        return render(self, params)

    def sample(
        self, count: int, seed: int = 0, start: int = 0, device="cpu", noise: bool = True, progress: bool = False
    ):
        """Draw images `start` to `start + count` of the endless data set named by this recipe and `seed`.

        Returns a `Batch` (see `lenslib.simulate`); its images are grey levels, whole ones unless `noise` is False, and
        its params have besides `targets` the place (centre_x, centre_y) of the middle of the image, in pixels from the
        lens: (x, y) = (0, 0) is column w/2, row h/2 - 1 where they are 0.
        Image i depends on the recipe, the seed and i alone. Raises InputError for a count below 1 or a negative seed.
        """
        from lenslib.simulate import sample

        return sample(self, count, seed, start, device, noise, progress)

    def chunk(self, seed: int, chunk: int, device: str, noise: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Images and params of one chunk, for `lenslib.simulate`."""
        from lenslib.roulette_camera import draw_images

        return draw_images(self, self.draw(seed, chunk), [seed, chunk], device, noise)


def missing(params: dict, names: tuple[str, ...]) -> None:
    """InputError for parameters that are not there."""
    if lacking := [name for name in names if name not in params]:
        raise InputError(f"parameters lack {', '.join(lacking)}: an image needs {', '.join(names)}")
