"""Amplitudes and maps: against the recursion of the literature, CosmoSim's tables, and the lens equation itself."""

from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lenslib import roulettes
from lenslib.errors import InputError
from lenslib.roulettes import (
    MAX_ORDER,
    indices,
    pm_amplitudes,
    pm_roulette,
    roulette_map,
    sie_amplitudes,
    sie_deflection,
    sis_amplitudes,
    sis_roulette,
)

ORDER = 50
CLOSED = {"sis": sis_amplitudes, "pm": pm_amplitudes}


def one(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@lru_cache
def _recursion_in_x_and_y(profile: str, order: int):
    """Normann & Clarkson 2020 as CosmoSim states it, in real coordinates: {(m, s): (alpha, beta)}."""
    x, y = sympy.symbols("x y", real=True)
    f, p = sympy.symbols("f p", positive=True)
    radius = sympy.sqrt(x**2 + y**2)
    along, across = sympy.cos(p) * x + sympy.sin(p) * y, sympy.cos(p) * y - sympy.sin(p) * x
    rest = sympy.sqrt(1 - f**2)
    sie = (
        sympy.sqrt(f)
        / rest
        * (across * sympy.asin(rest * across / radius) + along * sympy.asinh(rest * along / f / radius))
    )
    psi = {"sis": radius, "pm": sympy.log(radius), "sie": sie}[profile]
    found = {(0, 1): (-sympy.diff(psi, x), -sympy.diff(psi, y))}
    for m in range(order):
        for s in range((m + 1) % 2, m + 2, 2):
            alpha, beta = found[m, s]
            # primes of the text: m + 1 is the new order, and m + 2 its factor
            up = sympy.Rational(m + 2, m + 2 + s + 1) * (2 if s == 0 else 1)
            found.setdefault(
                (m + 1, s + 1),
                (up * (sympy.diff(alpha, x) - sympy.diff(beta, y)), up * (sympy.diff(beta, x) + sympy.diff(alpha, y))),
            )
            if s >= 1:
                down = sympy.Rational(m + 2, m + 2 - (s - 1)) / (2 if s == 1 else 1)
                found.setdefault(
                    (m + 1, s - 1),
                    (
                        down * (sympy.diff(alpha, x) + sympy.diff(beta, y)),
                        down * (sympy.diff(beta, x) - sympy.diff(alpha, y)),
                    ),
                )
    names = (x, y, f, p)
    return {key: tuple(sympy.lambdify(names, part) for part in pair) for key, pair in found.items()}


def _close(ours, theirs, relative):
    assert abs(ours - theirs) <= relative * abs(theirs) + 1e-300, (ours, theirs)


@pytest.mark.parametrize("profile", ["sis", "pm"])
def test_closed_amplitudes_are_the_recursion_in_x_and_y(profile):
    strength = 17.0 if profile == "sis" else 17.0**2
    ours = CLOSED[profile](*one(17.0, 31.0, -44.0), 6)[0]
    for (m, s), pair in _recursion_in_x_and_y(profile, 6).items():
        theirs = strength * complex(*(float(part(31.0, -44.0, 0.5, 0.0)) for part in pair))
        # what the recursion finds to be zero is a sum of large numbers that cancel
        assert abs(complex(ours[m, s]) - theirs) <= 1e-9 * abs(theirs) + 1e-14 * float(ours[m].abs().max())


@lru_cache
def _recursion_in_z(profile: str) -> dict[tuple[int, int], tuple]:
    """The same recursion to order 50 in z = x + iy and its conjugate, where every amplitude is one monomial:
    A(m+1, s+1) = C+ 2 dbar A and A(m+1, s-1) = C- 2 d A, exact, with sympy differentiating."""
    z, w = sympy.symbols("z w")  # w is the conjugate
    half = sympy.Rational(1, 2)
    # -(psi_x + i psi_y) = -2 dbar psi
    found = {(0, 1): -2 * sympy.diff(sympy.sqrt(z) * sympy.sqrt(w) if profile == "sis" else half * sympy.log(w), w)}
    for m in range(ORDER):
        for s in range((m + 1) % 2, m + 2, 2):
            up = sympy.Rational(m + 2, m + 2 + s + 1) * (2 if s == 0 else 1)
            raised = up * 2 * sympy.diff(found[m, s], w)
            # two ways lead to most amplitudes, and must agree
            assert sympy.expand(raised - found.get((m + 1, s + 1), raised)) == 0
            found[m + 1, s + 1] = raised
            if s >= 1:
                down = sympy.Rational(m + 2, m + 2 - (s - 1)) / (2 if s == 1 else 1)
                found.setdefault((m + 1, s - 1), down * 2 * sympy.diff(found[m, s], z))
    # [coefficient, powers of z and w] of each
    return {key: (form.subs({z: 1, w: 1}), *_powers(form, z, w)) for key, form in found.items()}


def _powers(form, z, w):
    if form == 0:
        return 0, 0
    powers = form.as_powers_dict()
    return powers.get(z, 0), powers.get(w, 0)


@pytest.mark.parametrize("profile", ["sis", "pm"])
@pytest.mark.parametrize("place", [(37.0, -21.0), (-3.0, 0.5), (250.0, 130.0)])
def test_closed_amplitudes_are_the_recursion_to_order_50(profile, place):
    ours = CLOSED[profile](*one(20.0, *place), ORDER)[0]
    strength, z = (20.0 if profile == "sis" else 400.0), sympy.Float(place[0], 40) + sympy.I * sympy.Float(place[1], 40)
    table = _recursion_in_z(profile)
    assert set(table) == set(indices(ORDER))
    for (m, s), (coefficient, power, conjugate) in table.items():
        # z^a conj(z)^b = |z|^(a + b) e^(i (a - b) arg z)
        size, angle = abs(z), sympy.arg(z)
        exact = complex(
            sympy.N(
                strength * coefficient * size ** (power + conjugate) * sympy.exp(sympy.I * (power - conjugate) * angle),
                25,
            )
        )
        _close(complex(ours[m, s]), exact, 1e-9)


@pytest.mark.parametrize("place", [(37.0, -21.0), (-60.0, 5.0)])
def test_amplitudes_of_an_ellipsoid_are_the_recursion(place):
    f, p = 0.62, 0.5
    ours = sie_amplitudes(*one(20.0, *place), 2, *one(f, np.degrees(p)))[0]
    for (m, s), pair in _recursion_in_x_and_y("sie", 2).items():
        _close(complex(ours[m, s]), 20.0 * complex(*(float(part(*place, f, p)) for part in pair)), 1e-9)


def test_an_ellipsoid_that_is_nearly_round_has_the_amplitudes_of_a_sphere():
    ellipsoid = sie_amplitudes(*one(20.0, 30.0, 10.0), 20, *one(1 - 1e-9, 33.0))
    torch.testing.assert_close(ellipsoid, sis_amplitudes(*one(20.0, 30.0, 10.0), 20), rtol=1e-5, atol=1e-12)


def _table(name: str) -> list[tuple[int, int, str, str]]:
    spec = find_spec("CosmoSim")
    if spec is None:
        pytest.skip("the CosmoSim package is not installed: pip install CosmoSim==3.3.0")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        pytest.skip(f"CosmoSim {version('CosmoSim')} has no table {name}")
    lines = [line.split(":") for line in path.read_text().splitlines()]
    return [(int(m), int(s), alpha, beta) for m, s, alpha, beta in lines]


@pytest.mark.parametrize("profile", ["sis", "pm"])
@pytest.mark.parametrize("place", [(37.0, -21.0), (3.0, 40.0)])
def test_amplitudes_are_those_of_the_cosmosim_package(profile, place):
    """Version 3.3.0 to order 50. The table of 2.6.8 was rounded in between and is wrong from order 20 on."""
    last = ORDER if int(version("CosmoSim").split(".")[0]) >= 3 else 20
    ours, names = CLOSED[profile](*one(20.0, *place), ORDER)[0], {"x": place[0], "y": place[1], "g": 20.0, "sqrt": sqrt}
    for m, s, alpha, beta in _table(f"{profile}50.txt"):
        if m <= last:
            theirs = complex(eval(alpha, names), eval(beta, names))
            assert abs(complex(ours[m, s]) - theirs) <= 1e-9 * abs(theirs) + 1e-300


def test_amplitudes_of_an_ellipsoid_are_those_of_the_cosmosim_package():
    f, p = 0.6, 0.5
    ours = sie_amplitudes(*one(20.0, 37.0, -21.0), 5, *one(f, np.degrees(p)))[0]
    functions = {"sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "asin": np.arcsin, "asinh": np.arcsinh}
    names = {"x": 37.0, "y": -21.0, "g": 20.0, "f": f, "p": p} | functions
    for m, s, alpha, beta in _table("sie05.txt"):
        _close(complex(ours[m, s]), complex(eval(alpha, names), eval(beta, names)), 1e-9)


@pytest.mark.parametrize("order", [1, 2, 7, 50, 120])
@pytest.mark.parametrize("profile", ["sis", "pm"])
def test_the_fast_series_are_the_map_of_the_amplitudes(profile, order):
    b, nu = one(20.0)[0][:, None, None], [value[:, None, None] for value in one(37.0, -21.0)]
    x, y = torch.meshgrid(*[torch.linspace(-25, 25, 7, dtype=torch.float64)] * 2, indexing="xy")
    series = roulettes.sis_roulette if profile == "sis" else roulettes.pm_roulette
    fast, slow = series(b, *nu, x, y, order), roulette_map(CLOSED[profile](*one(20.0, 37.0, -21.0), order), x, y)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def _params(profile, **more):
    given = {"x": 40.0, "y": -25.0, "chi": 50.0, "einstein_radius": 12.0, "axis_ratio": 0.6, "orientation": 25.0}
    return {name: torch.tensor([value], dtype=torch.float64)[:, None] for name, value in (given | more).items()}


def _error_at(profile, share, terms, angle):
    """Differences (pixels) of the series and the exact map at every angle, on the border of the convergence region made
    `share` as large."""
    params = _params(profile)
    nu_x, nu_y = roulettes.image_position(profile, params)
    dx, dy = torch.cos(angle), torch.sin(angle)
    reach = torch.hypot(nu_x, nu_y)
    if profile == "sie":
        turn, flat = torch.deg2rad(params["orientation"]), params["axis_ratio"] ** 2

        def size(x, y):
            return (torch.cos(turn) * x + torch.sin(turn) * y) ** 2 + flat * (
                torch.cos(turn) * y - torch.sin(turn) * x
            ) ** 2

        reach = torch.minimum(reach, torch.sqrt(size(nu_x, nu_y) / size(dx, dy)))
    dx, dy = share * reach * dx, share * reach * dy
    assert roulettes.converges(profile, params, (nu_x, nu_y), nu_x + dx, nu_y + dy).all() == (share < 1)
    exact = roulettes.deflection(profile, params, nu_x + dx, nu_y + dy)
    at_nu = roulettes.deflection(profile, params, nu_x, nu_y)
    b = roulettes.ring_radius(params)[0]
    shape = (params["axis_ratio"][0], params["orientation"][0]) if profile == "sie" else ()
    make = {"sie": sie_amplitudes, **CLOSED}[profile]
    series = roulette_map(make(b, nu_x[0], nu_y[0], terms, *shape), dx[:, None], dy[:, None])
    parts = zip(series, (dx, dy), exact, at_nu, strict=True)
    return torch.stack([(map_[0] - (offset - far + near)[0]).abs()[0] for map_, offset, far, near in parts]).amax(0)


@pytest.mark.parametrize("profile", ["sis", "pm", "sie"])
def test_the_series_converges_inside_its_region_and_not_beyond(profile):
    angle = torch.linspace(0, 2 * torch.pi, 97, dtype=torch.float64)
    inside = [float(_error_at(profile, 0.8, terms, angle).max()) for terms in (20, 60, 120)]
    assert inside[0] > 10 * inside[1] > 100 * inside[2]
    assert inside[2] < 1e-6
    beyond = [float(_error_at(profile, 1.1, terms, angle).max()) for terms in (20, 60, 120)]
    assert beyond[0] < beyond[1] < beyond[2]
    assert beyond[2] > 10


def test_the_region_of_an_ellipsoid_is_smaller_than_the_disc_and_not_too_small():
    """In every direction: growth just beyond its border, none just within."""
    angles = torch.linspace(0, 2 * torch.pi, 25, dtype=torch.float64)[:-1]
    near, far = (_error_at("sie", share, 150, angles) for share in (0.93, 1.07))
    # 0.93^150 is 2e-5; 1.07^150 is 3e4
    assert near.max() < 1e-2
    assert far.min() > 1


def test_the_error_of_a_point_mass_stays_below_its_bound():
    """(b^2 / |nu|) t^(n + 1) / (1 - t): what a geometric series leaves out."""
    params = _params("pm")
    radius = float(torch.hypot(*roulettes.image_position("pm", params)))
    b, angle = float(roulettes.ring_radius(params)), torch.linspace(0, 2 * torch.pi, 181, dtype=torch.float64)
    for share, terms in ((0.25, 5), (0.5, 10), (0.75, 25), (0.9, 50)):
        error = float(_error_at("pm", share, terms, angle).max())
        bound = b**2 / radius * share ** (terms + 1) / (1 - share)
        assert 0.5 * bound < error <= bound * (1 + 1e-9)


# (terms, share of the ring's radius) -> error over b, the largest of all angles: by the tail of the Legendre series
@pytest.mark.parametrize(("terms", "share"), [(5, 0.25), (10, 0.5), (16, 0.75), (50, 0.9)])
def test_the_error_of_a_sphere_is_the_tail_of_its_legendre_series(terms, share):
    from scipy.special import eval_legendre

    angle = torch.linspace(0, 2 * torch.pi, 361, dtype=torch.float64)
    u = share * np.exp(1j * angle.numpy())
    m = np.arange(terms + 1, 1200)[:, None]
    legendre = share**m * eval_legendre(m, -np.cos(angle.numpy()))
    before = share ** (m - 1) * eval_legendre(m - 1, -np.cos(angle.numpy()))
    tail = legendre.sum(0) + u * before.sum(0)
    params = _params("sis")
    nu_x, nu_y = roulettes.image_position("sis", params)
    turn = (nu_x + 1j * nu_y).numpy().ravel()[0]
    expected = max(np.abs((tail * turn / abs(turn)).real).max(), np.abs((tail * turn / abs(turn)).imag).max())
    error = float(_error_at("sis", share, terms, angle + float(np.angle(turn))).max())
    assert error / float(roulettes.ring_radius(params)) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    profile=st.sampled_from(["sis", "pm", "sie"]),
    radius=st.floats(5, 200),
    phi=st.floats(0, 360),
    chi=st.floats(20, 100),
    einstein_radius=st.floats(1, 50),
)
def test_the_image_position_solves_the_lens_equation(profile, radius, phi, chi, einstein_radius):
    x, y = radius * np.cos(np.radians(phi)), radius * np.sin(np.radians(phi))
    # an elliptical lens has a caustic, near which iteration is slow
    if profile == "sie":
        einstein_radius = min(einstein_radius, 0.5 * radius * chi / 100)
    params = _params(profile, x=x, y=y, chi=chi, einstein_radius=einstein_radius)
    nu = roulettes.image_position(profile, params)
    pull = roulettes.deflection(profile, params, *nu)
    for position, deflected, source in zip(nu, pull, ("x", "y"), strict=True):
        torch.testing.assert_close(position - deflected, params[source], rtol=0, atol=1e-6 * (radius + 500))


def test_maps_are_differentiable():
    x, y = one(9.0)[0][:, None, None], one(4.0)[0][:, None, None]

    def image(b, nu_x, nu_y):
        planes = [value[:, None, None] for value in (b, nu_x, nu_y)]
        return torch.stack([*roulettes.sis_roulette(*planes, x, y, 12), *roulettes.pm_roulette(*planes, x, y, 12)])

    def ellipsoid(radius, nu_x, nu_y, f, p):
        return torch.stack(roulette_map(sie_amplitudes(radius, nu_x, nu_y, 6, f, p), x, y))

    for function, values in ((image, (20.0, 37.0, -21.0)), (ellipsoid, (20.0, 37.0, -21.0, 0.6, 30.0))):
        inputs = [value.requires_grad_() for value in one(*values)]
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)


