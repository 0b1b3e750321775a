"""Light of the lensed galaxy, evaluated on ray-traced coordinates."""

from torch import Tensor

from lenslib.optics import SOFTENING, ellipticity_to_polar


def sersic(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Elliptical Sersic surface brightness [n, h, w] at source-plane coordinates [n, h, w] in arcsec.

    `params` holds amp, R_sersic, n_sersic, source_e1, source_e2, source_center_x, source_center_y, each [n], as in
    lenstronomy's SERSIC_ELLIPSE: radius sqrt(q x^2 + y^2 / q), `amp` the brightness at the half-light radius,
    b_n = 1.9992 n - 0.3271 (Capaccioli 1989).
    """
    from caustics.light import func

    q, phi = ellipticity_to_polar(params["source_e1"], params["source_e2"])
    x0, y0 = params["source_center_x"], params["source_center_y"]
    # caustics measures radii along the major axis
    n, radius, amp = params["n_sersic"], params["R_sersic"] / q.sqrt(), params["amp"]
    x0, y0, q, phi, n, radius, amp = (value[:, None, None] for value in (x0, y0, q, phi, n, radius, amp))
    return func.brightness_sersic(x0, y0, q, phi, n, radius, amp, x, y, func.k_lenstronomy(n), s=SOFTENING)
