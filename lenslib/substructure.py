"""Populations of dark substructure: where the mass is, lens by lens.

A population draws, for each lens, k pieces of mass as a dict of [n, k] arrays: x, y in arcsec, `mass` as a squared
Einstein radius in arcsec^2 (which is proportional to mass; 0 is an empty place), and what its density profile needs
besides: Rs and r_trunc in arcsec for extended subhalos, length (arcsec) and angle (radians) for a string.
"""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from lenslib.cosmology import Cosmology
from lenslib.priors import Position, Strict, prior

# km/s x eV: the de Broglie wavelength h / (m v) in kpc is this over m v (h c = 1.23984e-6 eV m)
_DE_BROGLIE = 1.239841984e-6 * 299792.458 / 3.0856775814913673e19
# what a piece of each profile needs besides x, y and mass
PROFILE_NEEDS = {"point": (), "pseudo_jaffe": ("Rs",), "tnfw": ("Rs", "r_trunc"), "string": ("length", "angle")}
# pieces that stand for one extended mass where mass is counted inside a contour
TRACERS = 32


class EqualMass(Strict):
    """All subhalos of a lens have the same mass: their share of the substructure's mass fraction."""

    equal: Literal[True]


class PowerLaw(Strict):
    """dN/dm proportional to m^slope. Bounds in solar masses, or as fractions: `low_fraction` of the mass within the
    Einstein radius, and `high_of_total` of all substructure.

    `suppression`, in solar masses, is the M_0 of fuzzy dark matter: dN/dm times (1 + (m / M_0)^-1.1)^-2.2
    (Schive et al. 2016, ApJ 818, 89). It goes with bounds in solar masses, whose number it lowers.
    """

    slope: float = Field(ge=-5, le=5)
    low: float | None = Field(None, gt=0)
    high: float | None = Field(None, gt=0)
    low_fraction: float | None = Field(None, gt=0, lt=1)
    high_of_total: float | None = Field(None, gt=0, le=1)
    suppression: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _bounds(self):
        given = [name for name in ("low", "high", "low_fraction", "high_of_total") if getattr(self, name) is not None]
        if given not in (["low", "high"], ["low_fraction", "high_of_total"]):
            raise ValueError(f"give low and high, or low_fraction and high_of_total (got {given})")
        if self.low is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        if self.slope == -1:
            raise ValueError("slope -1 is not supported (the inverse needs slope + 1 to differ from 0)")
        if self.suppression is not None and self.low is None:
            raise ValueError("suppression goes with low and high in solar masses")
        return self

    def draw(self, u: np.ndarray, low, high) -> np.ndarray:
        """Masses for uniform draws `u`, by the inverse of the cumulative distribution."""
        power = self.slope + 1
        return (low**power + (high**power - low**power) * u) ** (1 / power)

    def kept(self, mass: np.ndarray) -> np.ndarray:
        """The share that `suppression` leaves of subhalos of that mass."""
        return 1.0 if self.suppression is None else (1 + (mass / self.suppression) ** -1.1) ** -2.2


