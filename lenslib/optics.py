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


def companion_deflection(
    params: dict[str, Tensor], name: str, count: int, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed deflection by companions of the lens: isothermal ellipsoids where `params` holds `<name>_0_e1`, point
    masses otherwise. Each of `<name>_<k>_theta_E`, center_x, center_y (e1, e2) is [n], for k below `count`."""
    from caustics.lenses import func

    def column(key: str) -> Tensor:
        return torch.stack([params[f"{name}_{k}_{key}"] for k in range(count)], 1)

    theta_E, x0, y0 = column("theta_E"), column("center_x"), column("center_y")
    if f"{name}_0_e1" not in params:
        return point_mass_deflection(x0, y0, theta_E, x, y)
    q, phi = ellipticity_to_polar(column("e1"), column("e2"))
    x0, y0, q, phi, theta_E = (value[:, :, None, None] for value in (x0, y0, q, phi, theta_E))
    alpha_x, alpha_y = func.reduced_deflection_angle_sie(x0, y0, q, phi, theta_E, x, y, s=SOFTENING)
    return alpha_x.sum(1), alpha_y.sum(1)


def substructure_deflection(points: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Summed deflection by k pieces of dark substructure a lens.

    `points` holds x, y, theta_E [n, k] in arcsec, theta_E that of all the mass of a piece (0: no mass), and tells the
    profile by what it holds besides: nothing for point masses, Rs for pseudo-Jaffe profiles, Rs and r_trunc for
    truncated NFW profiles, length and angle for straight strings. Lengths are in arcsec, angles in radians.
    """
    x0, y0, theta_E = points["x"], points["y"], points["theta_E"]
    if "length" in points:
        return string_deflection(x0, y0, theta_E, points["length"], points["angle"], x, y)
    if "Rs" in points:
        return _extended_deflection(x0, y0, theta_E, points["Rs"], points.get("r_trunc"), x, y)
    return point_mass_deflection(x0, y0, theta_E, x, y)


def point_mass_deflection(x0: Tensor, y0: Tensor, theta_E: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Summed deflection by k point masses a lens; x0, y0, theta_E are [n, k] in arcsec, theta_E = 0 is no mass.

    Each deflects by theta_E^2 / r towards itself. caustics has the same with a square root and two divisions, where a
    hundred pieces a lens leave little time but for one.
    """
    x0, y0, theta_E = (value[:, :, None, None] for value in (x0, y0, theta_E))
    dx, dy = x - x0, y - y0
    # theta_E enters last: torch's compiler would store, not fuse, a factor of both sums that depends on five things
    inverse = 1 / (dx**2 + dy**2 + POINT_SOFTENING**2)
    return (inverse * dx * theta_E**2).sum(1), (inverse * dy * theta_E**2).sum(1)


def _extended_deflection(x0, y0, theta_E, Rs, r_trunc, x, y):
    """Round profiles of total mass theta_E^2 (in pi Sigma_cr arcsec^2), by the mass within each radius."""
    from caustics.lenses import func

    x0, y0, theta_E, Rs = (value[:, :, None, None] for value in (x0, y0, theta_E, Rs))
    dx, dy = x - x0, y - y0
    radius = torch.sqrt(dx**2 + dy**2 + SOFTENING**2)
    if r_trunc is None:
        enclosed = func.mass_enclosed_2d_pseudo_jaffe(radius, theta_E**2, 0.0, Rs)
    else:
        tau = r_trunc[:, :, None, None] / Rs
        enclosed = func.mass_enclosed_2d_tnfw(radius, Rs, tau, func.M0_totmass_tnfw(theta_E**2, tau))
    strength = enclosed / radius**2
    return (strength * dx).sum(1), (strength * dy).sum(1)


def string_deflection(x0, y0, theta_E, length, angle, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Summed deflection by k straight strings of even line density, each [n, k], of middle (x0, y0) and mass theta_E^2.

    The conjugate deflection of a line from w1 to w2 is theta_E^2 / length e^(-i angle) ln[(z - w1) / (z - w2)]: the
    point mass's 1 / (z - w), integrated along it. `angle` is that of the string with the x axis.
    """
    x0, y0, theta_E, length, angle = (value[:, :, None, None] for value in (x0, y0, theta_E, length, angle))
    cos, sin, dx, dy = torch.cos(angle), torch.sin(angle), x - x0, y - y0
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    # a string of no length is a point mass: keep 0 / 0 away
    length = length.clamp(min=1e-4)
    squared = along**2 + across**2
    # ln |(z - w1) / (z - w2)|, without the difference of two logarithms; infinite at the very ends
    pull = torch.atanh((along * length / (squared + length**2 / 4)).clamp(-1 + 1e-7, 1 - 1e-7))
    turn = torch.atan2(length * across, squared - length**2 / 4)
    strength = theta_E**2 / length
    return (strength * (pull * cos - turn * sin)).sum(1), (strength * (pull * sin + turn * cos)).sum(1)
