"""Light of the lensed galaxy, evaluated on ray-traced coordinates, and of the lens galaxy itself."""

from torch import Tensor

from lenslib.optics import SOFTENING, ellipticity_to_polar


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
    import numpy as np
    from caustics.light import func
    from scipy.special import gamma

    b = func.k_lenstronomy(n_sersic)
    return 2 * np.pi * n_sersic * R_sersic**2 * np.exp(b) * b ** (-2 * n_sersic) * gamma(2 * n_sersic)
