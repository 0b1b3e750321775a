"""Light of the lensed galaxy, evaluated on ray-traced coordinates, and of the lens galaxy itself."""

from typing import Literal

import numpy as np
from pydantic import model_validator
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


class Galaxy(Brightness):
    """A galaxy's light: an elliptical Sersic profile, lengths in arcsec. `amp` is its brightness at the half-light
    radius (flux an arcsec^2); with `magnitude` instead, that follows from the instrument's zero point."""

    profile: Literal["sersic"] = "sersic"
    R_sersic: prior(low=1e-4)
    n_sersic: prior(0.3, 10)
    ellipticity: Ellipticity
    center: Position

    def draw(self, stream, n: int, prefix: str, own: str, zero_point: float | None) -> dict[str, np.ndarray]:
        """Parameters [n]; names of the profile begin with `own`, those of place and shape with `prefix`."""
        drawn = {own + name: getattr(self, name).draw(stream(own + name), n) for name in ("R_sersic", "n_sersic")}
        of_one = sersic_flux(drawn[f"{own}R_sersic"], drawn[f"{own}n_sersic"])
        drawn = {f"{own}amp": self.draw_amp(stream, n, own, zero_point, of_one)} | drawn
        drawn[f"{prefix}e1"], drawn[f"{prefix}e2"] = self.ellipticity.draw(stream, n, prefix)
        center = self.center.draw(stream, n, f"{prefix}center_")
        return drawn | {f"{prefix}center_x": center[0], f"{prefix}center_y": center[1]}


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


def sersic_flux(R_sersic, n_sersic):
    """Total flux of a profile of amp 1 (arrays alike; Graham & Driver 2005, PASA 22, 118, eq. 4)."""
    from caustics.light import func
    from scipy.special import gamma

    b = func.k_lenstronomy(n_sersic)
    return 2 * np.pi * n_sersic * R_sersic**2 * np.exp(b) * b ** (-2 * n_sersic) * gamma(2 * n_sersic)