@pytest.mark.parametrize("order", [171, -1, 2.5, True])
def test_an_order_that_double_precision_does_not_hold_is_refused(order):
    with pytest.raises(InputError, match="order"):
        sis_amplitudes(*one(20.0, 37.0, -21.0), order)


def test_the_highest_order_is_a_number_and_too_large_an_amplitude_is_refused():
    highest = pm_amplitudes(*one(20.0, 37.0, -21.0), MAX_ORDER)
    assert torch.isfinite(torch.view_as_real(highest)).all()
    x, y = (torch.tensor([[value]], dtype=torch.float64) for value in (8.0, 5.0))
    by_series = pm_roulette(*one(20.0, 37.0, -21.0), x, y, MAX_ORDER)
    torch.testing.assert_close([part[0] for part in roulette_map(highest, x, y)], list(by_series))
    with pytest.raises(InputError, match="from 0 to 169"):
        pm_amplitudes(*one(20.0, 37.0, -21.0), MAX_ORDER + 1)
    with pytest.raises(InputError, match="larger than double precision holds"):
        pm_amplitudes(*one(20.0, 0.01, 0.0), MAX_ORDER)


@pytest.mark.parametrize("axis_ratio", [0.1, 0.15, 0.2, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("from_axis", [0.0, 20.0, 45.0])
def test_an_ellipsoids_map_is_right_to_the_order_that_is_allowed(axis_ratio, from_axis):
    """Halfway to the lens, against rays that are followed, whatever the direction of the image."""
    radius, orientation, flat = 60.0, 40.0, torch.tensor([axis_ratio], dtype=torch.float64)
    along = np.deg2rad(orientation + 90 - from_axis)
    place = [radius * wave for wave in (np.cos(along), np.sin(along))]
    turn = torch.tensor([orientation], dtype=torch.float64)
    for order in range(MAX_ORDER, 4, -5):
        try:
            amplitudes = sie_amplitudes(*one(20.0, *place), order, flat, turn)
            break
        except InputError:
            continue
    else:
        pytest.fail("no order is allowed")
    angle = torch.arange(0, 2 * np.pi, 0.1, dtype=torch.float64)[None, :]
    # within half of the region where it converges, and half of the way to the lens
    cos, sin = torch.cos(angle - np.deg2rad(orientation)), torch.sin(angle - np.deg2rad(orientation))
    nu = radius * np.cos(along - np.deg2rad(orientation)), radius * np.sin(along - np.deg2rad(orientation))
    reach = torch.sqrt((nu[0] ** 2 + axis_ratio**2 * nu[1] ** 2) / (cos**2 + axis_ratio**2 * sin**2))
    reach = reach.clamp(max=radius) / 2
    x, y = reach * torch.cos(angle), reach * torch.sin(angle)
    at_x, at_y = roulette_map(amplitudes, x, y)
    far = sie_deflection(torch.tensor(20.0).double(), x + place[0], y + place[1], flat, turn)
    near = sie_deflection(*one(20.0, *place), flat, turn)
    left_out = 20.0 * 0.5**order * order
    assert float((at_x[0] - (x - far[0] + near[0])).abs().max()) < 0.1 + left_out
    assert float((at_y[0] - (y - far[1] + near[1])).abs().max()) < 0.1 + left_out


@pytest.mark.parametrize("axis_ratio", [0.0, 1.0, 1.5, -1.0, float("nan")])
def test_an_axis_ratio_that_is_none_is_refused(axis_ratio):
    with pytest.raises(InputError, match="between 0 and 1"):
        sie_amplitudes(*one(20.0, 30.0, 10.0), 5, *one(axis_ratio, 20.0))


@pytest.mark.parametrize("series", [sis_roulette, pm_roulette])
@pytest.mark.parametrize("terms", [0, -3, 2.5])
def test_a_series_has_a_term(series, terms):
    with pytest.raises(InputError, match="term|order"):
        series(*one(20.0, 30.0, 10.0), *one(1.0, 1.0), terms)


def test_there_is_nothing_to_expand_about_at_the_centre():
    for amplitudes in CLOSED.values():
        with pytest.raises(InputError, match="centre of the lens"):
            amplitudes(*one(20.0, 0.0, 0.0), 3)
