"""Deflections against two other codes, and the symmetries that any lens obeys."""

import numpy as np
import pytest
import torch
from caustics.lenses import func
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from lenslib.optics import (
    companion_deflection,
    macro_deflection,
    pixel_grid,
    point_mass_deflection,
    string_deflection,
    substructure_deflection,
)
from lenslib.recipe import load_recipe
from lenslib.simulate import render
from lenslib.sources import sersic

SCENES = 12


@pytest.fixture
def scenes():
    """Random smooth lenses and sources, float64 [12]; axis ratios from 0.4 to 1."""
    rng = np.random.default_rng(11)
    q, angle = rng.uniform(0.4, 1, (2, SCENES)), rng.uniform(0, np.pi, (2, SCENES))
    e = (1 - q) / (1 + q)
    drawn = {
        "lens_theta_E": rng.uniform(0.6, 1.8, SCENES),
        "gamma": rng.uniform(1.5, 2.7, SCENES),
        "lens_e1": e[0] * np.cos(2 * angle[0]),
        "lens_e2": e[0] * np.sin(2 * angle[0]),
        "lens_center_x": rng.normal(0, 0.1, SCENES),
        "lens_center_y": rng.normal(0, 0.1, SCENES),
        "gamma1": rng.normal(0, 0.05, SCENES),
        "gamma2": rng.normal(0, 0.05, SCENES),
        "amp": rng.uniform(1, 20, SCENES),
        "R_sersic": rng.uniform(0.1, 0.4, SCENES),
        "n_sersic": rng.uniform(0.8, 4, SCENES),
        "source_e1": e[1] * np.cos(2 * angle[1]),
        "source_e2": e[1] * np.sin(2 * angle[1]),
        "source_center_x": rng.normal(0, 0.2, SCENES),
        "source_center_y": rng.normal(0, 0.2, SCENES),
    }
    return {name: torch.as_tensor(value) for name, value in drawn.items()}


@pytest.fixture
def grid():
    return pixel_grid(40, 0.13, dtype=torch.float64)


def _lenstronomy_deflection(params, i, x, y, profile):
    lens = {"theta_E": params["lens_theta_E"][i]}
    lens |= {name: params[f"lens_{name}"][i] for name in ("e1", "e2", "center_x", "center_y")}
    if profile == "epl":
        lens["gamma"] = params["gamma"][i]
    shear = {name: params[name][i] for name in ("gamma1", "gamma2")}
    words = [{name: float(value) for name, value in part.items()} for part in (lens, shear)]
    alpha = LensModel([profile.upper(), "SHEAR"]).alpha(x.numpy().ravel(), y.numpy().ravel(), words)
    return np.reshape(alpha, (2, *x.shape))


