"""Turned images, and how far outputs follow them: group laws, closed forms, and limits that are known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lenslib.equivariance import output_change, turned, turned_and_back
from lenslib.errors import InputError


def blob(angle, size=64, sigma=4.0, away=12.0):
    """A Gaussian off the centre, at that many degrees anticlockwise from the right where rows run downwards."""
    y, x = torch.meshgrid(*2 * [torch.arange(size) - (size - 1) / 2], indexing="ij")
    theta = np.deg2rad(angle)
    cx, cy = away * np.cos(theta), -away * np.sin(theta)
    return torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))[None, None]


@given(angle=st.floats(-400, 400))
def test_a_turned_image_is_that_of_the_turned_scene(angle):
    error = (turned(blob(10), angle) - blob(10 + angle)).abs().max()
    assert error < 0.02  # the bilinear error is at most h^2 / 8 (|f_xx| + |f_yy|) = 1 / (4 sigma^2)


@pytest.mark.parametrize("quarters", range(-3, 6))
def test_right_angles_are_exact_and_form_a_group(quarters):
    images = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned(images, 90 * quarters), torch.rot90(images, quarters, (-2, -1)))
    assert torch.equal(turned_and_back(images, 90 * quarters), images)


def test_there_and_back_leaves_a_smooth_scene_and_smooths_noise():
    scene, noise = blob(30), torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    inner = (..., slice(10, 54), slice(10, 54))
    assert (turned_and_back(scene, 45) - scene).abs().max() < 0.04
    # a mean over four pixels with the weights (1 - a)(1 - b), .. has a variance of 4 / 9 over all places a, b
    assert turned(noise, 45)[inner].var() / noise[inner].var() == pytest.approx(4 / 9, abs=0.06)
    assert turned_and_back(noise, 45)[inner].var() < turned(noise, 45)[inner].var()


def test_the_change_is_zero_for_the_same_outputs_and_one_for_those_of_other_images():
    rng = np.random.default_rng(0)
    outputs, others = rng.normal(size=(2, 2000, 3))
    assert output_change(outputs, outputs) == {"value": 0, "low": 0, "high": 0}
    found = output_change(outputs, others)
    assert found["low"] < 1 < found["high"]
    assert found["high"] - found["low"] < 0.1


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_the_change_has_no_units(scale, shift):
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=(2, 20, 2))
    assert output_change(scale * before + shift, scale * after + shift)["value"] == pytest.approx(
        output_change(before, after)["value"]
    )


def test_outputs_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="as many after as before"):
        output_change(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(InputError, match="two images or more"):
        output_change(np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(InputError, match="same outputs for all"):
        output_change(np.ones((3, 2)), np.ones((3, 2)))
