"""What a recipe file may say of a number: a fixed value, or the distribution it is drawn from."""

from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator


class Strict(BaseModel):
    """Base of every part of a recipe: a misspelt key is an error, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prior(Strict):
    """One of: a fixed value; uniform, log-uniform or uniform in area between two bounds; a normal, cut at `within`.

    `uniform_area: [a, b]` is the radius of a point spread evenly over the ring between radii a and b.
    """

    value: float | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    uniform_area: tuple[float, float] | None = None
    normal: tuple[float, float] | None = None
    within: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _check(self):
        given = [name for name in ("value", "uniform", "log_uniform", "uniform_area", "normal") if _has(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of value, uniform, log_uniform, uniform_area, normal (got {given})")
        if self.within is not None and given != ["normal"]:
            raise ValueError("'within' cuts a normal prior only")
        low, high = self.support()
        if low > high:
            raise ValueError(f"the lower bound {low:g} is above the upper bound {high:g}")
        if self.log_uniform is not None and low <= 0:
            raise ValueError("a log_uniform prior needs positive bounds")
        if self.uniform_area is not None and low < 0:
            raise ValueError("a uniform_area prior needs bounds of at least 0")
        if self.normal is not None and self.normal[1] <= 0:
            raise ValueError("a normal prior needs a positive standard deviation")
        if self.normal is not None and np.ptp(self._kept()) < 1e-6:
            raise ValueError("'within' leaves less than a millionth of the normal: bring its bounds nearer the mean")
        return self

    def support(self) -> tuple[float, float]:
        """The smallest and the largest value that can be drawn."""
        if self.value is not None:
            return self.value, self.value
        if self.normal is not None:
            return self.within or (-np.inf, np.inf)
        return self.uniform or self.log_uniform or self.uniform_area

    def draw(self, rng: np.random.Generator, shape) -> np.ndarray:
        """Float64 draws of the given shape. A cut normal is drawn by inverting its distribution function."""
        low, high = self.support()
        if self.value is not None:
            return np.full(shape, self.value)
        u = rng.random(shape)
        if self.log_uniform is not None:
            return np.exp(np.log(low) + u * np.log(high / low))
        if self.uniform_area is not None:
            return np.sqrt(low**2 + u * (high**2 - low**2))
        if self.normal is not None:
            from scipy.special import ndtri

            (mean, sd), (below, above) = self.normal, self._kept()
            return mean + sd * ndtri(below + u * (above - below))
        return low + u * (high - low)

    def _kept(self) -> tuple[float, float]:
        """The normal's distribution function at its two bounds."""
        from scipy.special import ndtr

        (mean, sd), (low, high) = self.normal, self.support()
        return ndtr((low - mean) / sd), ndtr((high - mean) / sd)


def _has(prior: Prior, name: str) -> bool:
    return getattr(prior, name) is not None


def _from_number(value: Any) -> Any:
    if isinstance(value, str):
        # YAML takes 2e12, without a dot, for a word
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"'{value}' is no number, and no prior such as {{uniform: [0, 1]}}") from None
    return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def prior(low: float = -np.inf, high: float = np.inf):
    """The pydantic type of a prior whose draws must lie between `low` and `high`."""

    def check(value: Prior) -> Prior:
        smallest, largest = value.support()
        if smallest < low or largest > high:
            raise ValueError(f"must lie between {low:g} and {high:g}, but can be {smallest:g} to {largest:g}")
        return value

    return Annotated[Prior, BeforeValidator(_from_number), AfterValidator(check)]


class Pair(Strict):
    """Two numbers given by their components or by size and angle (radians); subclasses name them."""

    @model_validator(mode="after")
    def _one_form(self):
        names = list(type(self).model_fields)
        given = [name for name in names if _has(self, name)]
        if given not in (names[:2], names[2:]):
            raise ValueError(f"give both of {names[:2]} or both of {names[2:]} (got {given})")
        return self

    def draw(self, stream, shape, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """The two components, drawn from the streams named `prefix` + field."""
        first, second = [
            getattr(self, name).draw(stream(prefix + name), shape)
            for name in type(self).model_fields
            if _has(self, name)
        ]
        return self.from_polar(first, second) if _has(self, "angle") else (first, second)


class Position(Pair):
    """A point in arcsec."""

    x: prior() | None = None
    y: prior() | None = None
    radius: prior(low=0) | None = None
    angle: prior() | None = None

    @staticmethod
    def from_polar(radius, angle):
        return radius * np.cos(angle), radius * np.sin(angle)


class Ellipticity(Pair):
    """Lenstronomy's ellipticity: e = (1 - q) / (1 + q), (e1, e2) = e (cos 2 phi, sin 2 phi)."""

    e1: prior(-0.9, 0.9) | None = None
    e2: prior(-0.9, 0.9) | None = None
    axis_ratio: prior(0.05, 1) | None = None
    angle: prior() | None = None

    @model_validator(mode="after")
    def _is_an_ellipse(self):
        if self.e1 is not None and self.flattest() > 0.9:
            raise ValueError(f"e1 and e2 together can be as large as {self.flattest():.2f}; keep them within 0.9")
        return self

    def flattest(self) -> float:
        """The largest (1 - q) / (1 + q) that can be drawn."""
        if self.axis_ratio is not None:
            low, _ = self.axis_ratio.support()
            return (1 - low) / (1 + low)
        return float(np.hypot(*(max(map(abs, part.support())) for part in (self.e1, self.e2))))

    @staticmethod
    def from_polar(axis_ratio, angle):
        size = (1 - axis_ratio) / (1 + axis_ratio)
        return size * np.cos(2 * angle), size * np.sin(2 * angle)


class Shear(Pair):
    """External shear (gamma1, gamma2) = gamma (cos 2 phi, sin 2 phi)."""

    gamma1: prior(-1, 1) | None = None
    gamma2: prior(-1, 1) | None = None
    strength: prior(0, 1) | None = None
    angle: prior() | None = None

    @staticmethod
    def from_polar(strength, angle):
        return strength * np.cos(2 * angle), strength * np.sin(2 * angle)