class Subhalos(Strict):
    """Subhalos with a power-law mass function, each placed independently.

    With equal masses or masses in solar masses there are exactly `count`, or, with `poisson`, a Poisson number of mean
    `count`. With fractional masses, subhalos are drawn until they hold the mass fraction (the last one is cut to fit)
    and `count` is the most there can be.

    `profile`: a `point`; a `pseudo_jaffe`, cut by the tide of the lens at Rs = (theta_E_subhalo^2 theta_E)^(1/3)
    (Dalal & Kochanek 2002, ApJ 572, 25, sec. 2, written in total mass); or a `tnfw` (Baltz, Marshall & Oguri 2009,
    JCAP 01, 015) cut at `truncation` scale radii, its scale radius that of an NFW halo of the same mass with the
    concentration of Dutton & Maccio 2014 (MNRAS 441, 3359). The mass is the total of each.
    """

    kind: Literal["subhalos"]
    profile: Literal["point", "pseudo_jaffe", "tnfw"] = "point"
    truncation: float | None = Field(None, gt=0.1, le=100)
    count: int = Field(gt=0, le=2000)
    poisson: bool = False
    mass: PowerLaw | EqualMass
    position: Position

    @model_validator(mode="after")
    def _consistent(self):
        if self.poisson and self.needs_fraction and isinstance(self.mass, PowerLaw):
            raise ValueError("poisson is for equal masses and masses in solar masses")
        if (self.profile == "tnfw") != (self.truncation is not None):
            raise ValueError("a tnfw needs a truncation, and the other profiles have none")
        return self

    @property
    def needs_fraction(self) -> bool:
        return isinstance(self.mass, EqualMass) or self.mass.low_fraction is not None

    def draw(self, stream, n, cosmology, theta_E, mass_fraction):
        x, y, mass = self._draw_points(stream, n, cosmology, theta_E, mass_fraction)
        points = {"x": x, "y": y, "mass": mass}
        if self.profile == "pseudo_jaffe":
            # an empty place has a size as well, so that it deflects by 0 and not by 0 / 0
            points["Rs"] = np.maximum(mass * theta_E[:, None], 1e-15) ** (1 / 3)
        elif self.profile == "tnfw":
            solar = np.maximum(mass / cosmology.theta_E_squared(1.0), 1.0)
            points["Rs"] = cosmology.r200(solar) / concentration(solar, cosmology)
            points["r_trunc"] = self.truncation * points["Rs"]
        return points, {}

    def _draw_points(self, stream, n, cosmology, theta_E, mass_fraction):
        # 8 standard deviations above the mean
        most = self.count + int(8 * np.sqrt(self.count)) + 1 if self.poisson else self.count
        shape, there = (n, most), np.ones((n, most))
        if self.poisson:
            number = stream("subhalo_count").poisson(self.count, n).clip(max=most)
            there = (np.arange(most) < number[:, None]).astype(float)
        x, y = self.position.draw(stream, shape, "subhalo_")
        if isinstance(self.mass, EqualMass):
            share = mass_fraction * theta_E**2 / there.sum(1).clip(min=1)
            return x, y, there * share[:, None]
        u = stream("subhalo_mass").random(shape)
        if self.mass.low is not None:
            mass = self.mass.draw(u, self.mass.low, self.mass.high)
            there *= stream("subhalo_kept").random(shape) < self.mass.kept(mass)
            return x, y, there * cosmology.theta_E_squared(mass)
        total = mass_fraction[:, None]
        high = self.mass.high_of_total * np.maximum(total, 1e-12)  # so that no mass at all is a number too
        low = np.minimum(self.mass.low_fraction, 0.5 * high)
        held = self.mass.draw(u, low, high).cumsum(1)
        # should all of the list not reach the total, it is scaled up to it
        held = np.minimum(held * np.maximum(1, total / held[:, -1:]), total)
        return x, y, np.diff(held, prepend=0, axis=1) * theta_E[:, None] ** 2


def concentration(mass, cosmology: Cosmology):
    """Of NFW halos of `mass` solar masses (M200) at the lens: Dutton & Maccio 2014, MNRAS 441, 3359.
    Measured from 1e10 solar masses on; below, it is carried on."""
    z, h = cosmology.z_lens, cosmology.H0 / 100
    a, b = 0.520 + (0.905 - 0.520) * np.exp(-0.617 * z**1.21), -0.101 + 0.026 * z
    return 10 ** (a + b * np.log10(mass * h / 1e12))


