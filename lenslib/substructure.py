"""Populations of dark substructure: where the mass is, as point masses a lens.

A population draws [n, k] positions in arcsec and masses as squared Einstein radii in arcsec^2 (an Einstein radius
squared is proportional to mass; 0 is an empty place in the list).
"""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from lenslib.priors import Position, Strict, prior


class Cosmology(Strict):
    """Flat Lambda-CDM and the redshifts of lens and source.

    `distances: luminosity` converts a mass to an Einstein radius as DeepLenseSim does (deeplense/lens.py,
    mass_to_radius): luminosity distances, and their difference in place of the lens-source distance.
    """

    H0: float = Field(70.0, gt=0)
    Om0: float = Field(0.3, gt=0, lt=1)
    Ob0: float = Field(0.05, ge=0, lt=1)
    z_lens: float = Field(gt=0)
    z_source: float = Field(gt=0)
    distances: Literal["angular_diameter", "luminosity"] = "angular_diameter"
    z_source_convention: float | None = None

    @model_validator(mode="after")
    def _order(self):
        if min(self.z_source, self.z_source_convention or self.z_source) <= self.z_lens:
            raise ValueError("z_source must be above z_lens")
        return self

    @property
    def deflection_scale(self) -> float:
        """What the recipe's deflections are multiplied by: 1, unless they are stated for a source at
        `z_source_convention`, as in lenstronomy's multi-plane mode."""
        if self.z_source_convention is None:
            return 1.0
        return _distance_ratio(self) / _distance_ratio(self.model_copy(update={"z_source": self.z_source_convention}))

    def theta_E_squared(self, mass):
        """Squared Einstein radius in arcsec^2 of a point mass in solar masses (any shape)."""
        return np.asarray(mass) * _theta_E_squared_per_mass(self)


@lru_cache
def _theta_E_squared_per_mass(cosmology: Cosmology) -> float:
    """4 G M_sun / c^2 D_ls / (D_l D_s) in arcsec^2."""
    from astropy import constants, units

    model = _flat_lambda_cdm(cosmology)
    z_lens, z_source = cosmology.z_lens, cosmology.z_source
    if cosmology.distances == "luminosity":
        lens, source = model.luminosity_distance(z_lens), model.luminosity_distance(z_source)
        between = source - lens
    else:
        lens, source = model.angular_diameter_distance(z_lens), model.angular_diameter_distance(z_source)
        between = model.angular_diameter_distance_z1z2(z_lens, z_source)
    squared = 4 * constants.G * constants.M_sun / constants.c**2 * between / (lens * source)
    return float(squared.to(units.dimensionless_unscaled)) * units.rad.to(units.arcsec) ** 2


@lru_cache
def _distance_ratio(cosmology: Cosmology) -> float:
    """D_ls / D_s."""
    model = _flat_lambda_cdm(cosmology)
    between = model.angular_diameter_distance_z1z2(cosmology.z_lens, cosmology.z_source)
    return float(between / model.angular_diameter_distance(cosmology.z_source))


def _flat_lambda_cdm(cosmology: Cosmology):
    from astropy.cosmology import FlatLambdaCDM

    return FlatLambdaCDM(H0=cosmology.H0, Om0=cosmology.Om0, Ob0=cosmology.Ob0)


class EqualMass(Strict):
    """All subhalos of a lens have the same mass: their share of the substructure's mass fraction."""

    equal: Literal[True]


class PowerLaw(Strict):
    """dN/dm proportional to m^slope. Bounds in solar masses, or as fractions: `low_fraction` of the mass within the
    Einstein radius, and `high_of_total` of all substructure."""

    slope: float
    low: float | None = Field(None, gt=0)
    high: float | None = Field(None, gt=0)
    low_fraction: float | None = Field(None, gt=0, lt=1)
    high_of_total: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _bounds(self):
        given = [name for name in ("low", "high", "low_fraction", "high_of_total") if getattr(self, name) is not None]
        if given not in (["low", "high"], ["low_fraction", "high_of_total"]):
            raise ValueError(f"give low and high, or low_fraction and high_of_total (got {given})")
        if self.low is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        if self.slope == -1:
            raise ValueError("slope -1 is not supported (the inverse needs slope + 1 to differ from 0)")
        return self

    def draw(self, u: np.ndarray, low, high) -> np.ndarray:
        """Masses for uniform draws `u`, by the inverse of the cumulative distribution."""
        power = self.slope + 1
        return (low**power + (high**power - low**power) * u) ** (1 / power)