@pytest.mark.parametrize("profile", ["sie", "epl"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_smooth_deflection_is_lenstronomys(scenes, grid, profile, dtype):
    ours = torch.stack(
        macro_deflection({k: v.to(dtype) for k, v in scenes.items()}, *(axis.to(dtype) for axis in grid), profile)
    )
    for i in range(SCENES):
        np.testing.assert_allclose(ours[:, i], _lenstronomy_deflection(scenes, i, *grid, profile), atol=1e-4)


def test_power_law_deflection_is_caustics(scenes, grid):
    scenes |= {"gamma1": torch.zeros(SCENES), "gamma2": torch.zeros(SCENES)}
    ours = macro_deflection(scenes, *grid, "epl")
    e = torch.hypot(scenes["lens_e1"], scenes["lens_e2"])
    q, phi = (1 - e) / (1 + e), torch.atan2(scenes["lens_e2"], scenes["lens_e1"]) / 2
    for i in range(SCENES):
        lens = [scenes["lens_center_x"], scenes["lens_center_y"], q, phi, scenes["lens_theta_E"], scenes["gamma"] - 1]
        theirs = func.reduced_deflection_angle_epl(*(value[i] for value in lens), *grid, n_iter=60)
        np.testing.assert_allclose(ours[0][i], theirs[0], atol=1e-4)
        np.testing.assert_allclose(ours[1][i], theirs[1], atol=1e-4)


def test_a_power_law_of_slope_2_is_isothermal(scenes, grid):
    scenes["gamma"] = torch.full((SCENES,), 2.0, dtype=torch.float64)
    for ours, isothermal in zip(
        macro_deflection(scenes, *grid, "epl"), macro_deflection(scenes, *grid, "sie"), strict=True
    ):
        np.testing.assert_allclose(ours, isothermal, atol=1e-4)


def test_point_masses_add_up_to_lenstronomys(grid):
    rng = np.random.default_rng(4)
    x0, y0, theta_E = rng.normal(0, 1, (2, 5)), rng.normal(0, 1, (2, 5)), rng.uniform(0.01, 0.3, (2, 5))
    ours = torch.stack(point_mass_deflection(*map(torch.as_tensor, (x0, y0, theta_E)), *grid))
    for i in range(2):
        words = [{"center_x": x, "center_y": y, "theta_E": t} for x, y, t in zip(x0[i], y0[i], theta_E[i], strict=True)]
        theirs = LensModel(["POINT_MASS"] * 5).alpha(*(axis.numpy().ravel() for axis in grid), words)
        np.testing.assert_allclose(ours[:, i], np.reshape(theirs, (2, 40, 40)), atol=1e-7)


def test_a_point_mass_on_a_pixel_deflects_nothing_there_and_stays_finite():
    x, y = pixel_grid(5, 0.5)
    alpha = torch.stack(point_mass_deflection(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), x, y))
    assert torch.isfinite(alpha).all()
    assert (alpha[:, 0, 2, 2] == 0).all()


def test_sersic_is_lenstronomys(scenes, grid):
    ours = sersic(scenes, *(axis.expand(SCENES, -1, -1) for axis in grid))
    for i in range(SCENES):
        words = {name: float(scenes[name][i]) for name in ("amp", "R_sersic", "n_sersic")}
        words |= {name: float(scenes[f"source_{name}"][i]) for name in ("e1", "e2", "center_x", "center_y")}
        model = LightModel(["SERSIC_ELLIPSE"])
        theirs = model.surface_brightness(*(axis.numpy().ravel() for axis in grid), [words]).reshape(40, 40)
        np.testing.assert_allclose(ours[i], theirs, atol=1e-3 * theirs.max())


@pytest.fixture(params=["deeplense_1", "matched_hst"])
def recipe(request):
    return load_recipe(request.param, {"instrument.pixels": 60})


def _points(k=8):
    rng = np.random.default_rng(2)
    drawn = {"x": rng.normal(0, 1, (SCENES, k)), "y": rng.normal(0, 1, (SCENES, k))}
    return {name: torch.as_tensor(v) for name, v in drawn.items()} | {
        "theta_E": torch.full((SCENES, k), 0.05, dtype=torch.float64)
    }


def test_without_mass_the_image_is_the_source(recipe, scenes):
    for name in ("lens_theta_E", "gamma1", "gamma2"):
        scenes[name] = torch.zeros(SCENES, dtype=torch.float64)
    points = _points() | {"theta_E": torch.zeros(SCENES, 8, dtype=torch.float64)}
    instrument = recipe.instrument
    x, y = pixel_grid(60, instrument.pixel_scale, dtype=torch.float64)
    source = sersic(scenes, x.expand(SCENES, -1, -1), y.expand(SCENES, -1, -1)) * instrument.pixel_scale**2
    # a direct sum over the kernel of each pixel is the law; the border differs by what lies outside
    kernel = torch.as_tensor(instrument.psf.kernel(instrument.pixel_scale))
    blurred = torch.nn.functional.conv2d(source[:, None], kernel[None, None])[:, 0]
    half = len(kernel) // 2
    image = render(recipe, scenes, points)[:, 0, half : 60 - half, half : 60 - half]
    torch.testing.assert_close(image, blurred, rtol=1e-6, atol=1e-9)


def test_turning_the_scene_turns_the_image(recipe, scenes):
    turned = dict(scenes)
    for name in ("lens_e1", "lens_e2", "gamma1", "gamma2", "source_e1", "source_e2"):
        turned[name] = -scenes[name]
    for part in ("lens", "source"):
        x, y = scenes[f"{part}_center_x"], scenes[f"{part}_center_y"]
        turned |= {f"{part}_center_x": -y, f"{part}_center_y": x}
    points = _points()
    images = render(recipe, scenes, points)
    after = render(recipe, turned, points | {"x": -points["y"], "y": points["x"]})
    # (x, y) goes to (-y, x): rows are y and columns x, so the array turns from its first axis to its second
    torch.testing.assert_close(after, images.rot90(-1, (2, 3)), rtol=1e-6, atol=1e-9 * float(images.max()))


def test_lensing_conserves_surface_brightness(recipe, scenes):
    """No pixel of the unblurred, lensed image is brighter than the source's centre."""
    x, y = pixel_grid(60, 0.05, dtype=torch.float64)
    alpha = macro_deflection(scenes, x, y, "epl")
    lensed = sersic(scenes, x - alpha[0], y - alpha[1])
    center = torch.stack([scenes["source_center_x"], scenes["source_center_y"]])[:, :, None, None]
    assert (lensed <= sersic(scenes, *center) * (1 + 1e-9)).all()


def test_rendering_is_differentiable(recipe, scenes):
    scenes["lens_theta_E"].requires_grad_()
    image = render(recipe, scenes, _points())
    image[:, 0, 20, 25].sum().backward()
    gradient, step = scenes["lens_theta_E"].grad, 1e-6
    with torch.no_grad():
        ahead, behind = (
            render(recipe, scenes | {"lens_theta_E": scenes["lens_theta_E"] + s}, _points())[:, 0, 20, 25]
            for s in (step, -step)
        )
    difference = (ahead - behind) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=1e-3, atol=1e-4 * float(difference.abs().max()))


