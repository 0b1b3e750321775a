"""Deflection of light by a thin lens: caustics' kernels over a batch, in lenstronomy's parameters.

Shapes: coordinates are [h, w] or broadcastable; parameters are [n]; results are [n, h, w] in arcsec. Every function is
pure, differentiable and free of files.
"""

import torch
from torch import Tensor

# arcsec; keeps 0 / 0 from a pixel on a lens centre, and moves deflections by about 1e-6 of themselves
SOFTENING = 1e-6
# arcsec; smaller, because what a point mass does 0.001 arcsec away can still be seen
POINT_SOFTENING = 1e-9
# terms of the series for the elliptical power law (Tessore & Metcalf 2015, eq. 29), whose error is e^terms
EPL_TERMS = 18


def pixel_grid(size: int, pixel_scale: float, device="cpu", dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Coordinates (x, y) of pixel centres in arcsec, each [size, size]; x grows along columns, y along rows."""
    axis = (torch.arange(size, device=device, dtype=dtype) - (size - 1) / 2) * pixel_scale
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def ellipticity_to_polar(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor]:
    """Axis ratio q and position angle (radians) of lenstronomy's (e1, e2)."""
    # the tiny number keeps the derivative of the square root finite for a round lens
    size = torch.sqrt(e1**2 + e2**2 + 1e-14)
    return (1 - size) / (1 + size), torch.atan2(e2, e1) / 2


def _planes(*values: Tensor) -> list[Tensor]:
    return [value[:, None, None] for value in values]


def macro_deflection(params: dict[str, Tensor], x: Tensor, y: Tensor, profile: str) -> tuple[Tensor, Tensor]:
    """Deflection by the smooth lens (profile `sie` or `epl`) and its external shear about the origin.

    `params` holds lens_theta_E, lens_e1, lens_e2, lens_center_x, lens_center_y, gamma1, gamma2 and, for `epl`, gamma
    (the logarithmic slope of the density, 2 for isothermal), each [n].
    """
    from caustics.lenses import func

    q, phi = ellipticity_to_polar(params["lens_e1"], params["lens_e2"])
    q, phi, theta_E, x0, y0 = _planes(q, phi, params["lens_theta_E"], params["lens_center_x"], params["lens_center_y"])
    if profile == "sie":
        alpha_x, alpha_y = func.reduced_deflection_angle_sie(x0, y0, q, phi, theta_E, x, y, s=SOFTENING)
    else:
        (slope,) = _planes(params["gamma"])
        alpha_x, alpha_y = _power_law_deflection(x - x0, y - y0, q, phi, theta_E, slope)
    gamma1, gamma2 = _planes(params["gamma1"], params["gamma2"])
    return alpha_x + gamma1 * x + gamma2 * y, alpha_y + gamma2 * x - gamma1 * y


def _power_law_deflection(x, y, q, phi, theta_E, slope):
    """Elliptical power law (Tessore & Metcalf 2015, eq. 13 with the series of eq. 29) in real numbers.

    caustics has the same series in complex numbers, which compilers cannot fuse; this is many times faster.
    """
    cos, sin, t, f = torch.cos(phi), torch.sin(phi), slope - 1, (1 - q) / (1 + q)
    real, imag = q * (x * cos + y * sin), y * cos - x * sin
    squared = real**2 + imag**2 + SOFTENING**2
    # z / conj(z) times -f: the ratio of successive terms but for a number
    turn_real, turn_imag = -f * (real**2 - imag**2) / squared, -f * 2 * real * imag / squared
    term_real, term_imag = real, imag
    sum_real, sum_imag = real, imag
    for i in range(1, EPL_TERMS):
        weight = (2 * i - (2 - t)) / (2 * i + (2 - t))
        term_real, term_imag = (
            weight * (turn_real * term_real - turn_imag * term_imag),
            weight * (turn_real * term_imag + turn_imag * term_real),
        )
        sum_real, sum_imag = sum_real + term_real, sum_imag + term_imag
    strength = 2 / (1 + q) * (theta_E * torch.sqrt(q)) ** t * squared ** (-t / 2)
    return strength * (sum_real * cos - sum_imag * sin), strength * (sum_real * sin + sum_imag * cos)


def point_mass_deflection(x0: Tensor, y0: Tensor, theta_E: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Summed deflection by k point masses a lens; x0, y0, theta_E are [n, k] in arcsec, theta_E = 0 is no mass."""
    from caustics.lenses import func

    x0, y0, theta_E = (value[:, :, None, None] for value in (x0, y0, theta_E))
    alpha_x, alpha_y = func.reduced_deflection_angle_point(x0, y0, theta_E, x, y, s=POINT_SOFTENING)
    return alpha_x.sum(1), alpha_y.sum(1)
