"""Masses: the cosmology that turns them into angles, the mass functions, and their conservation."""

from functools import partial

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy import stats
from scipy.integrate import quad
from torch import as_tensor

from lenslib.cosmology import Cosmology
from lenslib.optics import substructure_deflection
from lenslib.recipe import _stream, load_recipe
from lenslib.simulate import as_points
from lenslib.substructure import PowerLaw, Subhalos, concentration, tracers

# 4 G M_sun / c^2 in km (twice the Schwarzschild radius; IAU nominal values) and the parsec in km
FOUR_GM_SUN = 4 * 1.32712440018e11 / 299792.458**2
MPC = 3.0856775814913673e19
ARCSEC = np.pi / 180 / 3600


def _comoving(z, H0=70.0, Om0=0.3, radiation=0.0):
    """Comoving distance in Mpc in a flat universe."""
    expansion = lambda z: np.sqrt(Om0 * (1 + z) ** 3 + radiation * (1 + z) ** 4 + 1 - Om0 - radiation)  # noqa: E731
    return 299792.458 / H0 * quad(lambda z: 1 / expansion(z), 0, z)[0]


@pytest.mark.parametrize(
    ("distances", "published"),
    [
        # DeepLenseSim deeplense/lens.py, mass_to_radius(1e12), run as published
        ("luminosity", 1.2815),
        ("angular_diameter", 1.6645),
    ],
)
def test_einstein_radius_of_a_mass(distances, published):
    near, far = _comoving(0.5), _comoving(1.0)
    if distances == "luminosity":
        lens, source = 1.5 * near, 2 * far
        between = source - lens
    else:
        lens, source, between = near / 1.5, far / 2, (far - near) / 2
    expected = np.sqrt(1e12 * FOUR_GM_SUN * between / (lens * source) / MPC) / ARCSEC
    cosmology = Cosmology(z_lens=0.5, z_source=1.0, distances=distances)
    theta_E = np.sqrt(cosmology.theta_E_squared(1e12))
    assert theta_E == pytest.approx(expected, rel=1e-4)
    assert theta_E == pytest.approx(published, abs=1e-3)


def test_deeplense_1_has_the_published_einstein_radius():
    _, params, _ = load_recipe("deeplense_1").draw(0, 0)
    np.testing.assert_allclose(params["theta_E"], 1.2815, atol=1e-3)


def test_squared_einstein_radius_is_proportional_to_mass():
    cosmology = Cosmology(z_lens=0.2, z_source=0.6)
    one = cosmology.theta_E_squared(1e10)
    np.testing.assert_allclose(cosmology.theta_E_squared(np.array([0, 1e8, 3e11])), one * np.array([0, 0.01, 30]))


def _population(recipe, name, n=400, fraction=None, theta_E=None):
    fraction = np.full(n, np.nan) if fraction is None else fraction
    theta_E = np.ones(n) if theta_E is None else theta_E
    population = recipe.substructure.populations[name]
    points, drawn = population.draw(partial(_stream, 7, 0), n, recipe.cosmology, theta_E, fraction)
    return points["x"], points["y"], points["mass"], drawn


@pytest.mark.parametrize("slope", [-0.9, -1.9])
def test_subhalo_masses_follow_the_stated_slope(slope):
    recipe = load_recipe("deeplense_1", {"substructure.populations.cdm.mass.slope": slope})
    *_, mass, _ = _population(recipe, "cdm")
    mass = mass.ravel() / recipe.cosmology.theta_E_squared(1.0)
    assert mass.min() >= 1e6 * (1 - 1e-9)
    assert mass.max() <= 1e10 * (1 + 1e-9)

    def cdf(m):
        # the integral of m^slope
        power = slope + 1
        return (m**power - 1e6**power) / (1e10**power - 1e6**power)

    assert stats.kstest(mass, cdf).pvalue > 1e-3


def test_power_law_median_halves_the_integral():
    median = float(PowerLaw(slope=-1.9, low=1e6, high=1e10).draw(np.array(0.5), 1e6, 1e10))
    # in ln m, so that the integrand is tame
    below, above = (quad(lambda u: np.exp(-0.9 * u), *np.log(ends))[0] for ends in ((1e6, median), (median, 1e10)))
    assert below == pytest.approx(above, rel=1e-6)


