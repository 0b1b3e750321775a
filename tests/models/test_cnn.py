"""The polar grid of polar_cnn: azimuth is an angle, cells are means, and the lens may turn."""

import pytest
import torch

from lenslib.models import create_model


@pytest.fixture(params=[16, 48, 65])
def network(request):
    torch.manual_seed(0)
    return create_model("polar_cnn", 3, request.param).eval(), request.param


def test_a_right_angle_is_a_quarter_of_the_sectors(network):
    model, size = network
    images = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(1))
    straight, turned = model.polar(images), model.polar(torch.rot90(images, 1, (-2, -1)))
    # row numbers grow downwards, so a turn from x to y runs against the azimuth
    torch.testing.assert_close(turned, straight.roll(-straight.shape[-1] // 4, dims=-1), rtol=0, atol=1e-4)


def test_rings_hold_the_light_of_their_radius(network):
    model, size = network
    pixel = torch.arange(size) + 0.5 - size / 2
    radius = torch.hypot(pixel[:, None], pixel)[None, None]
    seen = model.polar(radius)[0, 0]
    rings = seen.shape[0]
    middle = (torch.arange(rings) + 0.5) * size * 0.5**0.5 / rings
    inside = (middle > 1) & (middle < size / 2 - 2)  # beyond, part of a ring is outside the image
    # bilinear sampling and the finite cell bend the cone by a fraction of a pixel near its tip
    assert ((seen - middle[:, None]).abs()[inside] < 0.25).all()


def test_flat_images_stay_flat_inside(network):
    model, size = network
    seen = model.polar(torch.ones(1, 1, size, size))[0, 0]
    inside = int(len(seen) * 0.5**0.5 * (1 - 2 / size)) - 1
    torch.testing.assert_close(seen[:inside], torch.ones_like(seen[:inside]))
    assert (seen >= 0).all()
    assert (seen <= 1 + 1e-6).all()
