"""What leaves an image of a lens exactly as it was, over the whole range of parameters, and what does not."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lenslib import roulettes
from lenslib.recipe import load_recipe

NAMES = ["roulette_sis", "roulette_pm", "raytrace_sis", "raytrace_pm", "raytrace_sie"]
# as the thesis draws them, and wider
SCENES = st.fixed_dictionaries(
    {
        "x": st.floats(-200, 200),
        "y": st.floats(-200, 200),
        "chi": st.integers(1, 100).map(float),
        "einstein_radius": st.integers(1, 50).map(float),
        "sigma1": st.floats(1, 60),
        "sigma2": st.floats(1, 60),
        "theta": st.integers(0, 359).map(float),
        "axis_ratio": st.floats(0.1, 0.95),
        "orientation": st.floats(0, 180),
    }
)
CASES = {"name": st.sampled_from(NAMES), "lookup": st.sampled_from(["exact", "floor", "round"]), "scene": SCENES}
many = settings(max_examples=120, deadline=None)


def draw(name, lookup, scene):
    recipe = load_recipe(name, {"instrument.pixels": 32})
    assume(abs(scene["x"]) + abs(scene["y"]) > 1)
    params = {key: torch.tensor([value], dtype=torch.float64) for key, value in scene.items()}
    # where the brighter image is, so that there is something to see; always the place of the first scene drawn
    x, y = roulettes.image_position(recipe.lens.profile, params)
    if "centre_x" not in params:
        params |= {"centre_x": x.round(), "centre_y": y.round()}
    from lenslib.roulette_images import render

    return render(recipe, params, lookup), {key: float(params[key]) for key in ("centre_x", "centre_y")}


def both(name, lookup, scene, **changes):
    before, place = draw(name, lookup, scene)
    return before, draw(name, lookup, scene | place | changes)[0]


@many
@given(**CASES, factor=st.integers(2, 20))
def test_chi_and_the_einstein_radius_scaled_together(name, lookup, scene, factor):
    """To the bit for whole numbers: b = 100 R_E / chi is one correctly rounded quotient of whole numbers."""
    chi, radius = scene["chi"] * factor, scene["einstein_radius"] * factor
    assert torch.equal(*both(name, lookup, scene, chi=chi, einstein_radius=radius))


@many
@given(**CASES, power=st.integers(-8, 8), more=st.floats(0.5, 2))
def test_chi_and_the_einstein_radius_scaled_by_a_power_of_two(name, lookup, scene, power, more):
    """To the bit for all numbers of double precision."""
    scene = scene | {"chi": scene["chi"] * more, "einstein_radius": scene["einstein_radius"] * more**2}
    chi, radius = scene["chi"] * 2.0**power, scene["einstein_radius"] * 2.0**power
    assert torch.equal(*both(name, lookup, scene, chi=chi, einstein_radius=radius))


@many
@given(name=CASES["name"], scene=SCENES, factor=st.floats(0.1, 10))
def test_chi_and_the_einstein_radius_scaled_by_any_number(name, scene, factor):
    """Three more roundings of b (two products and a quotient), and nothing else."""
    assume(scene["einstein_radius"] * 100 / scene["chi"] < 1000)
    changes = {"chi": scene["chi"] * factor, "einstein_radius": scene["einstein_radius"] * factor}
    one, other = (
        roulettes.ring_radius({key: torch.tensor(part[key], dtype=torch.float64) for key in changes})
        for part in (scene, changes)
    )
    assert abs(float(one - other)) <= 4 * 2.0**-52 * float(one)
    before, after = both(name, "exact", scene, **changes)
    # the smallest source is one pixel wide: its light changes by 155 grey levels a pixel at most, times magnification
    torch.testing.assert_close(before, after, rtol=0, atol=1e-8)


@many
@given(**CASES)
def test_half_a_turn_of_the_source(name, lookup, scene):
    assert torch.equal(*both(name, lookup, scene, theta=scene["theta"] + 180))


@many
@given(**CASES, sign=st.sampled_from([-1, 1]))
def test_exchanged_axes_and_a_quarter_turn(name, lookup, scene, sign):
    changes = {"sigma1": scene["sigma2"], "sigma2": scene["sigma1"], "theta": scene["theta"] + sign * 90}
    assert torch.equal(*both(name, lookup, scene, **changes))


@many
@given(**CASES, theta=st.floats(0, 360))
def test_the_angle_of_a_round_source(name, lookup, scene, theta):
    scene = scene | {"sigma2": scene["sigma1"]}
    assert torch.equal(*both(name, lookup, scene, theta=theta))


@many
@given(**CASES | {"name": st.sampled_from(["roulette_pm", "raytrace_pm"])})
def test_the_sign_of_a_point_masss_einstein_radius(name, lookup, scene):
    assert torch.equal(*both(name, lookup, scene, einstein_radius=-scene["einstein_radius"]))


@settings(max_examples=40, deadline=None)
@given(name=CASES["name"], scene=SCENES, change=st.sampled_from(["chi", "einstein_radius", "x", "sigma1"]))
def test_any_other_change_is_seen(name, scene, change):
    """Each alone, by 3 per cent, of a source that is well inside its ring and not round."""
    scene = scene | {"x": 110.0, "y": 60.0, "sigma1": 7.0, "sigma2": 11.0, "chi": 50.0}
    before, after = both(name, "exact", scene, **{change: scene[change] * 1.03})
    assert (before - after).abs().max() > 0.01


@pytest.mark.parametrize("name", ["raytrace_sis", "raytrace_pm"])
def test_the_image_is_its_own_mirror_image(name):
    """SIS: I(p) = I(-(2b - |p|) p/|p|) within 2b; point mass: I(p) = I(-b^2 p / |p|^2). So b and the lens's centre are
    seen in one image."""
    recipe, b = load_recipe(name), 24.0
    params = {"x": 9.0, "y": 4.0, "chi": 50.0, "einstein_radius": 12.0, "sigma1": 8.0, "sigma2": 5.0, "theta": 30.0}
    params = {key: torch.tensor([[[value]]], dtype=torch.float64) for key, value in params.items()}
    radius, angle = (
        torch.linspace(8, 40, 33, dtype=torch.float64),
        torch.linspace(0, 6.2, 40, dtype=torch.float64)[:, None],
    )
    other = 2 * b - radius if recipe.lens.profile == "sis" else b**2 / radius

    from lenslib.roulette_images import gaussian, source_offset

    here, there = (
        gaussian(params, *source_offset(recipe, params, r * torch.cos(angle + t), r * torch.sin(angle + t)))
        for r, t in ((radius, 0), (other, torch.pi))
    )
    assert here.max() > 200
    torch.testing.assert_close(here, there, rtol=0, atol=1e-9)


@many
@given(name=CASES["name"], scene=SCENES, theta=st.floats(0, 360))
def test_angles_that_are_no_whole_degrees(name, scene, theta):
    """Half a turn, and a quarter with the axes exchanged, but for the rounding of theta + 180 and theta + 90."""
    before, half = both(name, "exact", scene | {"theta": theta}, theta=theta + 180)
    exchanged = {"theta": theta + 90, "sigma1": scene["sigma2"], "sigma2": scene["sigma1"]}
    _, quarter = both(name, "exact", scene | {"theta": theta}, **exchanged)
    # an angle is off by 1e-13 degrees at most, and a source turns by 255 grey levels in about a degree at most
    torch.testing.assert_close(before, half, rtol=0, atol=1e-9)
    torch.testing.assert_close(before, quarter, rtol=0, atol=1e-9)
