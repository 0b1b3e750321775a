"""The roulette formalism: a lens's map as a power series about the image, its amplitudes in closed form, and where the
series holds (Clarkson 2016, Class. Quantum Grav. 33, 245003; Normann & Clarkson 2020, Gen. Rel. Grav. 52, 28).

With the potential psi and the position xi = x + iy in the lens plane, the amplitudes A = alpha + i beta are its mixed
derivatives: for m + s odd and s up to m + 1,

    A[m, s] = -c C(m + 1, k) conj(d^j dbar^k psi),  j = (m + 1 + s) / 2,  k = (m + 1 - s) / 2,  c = 1 if s = 0 else 2,

since the recursion of Normann & Clarkson, which raises m by one, is nothing but 2 dbar (s + 1) and 2 d (s - 1) with
binomial weights. A round lens leaves one monomial of each, hence the closed forms. Lengths are pixels. Parameters are
[n]; amplitudes are complex [n, order + 1, order + 2], indexed [m, s] and zero where m + s is even. Every function is
pure and differentiable.
"""

import math
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial

import torch
from torch import Tensor

from lenslib.errors import InputError

# of a power series, whose terms are divided by (m + 1)!: 171! is no number in double precision
MAX_ORDER = 169
# how much larger than their sum the terms of an ellipsoid's series may be: as many digits as double precision has
_LARGEST_TERMS = 1e15
# far below the last digit of a sum of terms of which the first is 1
_NOTHING = 1e-20
# in the solution for the image of a source behind an elliptical lens
_STEPS = 60


def check_order(order: int) -> None:
    """InputError for an order that is no whole number, negative or beyond what double precision holds."""
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= MAX_ORDER:
        raise InputError(
            f"the order must be a whole number from 0 to {MAX_ORDER}, not {order!r}: double precision holds no more"
        )


def _check_terms(terms: int) -> None:
    check_order(terms)
    if terms < 1:
        raise InputError(f"a series needs at least 1 term, not {terms}")


def indices(order: int) -> list[tuple[int, int]]:
    """All (m, s) of amplitudes up to an order: m + s odd, s at most m + 1."""
    return [(m, s) for m in range(order + 1) for s in range((m + 1) % 2, m + 2, 2)]


def sis_amplitudes(einstein_radius: Tensor, x: Tensor, y: Tensor, order: int) -> Tensor:
    """Amplitudes of the singular isothermal sphere psi = R_E |xi| at (x, y).

    A = -c R_E C(m + 1, k) (1/2)_k (1/2)_(k + s) |xi|^-m e^(i s arg xi), (a)_k the falling factorial. All [n], lens
    plane. InputError for a bad order, the lens's own centre, places that are no numbers, and amplitudes that double
    precision does not hold.
    """
    return _round_amplitudes(einstein_radius, x, y, order, _sis_coefficients, power=0)


def pm_amplitudes(einstein_radius: Tensor, x: Tensor, y: Tensor, order: int) -> Tensor:
    """Amplitudes of a point mass psi = R_E^2 ln |xi| at (x, y); as `sis_amplitudes`.

    A = -R_E^2 (-1)^m m! |xi|^-(m + 1) e^(i (m + 1) arg xi) for s = m + 1; the others are zero.
    """
    return _round_amplitudes(einstein_radius**2, x, y, order, _pm_coefficients, power=1)


def _round_amplitudes(strength, x, y, order, coefficients, power):
    check_order(order)
    radius, angle = _polar(x, y)
    m = torch.arange(order + 1, dtype=torch.float64)[:, None]
    s = torch.arange(order + 2, dtype=torch.float64)
    sign, logarithm = coefficients(order)
    # by logarithms, because m! and |xi|^-m leave double precision long before their product does
    size = sign * torch.exp(logarithm - (m + power) * torch.log(radius)[:, None, None])
    amplitudes = strength[:, None, None] * torch.polar(size.abs(), s * angle[:, None, None]) * size.sign()
    if not torch.isfinite(torch.view_as_real(amplitudes)).all():
        nearest = f"{float(radius.min()):g} pixels from the lens"
        raise InputError(f"amplitudes of order {order}, {nearest}, are larger than double precision holds: lower it")
    return amplitudes


