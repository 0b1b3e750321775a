"""Adaptation on clusters of points, where what is right is known, and laws that hold whatever is adapted."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from lenslib import create_model
from lenslib.adaptation import METHODS, Adaptation
from lenslib.errors import InputError

# clusters of points: nothing to turn, little noise to hold them apart
TOY = Adaptation(steps=400, batch_size=64, learning_rate=1e-3, augment="none", jitter=0.3, confidence=0.8)
CENTRES = torch.tensor([[-2.0, 0.0], [-2.0, 3.0], [2.0, 0.0], [2.0, 3.0]])  # two of each class
MOVED = torch.tensor([1.6, 0.0])


def clusters(seed: int, moved: torch.Tensor | float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(4, (1200,), generator=generator)
    return CENTRES[which] + 0.5 * torch.randn(1200, 2, generator=generator) + moved, which // 2


@pytest.fixture(scope="module")
def trained():
    """A small network that tells the classes of the clusters as they were."""
    points, labels = clusters(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(200):
        loss = nn.functional.cross_entropy(network(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def accuracy(network, points, labels):
    return float((network(points).argmax(1) == labels).float().mean())


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_that_moved_are_told_apart_again(trained, method, seed):
    target, _ = clusters(1, MOVED)
    before = accuracy(trained, *clusters(2, MOVED))
    adapted = METHODS[method](trained, clusters(0), target, replace(TOY, seed=seed))
    assert before < 0.9
    assert accuracy(adapted, *clusters(2, MOVED)) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_without_steps_nothing_changes(trained, method):
    assert same(METHODS[method](trained, clusters(0), clusters(1)[0], replace(TOY, steps=0)), trained)


@pytest.mark.parametrize("method", METHODS)
def test_the_network_given_and_the_generator_are_left_alone(trained, method):
    before, state = copy.deepcopy(trained), torch.get_rng_state()
    METHODS[method](trained, clusters(0), clusters(1)[0], replace(TOY, steps=3))
    assert same(before, trained)
    assert not trained.training
    assert all(weight.requires_grad for weight in trained.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_network_and_another_seed_another(trained, method):
    make = [METHODS[method](trained, clusters(0), clusters(1)[0], replace(TOY, steps=3, seed=k)) for k in (0, 0, 1)]
    assert same(make[0], make[1])
    assert not same(make[0], make[2])


def test_without_weight_self_ensembling_does_not_look_at_the_target(trained):
    how = replace(TOY, steps=5, weight=0.0)
    one, other = (METHODS["self_ensemble"](trained, clusters(0), target, how) for target in
                  (clusters(1)[0], clusters(1)[0] + 1))  # fmt: skip
    assert same(one, other)
    unlike = METHODS["self_ensemble"](trained, clusters(0), clusters(1)[0] + 1, replace(how, weight=1.0))
    assert not same(one, unlike)


def test_adda_looks_at_no_label_and_leaves_the_last_layer(trained):
    points, labels = clusters(0)
    one, other = (METHODS["adda"](trained, (points, given), points + 1, replace(TOY, steps=5)) for given in
                  (labels, 1 - labels))  # fmt: skip
    assert same(one, other)
    assert same(one[-1], trained[-1])
    assert not same(one[0], trained[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_convolutional_network_takes_over_the_statistics_of_the_target(method):
    torch.manual_seed(0)
    network = create_model("small_cnn", 3, 16)
    images, labels = torch.randn(16, 1, 16, 16), torch.arange(16) % 3
    adapted = METHODS[method](network, (images, labels), 5 * images + 3, Adaptation(steps=2, batch_size=8))
    name = "features.0.1.running_var"
    assert (adapted.state_dict()[name] > 2 * network.state_dict()[name]).any()
    assert adapted(images).isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"batch_size": 1}, {"augment": "d5"}, {"weight": -1.0}, {"ema": 1.0}, {"confidence": 1.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError):
        Adaptation(**wrong)