def _strings():
    """Middles, Einstein radii, lengths and angles of two strings a lens, float64 [12, 2]."""
    rng = np.random.default_rng(5)
    columns = rng.normal(0, 0.5, (2, SCENES, 2)), rng.uniform(0.05, 0.3, (1, SCENES, 2))
    columns += rng.uniform(0.02, 2.5, (1, SCENES, 2)), rng.uniform(-4, 4, (1, SCENES, 2))
    return dict(zip(("x", "y", "theta_E", "length", "angle"), torch.as_tensor(np.concatenate(columns)), strict=True))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_a_string_is_the_integral_of_point_masses_along_it(dtype, near):
    strings = _strings()
    x, y = torch.tensor([[1.3, -0.4, 0.02]]), torch.tensor([[0.2, -0.9, 0.3]])
    ours = string_deflection(*(value.to(dtype) for value in strings.values()), x.to(dtype), y.to(dtype))
    nodes, weights = np.polynomial.legendre.leggauss(4000)
    for i in range(SCENES):
        expected = 0
        for k in range(2):
            middle, theta_E, length, angle = (
                complex(strings["x"][i, k], strings["y"][i, k]),
                *(float(strings[name][i, k]) for name in ("theta_E", "length", "angle")),
            )
            line = middle + nodes * length / 2 * np.exp(1j * angle)
            z = (x.double() + 1j * y.double()).numpy()[0]
            # a point mass deflects by theta_E^2 / conj(z - w)
            expected = expected + theta_E**2 * (weights / 2 / (z[:, None] - line).conj()).sum(1)
        np.testing.assert_allclose(ours[0][i, 0].numpy() + 1j * ours[1][i, 0].numpy(), expected, atol=near)


def test_a_string_of_no_length_is_a_point_mass(grid):
    strings = _strings() | {"length": torch.full((SCENES, 2), 1e-9, dtype=torch.float64)}
    far = (grid[0] ** 2 + grid[1] ** 2) > 4
    points = {name: strings[name] for name in ("x", "y", "theta_E")}
    for line, point in zip(
        substructure_deflection(strings, *grid), substructure_deflection(points, *grid), strict=True
    ):
        torch.testing.assert_close(line[:, far], point[:, far], rtol=1e-6, atol=1e-9)


def test_a_string_through_a_pixel_is_finite():
    x, y = torch.tensor([[0.0, 0.5, -0.5, 0.25]]), torch.zeros(1, 4)
    one = torch.ones(1, 1)
    for alpha in string_deflection(0 * one, 0 * one, 0.1 * one, one, 0 * one, x, y):
        assert alpha.isfinite().all()


def test_companions_are_lenstronomys(grid):
    rng = np.random.default_rng(3)
    params, words = {}, []
    for k in range(3):
        one = dict(zip(("theta_E", "center_x", "center_y", "e1", "e2"), rng.uniform(0.1, 0.3, 5), strict=True))
        params |= {f"member_{k}_{name}": torch.tensor([value]) for name, value in one.items()}
        words.append(one)
    ours = np.array([alpha[0].numpy() for alpha in companion_deflection(params, "member", 3, *grid)])
    x, y = (axis.numpy().ravel() for axis in grid)
    np.testing.assert_allclose(ours.reshape(2, -1), LensModel(["SIE"] * 3).alpha(x, y, words), atol=1e-4)
    points = {name: value for name, value in params.items() if not name.endswith(("e1", "e2"))}
    words = [{name: one[name] for name in ("theta_E", "center_x", "center_y")} for one in words]
    ours = np.array([alpha[0].numpy() for alpha in companion_deflection(points, "member", 3, *grid)])
    np.testing.assert_allclose(ours.reshape(2, -1), LensModel(["POINT_MASS"] * 3).alpha(x, y, words), atol=1e-6)
