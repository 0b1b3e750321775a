"""Networks with a share of their channels: the whole at a share of one, the papers' columns, the symmetry kept."""

import pytest
import torch
from torch import nn

from lenslib.equivariance import turned
from lenslib.errors import InputError
from lenslib.models import create_model
from lenslib.models.narrow import STEERABLE, narrowed
from lenslib.models.steerable import FIELDS, SteerableConv


def channels(network):
    """Of every convolution but those of shortcuts."""
    layers = network.named_modules()
    return [m.out_channels for name, m in layers if isinstance(m, nn.Conv2d) and "downsample" not in name]


@pytest.mark.parametrize("name", STEERABLE)
def test_the_groups_have_about_as_many_channels(name):
    """So that the group is compared and not the room it has: within half a field of twice the published fields."""
    layers = [layer for layer in narrowed(name, 0.5, 3, 33).modules() if isinstance(layer, SteerableConv)]
    for layer, fields in zip(layers, FIELDS, strict=True):
        assert abs(layer.out_type.size - 0.5 * 2 * fields) <= STEERABLE[name] / 2


@pytest.mark.parametrize("model", ["resnet18", "resnet34_scratch", "resnet34_bottleneck"])
def test_a_narrow_resnet_has_as_many_layers_of_fewer_channels(model):
    with torch.device("meta"):
        first, *whole = channels(create_model(model, 3, 32))
    narrow = narrowed(model, 0.125, 3, 32, 2)
    assert channels(narrow) == [first, *(count // 8 for count in whole)]
    assert narrow(torch.zeros(2, 2, 32, 32)).shape == (2, 3)


def test_a_narrow_vgg_has_the_papers_columns_in_proportion():
    features = channels(narrowed("vgg16_bn", 0.25, 3, 33).features)
    # the paper's column D
    assert [4 * count for count in features] == [64, 64, 128, 128, 256, 256, 256, *6 * [512]]
    # of the two hidden layers of 4096, which timm has as convolutions, it fixes the second
    assert channels(narrowed("vgg16_bn", 0.25, 3, 33).pre_logits) == [1024, 4096]


def test_a_narrow_c8_keeps_its_symmetry():
    torch.manual_seed(0)
    network = narrowed("c8_steerable", 0.1, 3, 33).eval()
    images = torch.randn(2, 1, 33, 33)
    with torch.no_grad():
        assert torch.allclose(network(images), network(turned(images, 90)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "least"), [("resnet18", 8), ("vgg16_bn", 8), ("c8_steerable", 64)])
@pytest.mark.parametrize("share", [0.0, -1.0, 0.99 / 64, 1.5, float("nan")])
def test_an_impossible_share_is_refused(name, least, share):
    with pytest.raises(InputError, match=f"share of {name}'s channels must be from 1/{least} to 1"):
        narrowed(name, share, 3, 33)


@pytest.mark.parametrize("name", ["polar_cnn", "vgg19_bn", "wide_resnet50"])
def test_a_network_without_a_narrower_form_is_not_taken_for_one(name):
    with pytest.raises(InputError, match=f"share of {name}'s channels must be 1: it has no narrower form"):
        narrowed(name, 0.25, 3, 33)
