"""Light of the lensed galaxy, evaluated on ray-traced coordinates, and of the lens galaxy itself."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from lenslib.optics import SOFTENING, ellipticity_to_polar
from lenslib.priors import Ellipticity, Position, Strict, prior


class Brightness(Strict):
    """How bright a galaxy is: an amplitude, a magnitude, or neither, which is amplitude 1."""

    amp: prior(low=0) | None = None
    magnitude: prior() | None = None

    @model_validator(mode="after")
    def _one_brightness(self):
        if self.amp is not None and self.magnitude is not None:
            raise ValueError("give one of amp and magnitude (neither: amp 1)")
        return self

    def draw_amp(self, stream, n: int, own: str, zero_point: float | None, flux_of_one) -> np.ndarray:
        """Amplitudes [n] of a galaxy whose flux at amplitude 1 is `flux_of_one`."""
        if self.magnitude is not None:
            magnitude = self.magnitude.draw(stream(own + "magnitude"), n)
            return 10 ** (-0.4 * (magnitude - zero_point)) / flux_of_one
        return self.amp.draw(stream(own + "amp"), n) if self.amp is not None else np.ones(n)


class Clumps(Strict):
    """Knots of star formation in a galaxy: `count` round exponential profiles. Each has a `share` of the flux of the
    galaxy's smooth light, a half-light radius `R_sersic` (arcsec), and lies at a `distance` from the galaxy's centre,
    in half-light radii of the galaxy, in any direction."""

    count: int = Field(ge=1, le=64)
    share: prior(0, 1)
    R_sersic: prior(low=1e-4)
    distance: prior(low=0)

    def draw(self, stream, n: int, galaxy: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters [n] of every clump; clump<k>_amp is its brightness over that of the galaxy, amp."""
        drawn = {}
        for k in range(self.count):
            share, radius, distance = (
                getattr(self, name).draw(stream(f"clump{k}_{name}"), n) for name in ("share", "R_sersic", "distance")
            )
            angle, away = stream(f"clump{k}_angle").uniform(0, 2 * np.pi, n), distance * galaxy["R_sersic"]
            whole = sersic_flux(galaxy["R_sersic"], galaxy["n_sersic"])
            drawn |= {f"clump{k}_amp": share * whole / sersic_flux(radius, np.ones(n)), f"clump{k}_R_sersic": radius}
            drawn[f"clump{k}_center_x"] = galaxy["source_center_x"] + away * np.cos(angle)
            drawn[f"clump{k}_center_y"] = galaxy["source_center_y"] + away * np.sin(angle)
        return drawn


class Galaxy(Brightness):
    """A galaxy's light: an elliptical Sersic profile, lengths in arcsec. `amp` is its brightness at the half-light
    radius (flux an arcsec^2); with `magnitude` instead, that follows from the instrument's zero point. Of a source,
    `clumps` come on top."""

    profile: Literal["sersic"] = "sersic"
    R_sersic: prior(low=1e-4)
    n_sersic: prior(0.3, 10)
    ellipticity: Ellipticity
    center: Position
    clumps: Clumps | None = None

    def draw(self, stream, n: int, prefix: str, own: str, zero_point: float | None) -> dict[str, np.ndarray]:
        """Parameters [n]; names of the profile begin with `own`, those of place and shape with `prefix`."""
        drawn = {own + name: getattr(self, name).draw(stream(own + name), n) for name in ("R_sersic", "n_sersic")}
        of_one = sersic_flux(drawn[f"{own}R_sersic"], drawn[f"{own}n_sersic"])
        drawn = {f"{own}amp": self.draw_amp(stream, n, own, zero_point, of_one)} | drawn
        drawn[f"{prefix}e1"], drawn[f"{prefix}e2"] = self.ellipticity.draw(stream, n, prefix)
        center = self.center.draw(stream, n, f"{prefix}center_")
        drawn |= {f"{prefix}center_x": center[0], f"{prefix}center_y": center[1]}
        return drawn if self.clumps is None else drawn | self.clumps.draw(stream, n, drawn)


def sersic(params: dict[str, Tensor], x: Tensor, y: Tensor, galaxy: str = "source") -> Tensor:
    """Elliptical Sersic surface brightness [n, h, w] at coordinates [n, h, w] or [h, w] in arcsec.

    `params` holds amp, R_sersic, n_sersic, source_e1, source_e2, source_center_x, source_center_y, each [n], as in
    lenstronomy's SERSIC_ELLIPSE: radius sqrt(q x^2 + y^2 / q), `amp` the brightness at the half-light radius,
    b_n = 1.9992 n - 0.3271 (Capaccioli 1989). For the galaxy "lens_light", all names begin with lens_light_.
    """
    from caustics.light import func

    own = "" if galaxy == "source" else f"{galaxy}_"
    q, phi = ellipticity_to_polar(params[f"{galaxy}_e1"], params[f"{galaxy}_e2"])
    x0, y0 = params[f"{galaxy}_center_x"], params[f"{galaxy}_center_y"]
    # caustics measures radii along the major axis
    n, radius, amp = params[f"{own}n_sersic"], params[f"{own}R_sersic"] / q.sqrt(), params[f"{own}amp"]
    x0, y0, q, phi, n, radius, amp = (value[:, None, None] for value in (x0, y0, q, phi, n, radius, amp))
    return func.brightness_sersic(x0, y0, q, phi, n, radius, amp, x, y, func.k_lenstronomy(n), s=SOFTENING)


def with_clumps(light: Tensor, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The light [n, h, w] of a source with that of its clumps, if `params` has any (see `Clumps`)."""
    from caustics.light import func

    k = 0
    while f"clump{k}_amp" in params:
        names = ("center_x", "center_y", "R_sersic", "amp")
        x0, y0, radius, amp = (params[f"clump{k}_{name}"][:, None, None] for name in names)
        amp, one = amp * params["amp"][:, None, None], torch.ones_like(x0)
        bright = func.brightness_sersic(
            x0, y0, one, 0 * one, one, radius, amp, x, y, func.k_lenstronomy(one), s=SOFTENING
        )
        light, k = light + bright, k + 1
    return light


def sersic_flux(R_sersic, n_sersic):
    """Total flux of a profile of amp 1 (arrays alike; Graham & Driver 2005, PASA 22, 118, eq. 4)."""
    from caustics.light import func
    from scipy.special import gamma

    b = func.k_lenstronomy(n_sersic)
    return 2 * np.pi * n_sersic * R_sersic**2 * np.exp(b) * b ** (-2 * n_sersic) * gamma(2 * n_sersic)