def test_subhalo_positions_are_those_of_the_recipe():
    x, y, _, _ = _population(load_recipe("deeplense_1"), "cdm")
    assert stats.kstest(np.hypot(x, y).ravel(), stats.uniform(0.25, 1.75).cdf).pvalue > 1e-3
    x, y, _, _ = _population(load_recipe("matched_hst"), "cdm", fraction=np.full(400, 0.01))
    # spread evenly over a disc of radius 2
    assert stats.kstest((np.hypot(x, y).ravel() / 2) ** 2, stats.uniform.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["cdm", "vortex"])
def test_fractional_masses_sum_to_the_fraction(name):
    rng = np.random.default_rng(0)
    fraction, theta_E = rng.uniform(0.001, 0.05, 400), rng.uniform(0.5, 2, 400)
    *_, mass, _ = _population(load_recipe("matched_hst"), name, fraction=fraction, theta_E=theta_E)
    np.testing.assert_allclose(mass.sum(1), fraction * theta_E**2, rtol=1e-12)
    assert mass.min() >= 0


def test_fractional_subhalo_masses_keep_their_bounds():
    fraction = np.linspace(0.003, 0.03, 400)
    *_, mass, _ = _population(load_recipe("matched_hst"), "cdm", fraction=fraction)
    assert (mass.max(1) <= 0.5 * fraction * (1 + 1e-9)).all()
    for row in mass:
        held = row[row > 1e-15]
        # the last one is cut to fit
        assert held[:-1].min() >= 1e-4 * (1 - 1e-9)


def test_a_vortex_is_a_straight_string_of_equal_masses():
    recipe = load_recipe("deeplense_1")
    x, y, mass, drawn = _population(recipe, "vortex")
    np.testing.assert_allclose(mass, recipe.cosmology.theta_E_squared(3e10) / 100)
    # half-length 0.06 arcsec x 1e-22 / (2 m)
    np.testing.assert_allclose(np.hypot(x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]), 0.06 * 1e-22 / drawn["axion_mass"])
    along = x * np.cos(drawn["vortex_angle"])[:, None] + y * np.sin(drawn["vortex_angle"])[:, None]
    across = y * np.cos(drawn["vortex_angle"])[:, None] - x * np.sin(drawn["vortex_angle"])[:, None]
    np.testing.assert_allclose(across, 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(along, axis=1), (drawn["vortex_length"] / 99)[:, None] * np.ones(99))


def _contour(params, i, count=4000):
    """Points [count] on the isodensity ellipse that holds theta_E^2, and its outward line elements."""
    e = np.hypot(params["lens_e1"][i], params["lens_e2"][i])
    q, phi = (1 - e) / (1 + e), np.arctan2(params["lens_e2"][i], params["lens_e1"][i]) / 2
    angle = (np.arange(count) + 0.5) * 2 * np.pi / count
    z = params["theta_E"][i] * (np.cos(angle) / np.sqrt(q) + 1j * np.sin(angle) * np.sqrt(q)) * np.exp(1j * phi)
    tangent = np.roll(z, -1) - np.roll(z, 1)
    outward = -0.5j * tangent
    return z.real + params["lens_center_x"][i], z.imag + params["lens_center_y"][i], outward


def _within_theta_E(params, i, points):
    """Mass in units of pi arcsec^2 inside that ellipse, by Gauss's law: the flux of the deflection through it."""
    x, y, outward = _contour(params, i)
    values = (params["lens_e1"], params["lens_e2"], params["lens_theta_E"], params["gamma"])
    e1, e2, theta_E, gamma = (float(value[i]) for value in values)
    from lenstronomy.LensModel.Profiles.epl import EPL

    centre = {"center_x": params["lens_center_x"][i], "center_y": params["lens_center_y"][i]}
    alpha = EPL().derivatives(x, y, theta_E=theta_E, gamma=gamma, e1=e1, e2=e2, **centre)
    alpha = alpha[0] + 1j * alpha[1]
    if points is not None:
        pieces = as_points(points, lambda value: as_tensor(np.asarray(value)[None]))
        more = substructure_deflection(pieces, as_tensor(x)[None], as_tensor(y)[None])
        alpha = alpha + more[0].numpy().ravel() + 1j * more[1].numpy().ravel()
    return (alpha * outward.conj()).real.sum() / (2 * np.pi)


EXTENDED = {
    "point": {},
    "pseudo_jaffe": {"substructure.populations.cdm.profile": "pseudo_jaffe"},
    "tnfw": {"substructure.populations.cdm.profile": "tnfw", "substructure.populations.cdm.truncation": 4.0},
}