class Vortex(Strict):
    """A vortex of superfluid dark matter (arXiv:1909.07346, sec. III): a straight string of even density, or, with
    `points`, as many equal point masses on a line.

    Its length is a prior in arcsec, or follows from the axion mass m in eV (`length_from`): `deeplense`, 0.06 arcsec x
    1e-22 / m, stated there to hold for a lens at redshift 0.5 only; or `de_broglie`, the wavelength h / (m v) of axions
    that move with `velocity` (km/s), at the lens's distance: 0.60 kpc for 1e-22 eV and 200 km/s (Hui et al. 2017, Phys.
    Rev. D 95, 043541, eq. 1, times 2 pi). It holds for axions in a halo in equilibrium, v its velocity
    dispersion, and says how long a coherent piece is, not how long a vortex can be. Its mass is in solar masses, or the
    substructure's mass fraction where `mass` is absent.
    """

    kind: Literal["vortex"]
    points: int | None = Field(None, gt=1, le=2000)
    mass: prior(low=0) | None = None
    length: prior(low=0) | None = None
    axion_mass: prior(low=1e-26) | None = None
    length_from: Literal["deeplense", "de_broglie"] = "deeplense"
    velocity: float = Field(200.0, gt=0)
    center: Position
    angle: prior()

    @property
    def profile(self) -> str:
        return "string" if self.points is None else "point"

    @property
    def needs_fraction(self) -> bool:
        return self.mass is None

    @model_validator(mode="after")
    def _one_length(self):
        if (self.length is None) == (self.axion_mass is None):
            raise ValueError("give exactly one of length and axion_mass")
        return self

    def _draw_length(self, stream, n, cosmology) -> dict[str, np.ndarray]:
        if self.length is not None:
            return {"vortex_length": self.length.draw(stream("vortex_length"), n)}
        axion_mass = self.axion_mass.draw(stream("axion_mass"), n)
        if self.length_from == "deeplense":
            return {"axion_mass": axion_mass, "vortex_length": 0.06e-22 / axion_mass}
        return {"axion_mass": axion_mass, "vortex_length": _DE_BROGLIE / (axion_mass * self.velocity) * cosmology.kpc}

    def draw(self, stream, n, cosmology, theta_E, mass_fraction):
        x, y = self.center.draw(stream, n, "vortex_")
        angle = self.angle.draw(stream("vortex_angle"), n)
        drawn = {"vortex_angle": angle} | self._draw_length(stream, n, cosmology)
        if self.mass is not None:
            mass = cosmology.theta_E_squared(self.mass.draw(stream("vortex_mass"), n))
        else:
            mass = mass_fraction * theta_E**2
        string = {"x": x, "y": y, "mass": mass, "length": drawn["vortex_length"], "angle": angle}
        string = {name: value[:, None] for name, value in string.items()}
        if self.points is None:
            return string, drawn
        x, y, mass = _along(string, np.linspace(-0.5, 0.5, self.points))
        return {"x": x, "y": y, "mass": mass}, drawn


Population = Annotated[Subhalos | Vortex, Field(discriminator="kind")]


def _along(string: dict[str, np.ndarray], places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, mass [n, p] of equal pieces of strings [n, 1] at `places` [p], in lengths from the middle."""
    along = places * string["length"]
    x, y = string["x"] + along * np.cos(string["angle"]), string["y"] + along * np.sin(string["angle"])
    return x, y, np.repeat(string["mass"] / len(places), len(places), axis=1)


def string_pieces(string: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, mass [n, count] of the middles of equal pieces of strings [n, 1] (x, y, mass, length and angle)."""
    return _along(string, (np.arange(count) + 0.5) / count - 0.5)


def tracers(points: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, mass [n, p] of point masses that stand for a population's pieces where mass is counted in a contour.

    A point stands for itself, a string for equal pieces of it, and an extended subhalo for `TRACERS` equal masses on a
    spiral, each at the radius that holds its share of the projected mass.
    """
    if "length" in points:
        return string_pieces(points, 8 * TRACERS)
    if "Rs" not in points:
        return points["x"], points["y"], points["mass"]
    share = (np.arange(TRACERS) + 0.5) / TRACERS
    if "r_trunc" in points:
        truncation = float((points["r_trunc"] / points["Rs"]).flat[0])
        radius = np.interp(share, *_tnfw_enclosed(truncation))
    else:
        # of a pseudo-Jaffe profile, r holds the share (r + Rs - sqrt(r^2 + Rs^2)) / Rs
        radius = share * (2 - share) / (2 * (1 - share))
    turn = np.arange(TRACERS) * np.pi * (3 - np.sqrt(5))
    x, y = (
        (points[name][..., None] + points["Rs"][..., None] * radius * turned(turn)).reshape(len(points[name]), -1)
        for name, turned in (("x", np.cos), ("y", np.sin))
    )
    return x, y, np.repeat(points["mass"] / TRACERS, TRACERS, axis=1)


@lru_cache
def _tnfw_enclosed(truncation: float) -> tuple[np.ndarray, np.ndarray]:
    """Share of the projected mass within radii, and these radii in scale radii."""
    import torch
    from caustics.lenses import func

    radius, tau = torch.logspace(-4, 4, 2000, dtype=torch.float64), torch.tensor(truncation, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    share = func.mass_enclosed_2d_tnfw(radius, one, tau, func.M0_totmass_tnfw(one, tau))
    return share.cummax(0).values.numpy(), radius.numpy()


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
