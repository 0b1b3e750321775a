"""Images distorted as they are shown: by the maps that are said, each image by its own."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import InterpolationMode, rotate

from lenslib.augmentation import DISTORTIONS, distort_images, warp_images
from lenslib.errors import InputError
from lenslib.regression import check_settings
from lenslib.settings import Settings
from lenslib.targets import Targets


@pytest.fixture(scope="module")
def smooth_images():
    """Two channels of smooth light far from the border."""
    y, x = np.mgrid[:48, :48] - 23.5
    blobs = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 16) for a, b in ((6, 2), (-4, 7))]
    return torch.tensor(np.stack(blobs), dtype=torch.float32)[None]


def turned_by(angle):
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]])


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_right_angle_is_exact(turns):
    images = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    warped = warp_images(images, turned_by(turns * math.pi / 2))
    torch.testing.assert_close(warped, torch.rot90(images, turns, (-2, -1)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("degrees", [10.0, 45.0, -130.0])
def test_other_angles_agree_with_torchvision(smooth_images, degrees):
    warped = warp_images(smooth_images, turned_by(math.radians(degrees)))
    expected = rotate(smooth_images, degrees, InterpolationMode.BILINEAR)
    # in the corners, torchvision shows nothing, and a mirror some light
    inside = (..., slice(10, 38), slice(10, 38))
    torch.testing.assert_close(warped[inside], expected[inside], rtol=0, atol=1e-5)


def test_a_map_and_its_inverse_give_the_image_back(smooth_images):
    there = torch.tensor([[[1.05, 0.1, 0.02], [-0.05, 0.95, -0.03], [0.1, -0.08, 1.0]]])
    back = warp_images(warp_images(smooth_images, there), torch.linalg.inv(there))
    # light is interpolated twice, along two axes, each time off by an eighth of its curvature, 1/8, at most
    assert (back - smooth_images).abs().max() < 1 / 16
    assert (warp_images(smooth_images, there) - smooth_images).abs().max() > 0.1


@pytest.mark.parametrize("kind", [kind for kind in DISTORTIONS if kind != "none"])
def test_each_image_has_a_distortion_of_its_own_which_the_seed_decides(smooth_images, kind):
    images = smooth_images.expand(40, -1, -1, -1)
    shown = distort_images(images, kind, torch.Generator().manual_seed(3))
    assert shown.shape == images.shape
    assert len({tuple(one.flatten().tolist()) for one in shown}) == 40
    assert torch.equal(shown, distort_images(images, kind, torch.Generator().manual_seed(3)))
    assert not torch.equal(shown, distort_images(images, kind, torch.Generator().manual_seed(4)))
    assert torch.equal(images[0], smooth_images[0])


def test_none_leaves_the_images_and_the_draws_alone(smooth_images):
    generator = torch.Generator().manual_seed(0)
    assert distort_images(smooth_images, "none", generator) is smooth_images
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=torch.Generator().manual_seed(0)))


def centroids(images):
    """[n, 2], from the centre, of the light of the first channel."""
    light = images[:, 0]
    places = torch.arange(light.shape[-1]) - (light.shape[-1] - 1) / 2
    total = light.sum((1, 2))
    return (torch.stack([(light.sum(1) * places).sum(1), (light.sum(2) * places).sum(1)], 1) / total[:, None]).numpy()


def test_rotations_keep_distances_and_take_every_angle(smooth_images):
    images = smooth_images.expand(2000, -1, -1, -1)
    found = centroids(distort_images(images, "rotate", torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), math.hypot(6, 2), atol=0.05)
    counts = np.histogram(np.arctan2(found[:, 1], found[:, 0]), 8, (-np.pi, np.pi))[0]
    assert (abs(counts - 250) < 5 * math.sqrt(250)).all()


def test_affine_maps_turn_and_stretch_as_far_as_is_said(smooth_images):
    found = centroids(
        distort_images(smooth_images.expand(2000, -1, -1, -1), "affine", torch.Generator().manual_seed(0))
    )
    angles = np.degrees(np.arctan2(found[:, 1], found[:, 0]) - math.atan2(2, 6))
    lengths = np.linalg.norm(found, axis=1) / math.hypot(6, 2)
    # a shear adds to both
    assert 8 < abs(angles).max() < 21
    assert 0.75 < lengths.min() < 0.93
    assert 1.07 < lengths.max() < 1.35
    assert abs(angles.mean()) < 1


def test_contrast_is_that_of_torchvision_about_zero(smooth_images):
    shown = distort_images(smooth_images.expand(500, -1, -1, -1), "contrast", torch.Generator().manual_seed(0))
    base = smooth_images.flatten()
    # a straight line of what was there, of the slopes and offsets that are said
    slopes, offsets = zip(*(np.polyfit(base, one.flatten(), 1) for one in shown), strict=True)
    for values, middle in ((slopes, 1.0), (offsets, 0.0)):
        assert min(values) > middle - 0.2001
        assert max(values) < middle + 0.2001
        assert max(values) - min(values) > 0.38
        assert abs(np.mean(values) - middle) < 0.03


def test_numbers_do_not_go_with_distorted_images():
    with pytest.raises(InputError, match="set distort to none"):
        check_settings(Targets("parameters", ("x", "y")), Settings(distort="rotate"))
    with pytest.raises(InputError, match="unknown distort"):
        Settings(distort="swirl")