@pytest.mark.parametrize(
    ("name", "profile"),
    [("no_sub", "point"), ("cdm", "point"), ("cdm", "pseudo_jaffe"), ("cdm", "tnfw"), ("vortex", "point")],
)
def test_no_class_of_matched_hst_is_heavier(name, profile):
    recipe = load_recipe("matched_hst", {"substructure.mass_fraction": 0.03} | EXTENDED[profile])
    labels, params, points = recipe.draw(2, 0)
    mine = np.flatnonzero(labels == recipe.classes.index(name))
    shares = []
    for k, i in enumerate(mine):
        inside = {key: value[k] for key, value in points[name].items()} if name in points else None
        shares.append(_within_theta_E(params, i, inside) / params["theta_E"][i] ** 2)
    # a point mass nearer the contour than its steps is counted by half: a few of the 32 lenses have one
    np.testing.assert_allclose(np.median(shares), 1, atol=2e-4)
    assert np.mean(np.abs(np.array(shares) - 1) < 1e-3) >= (0.8 if profile == "point" else 1)
    if name == "vortex":
        # the law above would hold for no substructure, too
        assert (params["lens_theta_E"][mine] < params["theta_E"][mine]).mean() > 0.9


@pytest.mark.parametrize("profile", ["pseudo_jaffe", "tnfw"])
def test_tracers_hold_the_mass_that_the_deflection_says(profile):
    recipe = load_recipe("matched_hst", {"substructure.mass_fraction": 0.02} | EXTENDED[profile])
    points = recipe.draw(1, 0)[2]["cdm"]
    heaviest = {key: value[:1, [points["mass"][0].argmax()]] for key, value in points.items()}
    x, y, mass = tracers(heaviest)
    radius = np.hypot(x - heaviest["x"], y - heaviest["y"]).ravel()
    for within in (0.3, 1.0, 3.0) * heaviest["Rs"].ravel():
        alpha, _ = substructure_deflection(
            as_points(heaviest, as_tensor), as_tensor(heaviest["x"] + within), as_tensor(heaviest["y"])
        )
        # a round profile deflects by the mass within
        held = float(alpha.ravel()[0]) * within / heaviest["mass"].item()
        assert mass.ravel()[radius < within].sum() / heaviest["mass"].item() == pytest.approx(held, abs=1 / 32)


def test_a_subhalo_far_away_is_a_point_mass():
    for profile, overrides in EXTENDED.items():
        recipe = load_recipe("matched_hst", {"substructure.mass_fraction": 0.02} | overrides)
        points = as_points({key: value[:1] for key, value in recipe.draw(1, 0)[2]["cdm"].items()}, as_tensor)
        alpha, _ = substructure_deflection(points, as_tensor([[3e4]]).double(), as_tensor([[0.0]]).double())
        expected = float((points["theta_E"] ** 2).sum()) / 3e4
        assert float(alpha.ravel()[0]) == pytest.approx(expected, rel=1e-3), profile


def test_scale_radii_are_those_of_the_stated_relations():
    recipe = load_recipe("matched_hst", {"substructure.mass_fraction": 0.02} | EXTENDED["pseudo_jaffe"])
    _, params, points = recipe.draw(1, 0)
    cdm = points["cdm"]
    theta_E = params["theta_E"][recipe.draw(1, 0)[0] == 1]
    there = cdm["mass"] > 1e-9
    np.testing.assert_allclose(cdm["Rs"][there], ((cdm["mass"] * theta_E[:, None]) ** (1 / 3))[there])
    # a halo of 1e12 / h solar masses at redshift 0 has 10^0.905 (Dutton & Maccio 2014, table 3: log c = 0.905 at z = 0)
    near = Cosmology(z_lens=1e-9, z_source=1.0)
    assert concentration(1e12 / 0.7, near) == pytest.approx(10**0.905, rel=1e-6)
    # 200 critical densities in a sphere: M = 100 H^2 r^3 / G
    kpc = near.r200(1e12) / near.kpc
    hubble, G = 0.07, 4.30091e-6  # km/s/kpc, and kpc (km/s)^2 / M_sun
    assert 100 * hubble**2 * kpc**3 / G == pytest.approx(1e12, rel=1e-3)