class Subhalos(Strict):
    """Point masses with a power-law mass function, each placed independently.

    With equal masses or masses in solar masses there are exactly `count`, or, with `poisson`, a Poisson number of mean
    `count`. With fractional masses, subhalos are drawn until they hold the mass fraction (the last one is cut to fit)
    and `count` is the most there can be.
    """

    kind: Literal["subhalos"]
    count: int = Field(gt=0, le=2000)
    poisson: bool = False
    mass: PowerLaw | EqualMass
    position: Position

    @model_validator(mode="after")
    def _countable(self):
        if self.poisson and self.needs_fraction and isinstance(self.mass, PowerLaw):
            raise ValueError("poisson is for equal masses and masses in solar masses")
        return self

    @property
    def needs_fraction(self) -> bool:
        return isinstance(self.mass, EqualMass) or self.mass.low_fraction is not None

    def draw(self, stream, n, cosmology, theta_E, mass_fraction):
        # 8 standard deviations above the mean
        most = self.count + int(8 * np.sqrt(self.count)) + 1 if self.poisson else self.count
        shape, there = (n, most), np.ones((n, most))
        if self.poisson:
            number = stream("subhalo_count").poisson(self.count, n).clip(max=most)
            there = (np.arange(most) < number[:, None]).astype(float)
        x, y = self.position.draw(stream, shape, "subhalo_")
        if isinstance(self.mass, EqualMass):
            share = mass_fraction * theta_E**2 / there.sum(1).clip(min=1)
            return x, y, there * share[:, None], {}
        u = stream("subhalo_mass").random(shape)
        if self.mass.low is not None:
            return x, y, there * cosmology.theta_E_squared(self.mass.draw(u, self.mass.low, self.mass.high)), {}
        total = mass_fraction[:, None]
        high = self.mass.high_of_total * np.maximum(total, 1e-12)  # so that no mass at all is a number too
        low = np.minimum(self.mass.low_fraction, 0.5 * high)
        held = self.mass.draw(u, low, high).cumsum(1)
        # should all of the list not reach the total, it is scaled up to it
        held = np.minimum(held * np.maximum(1, total / held[:, -1:]), total)
        return x, y, np.diff(held, prepend=0, axis=1) * theta_E[:, None] ** 2, {}


class Vortex(Strict):
    """A straight string of equal point masses: a vortex of superfluid dark matter (arXiv:1909.07346, sec. III).

    Its length is a prior in arcsec, or follows from the axion mass in eV as DeepLenseSim has it: half-length
    0.06 arcsec x 1e-22 / (2 m), stated there to hold for a lens at redshift 0.5 only. Its mass is in solar masses, or
    the substructure's mass fraction where `mass` is absent.
    """

    kind: Literal["vortex"]
    points: int = Field(gt=1, le=2000)
    mass: prior(low=0) | None = None
    length: prior(low=0) | None = None
    axion_mass: prior(low=1e-26) | None = None
    center: Position
    angle: prior()

    @property
    def needs_fraction(self) -> bool:
        return self.mass is None

    @model_validator(mode="after")
    def _one_length(self):
        if (self.length is None) == (self.axion_mass is None):
            raise ValueError("give exactly one of length and axion_mass")
        return self

    def draw(self, stream, n, cosmology, theta_E, mass_fraction):
        center_x, center_y = self.center.draw(stream, n, "vortex_")
        angle = self.angle.draw(stream("vortex_angle"), n)
        drawn = {"vortex_angle": angle}
        if self.axion_mass is not None:
            drawn["axion_mass"] = self.axion_mass.draw(stream("axion_mass"), n)
            length = 0.06e-22 / drawn["axion_mass"]
        else:
            length = self.length.draw(stream("vortex_length"), n)
        drawn["vortex_length"] = length
        along = np.linspace(-0.5, 0.5, self.points) * length[:, None]
        x, y = center_x[:, None] + along * np.cos(angle)[:, None], center_y[:, None] + along * np.sin(angle)[:, None]
        if self.mass is not None:
            total = cosmology.theta_E_squared(self.mass.draw(stream("vortex_mass"), n))
        else:
            total = mass_fraction * theta_E**2
        return x, y, np.repeat(total[:, None] / self.points, self.points, axis=1), drawn


Population = Annotated[Subhalos | Vortex, Field(discriminator="kind")]


def smooth_theta_E(theta_E, slope, e1, e2, center, x, y, mass):
    """Einstein radius of the smooth lens that, with the point masses, keeps the mass within the Einstein radius.

    "Within" is inside the isodensity ellipse q x^2 + y^2 / q = theta_E^2, where an elliptical power law of logarithmic
    density slope gamma holds theta_E_smooth^(gamma - 1) theta_E^(3 - gamma) of mass in units of pi Sigma_cr (Tessore &
    Metcalf 2015, eq. 2, integrated). theta_E, slope, e1, e2: [n]; x, y, mass: [n, k]. Returns [n].
    """
    size = np.hypot(e1, e2)
    q, phi = ((1 - size) / (1 + size))[:, None], (np.arctan2(e2, e1) / 2)[:, None]
    dx, dy = x - center[0][:, None], y - center[1][:, None]
    major, minor = dx * np.cos(phi) + dy * np.sin(phi), dy * np.cos(phi) - dx * np.sin(phi)
    inside = (q * major**2 + minor**2 / q) < theta_E[:, None] ** 2
    share = (mass * inside).sum(1) / theta_E**2
    return theta_E * (1 - share) ** (1 / (slope - 1))