def _polar(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if not (torch.isfinite(x) & torch.isfinite(y)).all():
        raise InputError("there are no amplitudes at a place that is not a finite number")
    if ((x == 0) & (y == 0)).any():
        raise InputError("there are no amplitudes at the centre of the lens, where its potential has no derivatives")
    return torch.hypot(x, y), torch.atan2(y, x)


@lru_cache
def _sis_coefficients(order: int) -> tuple[Tensor, Tensor]:
    """Signs and logarithms of -c C(m + 1, k) (1/2)_k (1/2)_(m + 1 - k), each [order + 1, order + 2]."""
    falling = [Fraction(1)]
    for k in range(order + 1):
        falling.append(falling[-1] * (Fraction(1, 2) - k))
    sizes = torch.zeros(order + 1, order + 2, dtype=torch.float64)
    for m, s in indices(order):
        k = (m + 1 - s) // 2
        sizes[m, s] = float(-(2 if s else 1) * comb(m + 1, k) * falling[k] * falling[m + 1 - k])
    return sizes.sign(), sizes.abs().log()


@lru_cache
def _pm_coefficients(order: int) -> tuple[Tensor, Tensor]:
    sizes = torch.zeros(order + 1, order + 2, dtype=torch.float64)
    for m in range(order + 1):
        sizes[m, m + 1] = -((-1) ** m) * float(factorial(m))
    return sizes.sign(), sizes.abs().log()


def sie_amplitudes(
    einstein_radius: Tensor, x: Tensor, y: Tensor, order: int, axis_ratio: Tensor, orientation: Tensor
) -> Tensor:
    """Amplitudes of the singular isothermal ellipsoid in CosmoSim's form: density constant on x'^2 + f^2 y'^2, with x'
    along `orientation` (degrees) and f the `axis_ratio` in (0, 1).

    By recursion: d dbar psi = R_E sqrt(f) / (4 sqrt(Q)) with the quadratic form Q, whose power -1/2 has Taylor
    coefficients that follow from Q dG = -G dQ / 2; the pure derivatives follow from d psi being of degree 0.
    InputError for an axis ratio outside (0, 1), and for a lens so flat that double precision cannot hold the order:
    with w and its conjugate taken for independent, sqrt(Q) has branch points at |w| = sqrt(Q(xi)), so that halfway to
    the lens the terms are larger than their sum by (|xi| / 2 sqrt(Q(xi)))^order.
    """
    check_order(order)
    radius, angle = _polar(x, y)
    if not ((axis_ratio > 0) & (axis_ratio < 1)).all():
        raise InputError("the axis ratio of an ellipsoid must lie between 0 and 1, without the ends")
    turn = torch.deg2rad(orientation)
    # in units of |xi| and in axes of the lens
    z = torch.polar(torch.ones_like(radius), angle - turn)
    growth = float((0.5 / torch.sqrt(z.real**2 + axis_ratio**2 * z.imag**2)).detach().max())
    if growth**order > _LARGEST_TERMS:
        most = int(math.log(_LARGEST_TERMS) / math.log(growth))
        raise InputError(
            f"an ellipsoid of axis ratio {float(axis_ratio.min()):g} has no amplitudes of order {order} in double "
            f"precision, whose terms cancel to the last digit: use at most {most}, or follow every ray (raytrace)"
        )
    series = _inverse_root(z, axis_ratio, order)
    strength = einstein_radius * torch.sqrt(axis_ratio) / 4
    pull_x, pull_y = sie_deflection(einstein_radius, z.real, z.imag, axis_ratio, torch.zeros_like(turn))
    psi = {(1, 0): torch.complex(pull_x, -pull_y) / 2}
    pure = torch.zeros_like(z)
    for j in range(order):
        pure = (-z.conj() * strength * series[j, 0] - pure) / z
        psi[j + 2, 0] = pure / ((j + 1) * (j + 2))
    amplitudes = torch.zeros(len(z), order + 1, order + 2, dtype=z.dtype)
    columns = {}
    for m, s in indices(order):
        j, k = (m + 1 + s) // 2, (m + 1 - s) // 2
        taylor = psi[j, k] if k == 0 else strength * series[j - 1, k - 1] / (j * k)
        scale = -(2 if s else 1) * float(factorial(m + 1)) * radius**-m
        columns[m, s] = scale * taylor.conj() * torch.polar(torch.ones_like(turn), s * turn)
    m, s = zip(*columns, strict=True)
    return amplitudes.index_put(
        (torch.arange(len(z))[:, None], torch.tensor(m), torch.tensor(s)), torch.stack(list(columns.values()), 1)
    )


def _inverse_root(z: Tensor, f: Tensor, order: int) -> dict[tuple[int, int], Tensor]:
    """Taylor coefficients [j, k] in w^j conj(w)^k of Q(z + w)^(-1/2), Q = x^2 + f^2 y^2."""
    square, mixed = (1 - f**2) / 4, (1 + f**2) / 2
    slope = 2 * square * z + mixed * z.conj()
    terms = {(1, 0): slope, (0, 1): slope.conj(), (2, 0): square, (0, 2): square, (1, 1): mixed}
    start = (z.real**2 + f**2 * z.imag**2).to(z.dtype)
    found = {(0, 0): start**-0.5}
    for total in range(1, order):
        for j in range(total, (total - 1) // 2, -1):
            k = total - j
            # coefficient of w^(j - 1) conj(w)^k in P dG + G dP / 2 = 0
            rest = sum(p * (j - a / 2) * found[j - a, k - b] for (a, b), p in terms.items() if j >= a and k >= b)
            found[j, k] = -rest / (j * start)
            found[k, j] = found[j, k].conj()
    return found


def roulette_map(amplitudes: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays at (x, y) from the image meet the source plane, from the source and times chi: any lens's map by its
    amplitudes [n, order + 1, order + 2], the term of order 0 (the deflection at the image) left out.

    x, y are [n, h, w] or broadcastable, in the lens plane. Normann & Clarkson 2020, eq. 41, in complex form:
    w + sum_m 1/(m + 1)! sum_s [A j w^k conj(w)^(j - 1) + conj(A) k w^j conj(w)^(k - 1)].
    """
    w = torch.complex(*torch.broadcast_tensors(x, y))
    order = amplitudes.shape[1] - 1
    # coefficient of w^a conj(w)^b
    terms = {}
    for m, s in indices(order):
        if m == 0:
            continue
        j, k = (m + 1 + s) // 2, (m + 1 - s) // 2
        amplitude = amplitudes[:, m, s, None, None] / float(factorial(m + 1))
        terms[k, j - 1] = terms.get((k, j - 1), 0) + j * amplitude
        if k:
            terms[j, k - 1] = terms.get((j, k - 1), 0) + k * amplitude.conj()
    total = torch.zeros_like(w)
    for a in range(order, -1, -1):
        inner = torch.zeros_like(w)
        for b in range(order - a, -1, -1):
            inner = inner * w.conj() + terms.get((a, b), 0)
        total = total * w + inner
    total = total + w
    return total.real, total.imag


def sis_roulette(b: Tensor, nu_x: Tensor, nu_y: Tensor, x: Tensor, y: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """`roulette_map` of a singular isothermal sphere in image pixels: b = R_E / chi and the image's position nu.

    With u = (x + iy) / nu the deflection is b nu/|nu| (1 + u) / |1 + u|, and 1 / |1 + u| generates the Legendre
    polynomials, |u|^m P_m(-cos arg u). So the series cut at order n is (their sum to n) + u (their sum to n - 1), in
    real numbers and by their recurrence of three terms. Arguments broadcast. InputError for less than one term.
    """
    _check_terms(terms)
    squared = nu_x**2 + nu_y**2
    real, imag = (x * nu_x + y * nu_y) / squared, (y * nu_x - x * nu_y) / squared
    size = real**2 + imag**2
    if torch.compiler.is_compiling():
        total, last = legendre_sum(real, size, terms)
    else:
        total, last = _LegendreSum.apply(real, size, terms)
    strength = b / torch.sqrt(squared)
    # the term of order 0 is 1
    more_real, more_imag = strength * (total - 1 + real * (total - last)), strength * (imag * (total - last))
    return x - (more_real * nu_x - more_imag * nu_y), y - (more_real * nu_y + more_imag * nu_x)


def legendre_sum(real: Tensor, size: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """The sum of |u|^m P_m(-cos arg u) for m from 0 to `terms`, and its last term, by Re u and |u|^2."""
    before, term = torch.ones_like(size), -real
    total = before + term
    for m in range(1, terms):
        before, term = term, (-(2 * m + 1) / (m + 1)) * real * term - (m / (m + 1)) * size * before
        # rounded to nothing when that small: processors take a hundred times as long for numbers short of digits
        term = (term + _NOTHING) - _NOTHING
        total = total + term
    return total, term


class _LegendreSum(torch.autograd.Function):
    """`legendre_sum`, which is differentiated once, by its recurrence, however many directions are asked for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(real, size, terms):
        return legendre_sum(real, size, terms)

    @staticmethod
    def setup_context(ctx, inputs, output):
        real, size, ctx.terms = inputs
        ctx.save_for_backward(real, size)
        ctx.save_for_forward(real, size)

    @staticmethod
    def _slopes(real, size, terms):
        """Derivatives of sum and last term by Re u and by |u|^2."""
        before, term = torch.ones_like(size), -real
        zero = torch.zeros_like(size)
        slopes = [[zero, -before], [zero, zero]]
        sums = [-before, zero]
        for m in range(1, terms):
            one, two = -(2 * m + 1) / (m + 1), -m / (m + 1)
            slopes = [
                [slopes[0][1], one * (real * slopes[0][1] + term) + two * size * slopes[0][0]],
                [slopes[1][1], one * real * slopes[1][1] + two * (size * slopes[1][0] + before)],
            ]
            before, term = term, one * real * term + two * size * before
            sums = [sums[0] + slopes[0][1], sums[1] + slopes[1][1]]
        return sums, [slopes[0][1], slopes[1][1]]

    @staticmethod
    def jvp(ctx, real_step, size_step, _):
        sums, lasts = _LegendreSum._slopes(*ctx.saved_tensors, ctx.terms)
        return sums[0] * real_step + sums[1] * size_step, lasts[0] * real_step + lasts[1] * size_step

    @staticmethod
    def backward(ctx, sum_step, last_step):
        sums, lasts = _LegendreSum._slopes(*ctx.saved_tensors, ctx.terms)
        return sums[0] * sum_step + lasts[0] * last_step, sums[1] * sum_step + lasts[1] * last_step, None


def pm_roulette(b: Tensor, nu_x: Tensor, nu_y: Tensor, x: Tensor, y: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """`roulette_map` of a point mass in image pixels; as `sis_roulette`.

    The deflection is b^2 / conj(p) = b^2 / conj(nu) sum v^m, v = -conj(u), a geometric series: cut at order n, without
    its term of order 0, it is v (1 - v^n) / (1 - v).
    """
    _check_terms(terms)
    squared = nu_x**2 + nu_y**2
    real, imag = -(x * nu_x + y * nu_y) / squared, (y * nu_x - x * nu_y) / squared
    power_real, power_imag = _power(real, imag, terms)
    # v / (1 - v); at the lens's centre, v = 1, the whole is `terms`
    centre = (real == 1) * (imag == 0)
    size = (1 - real) ** 2 + imag**2 + centre
    first_real, first_imag = (real - real**2 - imag**2) / size, imag / size
    sum_real = first_real * (1 - power_real) + first_imag * power_imag + terms * centre
    sum_imag = first_imag * (1 - power_real) - first_real * power_imag
    strength = b**2 / squared
    return (
        x - strength * (sum_real * nu_x - sum_imag * nu_y),
        y - strength * (sum_real * nu_y + sum_imag * nu_x),
    )


def _power(real: Tensor, imag: Tensor, exponent: int) -> tuple[Tensor, Tensor]:
    """A complex number to a whole power, by squaring."""
    if exponent == 1:
        return real, imag
    half_real, half_imag = _power(real, imag, exponent // 2)
    square_real, square_imag = half_real**2 - half_imag**2, 2 * half_real * half_imag
    if exponent % 2 == 0:
        return square_real, square_imag
    return square_real * real - square_imag * imag, square_real * imag + square_imag * real


def sis_deflection(b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """b p / |p|, in image pixels; none at the centre."""
    radius = torch.sqrt(x**2 + y**2 + (x == 0) * (y == 0))
    return b * (x / radius), b * (y / radius)


def pm_deflection(b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """b^2 p / |p|^2, in image pixels; none at the centre."""
    squared = x**2 + y**2 + (x == 0) * (y == 0)
    return b**2 * (x / squared), b**2 * (y / squared)


def sie_deflection(b: Tensor, x: Tensor, y: Tensor, axis_ratio: Tensor, orientation: Tensor) -> tuple[Tensor, Tensor]:
    """Deflection by the singular isothermal ellipsoid of `sie_amplitudes`, in image pixels; none at the centre.

    Kormann et al. 1994, A&A 284, 285, eq. 27; caustics has the major axis where CosmoSim has the minor one.
    """
    from caustics.lenses import func

    # at the centre itself any other place will do: what is found there is thrown away
    centre = (x == 0) * (y == 0)
    origin, turn = torch.zeros_like(b), torch.deg2rad(orientation + 90)
    pull_x, pull_y = func.reduced_deflection_angle_sie(origin, origin, axis_ratio, turn, b, x + centre, y, s=0.0)
    return pull_x * ~centre, pull_y * ~centre


def deflection(profile: str, params: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Deflection at image pixels (x, y) by the lens `profile` (sis, pm or sie); params broadcast against x and y.

    chi (percent) and einstein_radius (lens plane) enter as b = 100 einstein_radius / chi alone.
    """
    b = ring_radius(params)
    if profile == "sie":
        return sie_deflection(b, x, y, params["axis_ratio"], params["orientation"])
    return (sis_deflection if profile == "sis" else pm_deflection)(b, x, y)


def ring_radius(params: dict[str, Tensor]) -> Tensor:
    """b = R_E / chi, the Einstein radius in image pixels."""
    return 100 * params["einstein_radius"] / params["chi"]


def image_position(profile: str, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The position nu of the brighter image of the source at (x, y), in image pixels: where roulettes are expanded.

    In closed form for sis and pm; for sie by fixed-point iteration of nu = eta + alpha(nu).
    """
    b, x, y = ring_radius(params), params["x"], params["y"]
    if profile == "sie":
        nu_x, nu_y = x, y
        for _ in range(_STEPS):
            pull_x, pull_y = deflection("sie", params, nu_x, nu_y)
            nu_x, nu_y = x + pull_x, y + pull_y
        return nu_x, nu_y
    radius = torch.sqrt(x**2 + y**2)
    stretch = 1 + b / radius if profile == "sis" else 0.5 + torch.sqrt(0.25 + (b / radius) ** 2)
    return x * stretch, y * stretch


def converges(profile: str, params: dict[str, Tensor], nu: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Where the roulette series about nu converges, of pixels (x, y): a disc through the lens's centre for sis and pm.

    An ellipsoid's map has branch points besides at x'^2 + f^2 y'^2 = 0 over complex coordinates, so that the series
    holds only where the offset d from nu has d_x'^2 + f^2 d_y'^2 < nu_x'^2 + f^2 nu_y'^2 as well.
    """
    dx, dy = x - nu[0], y - nu[1]
    inside = dx**2 + dy**2 < nu[0] ** 2 + nu[1] ** 2
    if profile != "sie":
        return inside
    turn = torch.deg2rad(params["orientation"])
    cos, sin, flat = torch.cos(turn), torch.sin(turn), params["axis_ratio"] ** 2

    def size(px, py):
        return (cos * px + sin * py) ** 2 + flat * (cos * py - sin * px) ** 2

    return inside & (size(dx, dy) < size(*nu))