def test_fuzzy_dark_matter_lowers_the_number_of_light_subhalos():
    mass = {"low": 1e8, "high": 1e10, "slope": -1.9}
    given = {"kind": "subhalos", "count": 200, "position": {"x": 0.0, "y": 0.0}}
    plain, fuzzy = (Subhalos(**given, mass=mass | more) for more in ({}, {"suppression": 7.4e8}))
    cosmology, n = Cosmology(z_lens=0.5, z_source=1.0), 500
    draw = lambda population: population.draw(partial(_stream, 1, 0), n, cosmology, np.ones(n), np.ones(n))[0]["mass"]  # noqa: E731
    before, after = draw(plain), draw(fuzzy)
    kept = after > 0
    np.testing.assert_array_equal(after[kept], before[kept])
    # half of (1 + 1)^-2.2 at the suppression mass: compare a narrow band with the formula
    solar = before / cosmology.theta_E_squared(1.0)
    for low, high in ((1e8, 1.1e8), (7e8, 8e8), (8e9, 1e10)):
        band = (solar > low) & (solar < high)
        expected = (1 + (np.sqrt(low * high) / 7.4e8) ** -1.1) ** -2.2
        assert kept[band].mean() == pytest.approx(expected, abs=5 * np.sqrt(0.25 / band.sum()) + 0.02)


def test_a_string_is_as_long_as_a_de_broglie_wave():
    from astropy import constants, units

    vortex = {"kind": "vortex", "axion_mass": 1e-22, "length_from": "de_broglie", "velocity": 200.0}
    vortex |= {"center": {"x": 0.0, "y": 0.0}, "angle": 0.0}
    recipe = load_recipe("matched_hst", {"substructure.populations.vortex": vortex})
    length = recipe.draw(0, 0)[2]["vortex"]["length"]
    wave = constants.h * constants.c**2 / (1e-22 * units.eV * 200 * units.km / units.s)
    model = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
    np.testing.assert_allclose(length, (wave * model.arcsec_per_kpc_proper(0.2)).to_value("arcsec"), rtol=1e-6)


class OldCosmology(FlatLambdaCDM):
    """Between two redshifts, as lenstronomy 1.14 asks for it and astropy 7.2 does not."""

    def angular_diameter_distance(self, z, z2=None):
        return super().angular_diameter_distance(z) if z2 is None else self.angular_diameter_distance_z1z2(z, z2)


def test_angles_of_another_source_convention_are_lenstronomys():
    from lenstronomy.LensModel.lens_model import LensModel

    cosmology = Cosmology(Ob0=0.05, z_lens=0.5, z_source=1.0, z_source_convention=2.5)
    keywords = [{"theta_E": 1.28, "e1": 0.1, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}]
    x, y = np.linspace(-2, 2, 9), np.linspace(0.3, 1.1, 9)
    planes = LensModel(
        ["SIE"],
        multi_plane=True,
        lens_redshift_list=[0.5],
        z_source=1.0,
        z_source_convention=2.5,
        cosmo=OldCosmology(H0=70, Om0=0.3, Ob0=0.05),
    ).alpha(x, y, keywords)
    plane = LensModel(["SIE"]).alpha(x, y, keywords)
    np.testing.assert_allclose(planes, cosmology.deflection_scale * np.array(plane), rtol=1e-6)
    assert Cosmology(z_lens=0.5, z_source=1.0).deflection_scale == 1


@pytest.mark.parametrize("mass", [{"equal": True}, {"low": 1e6, "high": 1e10, "slope": -1.9}])
def test_a_poisson_number_of_subhalos(mass):
    population = Subhalos(
        kind="subhalos", count=25, poisson=True, mass=mass, position={"radius": {"uniform": [0, 1]}, "angle": 0.0}
    )
    streams = {}
    stream = lambda name: streams.setdefault(name, np.random.default_rng(len(streams)))  # noqa: E731
    cosmology = Cosmology(z_lens=0.5, z_source=1.0)
    held = population.draw(stream, 4000, cosmology, np.full(4000, 1.2), np.full(4000, 0.01))[0]["mass"]
    number = (held > 0).sum(1)
    assert number.mean() == pytest.approx(25, abs=5 * 5 / np.sqrt(4000))
    assert number.var() == pytest.approx(25, rel=5 * np.sqrt(2 / 4000))
    if "equal" in mass:
        np.testing.assert_allclose(held.sum(1), 0.01 * 1.2**2)
        assert all(len(np.unique(row[row > 0])) == 1 for row in held)


@pytest.mark.parametrize("name", ["unsupervised_a", "unsupervised_b"])
def test_total_mass_is_that_of_the_recipe(name):
    recipe = load_recipe(name)
    _, params, points = recipe.draw(3, 0)
    labels = recipe.draw(3, 0)[0]
    for label, population in enumerate(recipe.classes):
        mine = labels == label
        held = points[population]["mass"].sum(1) if population in points else 0
        np.testing.assert_allclose(params["lens_theta_E"][mine] ** 2 + held, params["theta_E"][mine] ** 2)
