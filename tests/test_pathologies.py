"""Laws of the collapse study, and what the thesis's loop freezes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lenslib.errors import InputError
from lenslib.models import create_model
from lenslib.pathologies import (
    THESIS,
    alexnet,
    batch_norms,
    collapsed,
    constant_loss,
    fit,
    mnasnet,
    outputs_of,
    relative_losses,
    share_with_interval,
    trace,
    transfer,
)


@pytest.fixture
def problem():
    """Twelve images whose targets are two of their means, so that there is something to learn."""
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return images, torch.stack([images[:, 0, :4].mean((1, 2)), images[:, 0, 4:].mean((1, 2))], 1)


class Constant(nn.Module):
    """Answers one value whatever it is shown, and cannot learn another."""

    def __init__(self, values):
        super().__init__()
        self.values, self.idle = values, nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return self.values.expand(len(images), -1) + 0 * self.idle


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_answering_the_means_counts_as_collapsed_and_anything_better_does_not(problem, loss):
    images, targets = problem
    settings = replace(THESIS, epochs=1, batch_size=12, loss=loss)
    means = fit(Constant(targets.mean(0)), images, targets, settings)
    assert means[0] == pytest.approx(constant_loss(targets, loss), rel=1e-6)
    assert relative_losses(means, targets, loss)[-1] == pytest.approx(1, rel=1e-5)
    assert collapsed(np.array([1.0, 1.5, np.inf, np.nan, 0.9])).tolist() == [True, True, True, True, False]


def test_the_loss_of_the_means_is_the_variance():
    targets = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    assert constant_loss(targets, "mse") == pytest.approx((1 + 100) / 2)
    assert constant_loss(targets, "mae") == pytest.approx((1 + 10) / 2)


def test_a_linear_network_learns_a_linear_task_in_either_mode(problem):
    images, targets = problem
    for once in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        losses = fit(network, images, targets, replace(THESIS, epochs=60, batch_size=4, learning_rate=1e-2), once)
        assert not collapsed(relative_losses(losses, targets)[-1])


@pytest.mark.parametrize("once", [True, False])
def test_train_called_once_freezes_batch_norm_and_dropout_after_the_first_epoch(problem, once):
    images, targets = problem
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(72, 2))
    modes, means = [], []

    def each_step(step, loss):
        modes.append(network[3].training)
        means.append(network[1].running_mean.clone())

    fit(network, images, targets, replace(THESIS, epochs=3, batch_size=6), once, each_step=each_step)
    assert modes == [True, True] + [not once] * 4
    assert torch.equal(means[2], means[5]) == once
    assert not torch.equal(means[0], means[1])


def test_each_batch_moves_the_running_mean_by_the_momentum():
    images = torch.rand(4, 1, 63, 63, generator=torch.Generator().manual_seed(1))
    moved = []
    for momentum in (None, 0.5):
        torch.manual_seed(0)
        network = mnasnet(2, 0.35, momentum)
        first, seen = batch_norms(network)[0], []
        hook = first.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0].mean((0, 2, 3))))
        network.train()(images)
        hook.remove()
        moved.append(first.running_mean / seen[0])
    # torchvision's own: the paper's decay of 0.9997 is what is kept
    torch.testing.assert_close(moved[0], torch.full_like(moved[0], 1 - 0.9997), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[1], torch.full_like(moved[1], 0.5), rtol=1e-3, atol=0)


def test_a_relu_at_the_end_cannot_answer_below_zero():
    images = torch.rand(8, 1, 63, 63, generator=torch.Generator().manual_seed(0))
    answers = {}
    for final_relu in (True, False):
        torch.manual_seed(0)
        network = create_model("squeezenet1_1", 6, 63, final_relu=final_relu)
        answers[final_relu] = outputs_of(network, images)
    assert (answers[True] >= 0).all()
    assert (answers[False] < 0).any()


def test_full_width_is_torchvisions_alexnet():
    registered = create_model("alexnet", 6, 63).state_dict()
    network = alexnet(6)
    own = network.state_dict()
    assert {name: value.shape for name, value in own.items()} == {n: v.shape for n, v in registered.items()}
    network.load_state_dict(registered)
    other = create_model("alexnet", 6, 63)
    other.load_state_dict(registered)
    images = torch.rand(2, 1, 63, 63)
    np.testing.assert_allclose(outputs_of(network, images), outputs_of(other, images), rtol=1e-5, atol=1e-6)


def test_hidden_layers_come_before_the_outputs():
    network = alexnet(6, 1 / 32, hidden=(20, 10))
    sizes = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert sizes == [128, 128, 20, 10, 6]
    assert network(torch.rand(2, 1, 63, 63)).shape == (2, 6)


@pytest.mark.parametrize("width", [0, -1, 1 / 100, float("nan"), 10])
def test_a_width_without_channels_is_refused(width):
    with pytest.raises(InputError, match="width"):
        alexnet(6, width)


def test_weights_from_a_file_are_taken_over_and_those_that_do_not_fit_refused(tmp_path):
    from safetensors.torch import save_file

    teacher = alexnet(3, 1 / 32)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    same = alexnet(3, 1 / 32, weights=tmp_path / "teacher.safetensors")
    images = torch.rand(2, 1, 63, 63)
    np.testing.assert_array_equal(outputs_of(same, images), outputs_of(teacher, images))
    with pytest.raises(InputError, match="do not fit"):
        alexnet(6, 1 / 32, weights=tmp_path / "teacher.safetensors")

    student = alexnet(6, 1 / 32)
    head = student.classifier[6].weight.clone()
    assert transfer(student, same.state_dict()) == len(same.state_dict()) - 2
    assert torch.equal(student.features[0].weight, teacher.features[0].weight)
    assert torch.equal(student.classifier[6].weight, head)
    with pytest.raises(InputError, match="none of these weights"):
        transfer(alexnet(6, 1 / 16), {"other": torch.zeros(1)})


def test_the_head_is_not_taken_even_where_it_fits():
    teacher, student = alexnet(6, 1 / 32), alexnet(6, 1 / 32)
    head = student.classifier[6].weight.clone()
    transfer(student, teacher.state_dict())
    assert torch.equal(student.classifier[6].weight, head)


def test_intervals_of_shares():
    # none of n: the exact bound is 1 - 0.025 ** (1 / n)
    none = share_with_interval(0, 10)
    assert (none["value"], none["low"]) == (0, 0)
    assert none["high"] == pytest.approx(1 - 0.025**0.1)
    all_of = share_with_interval(10, 10)
    assert (all_of["low"], all_of["high"]) == pytest.approx((0.025**0.1, 1))


def test_a_trace_sees_dead_units_and_how_far_a_step_goes():
    images, targets = torch.rand(6, 1, 63, 63), torch.rand(6, 2)
    network = alexnet(2, 1 / 32)
    with torch.no_grad():
        network.features[3].bias.fill_(-1e3)  # the second convolution sees nothing any more
    found = trace(network, images, targets, replace(THESIS, batch_size=6, epochs=3), 3)
    assert found.dead.shape == found.spread.shape == found.gradient.shape == found.push.shape == (3, 8)
    assert (found.dead[:, 1] == 1).all()
    assert (found.spread[:, 1] == 0).all()
    assert (found.gradient[:, 0] == 0).all()
    assert (found.push[0] == 0).all()
    assert (found.push[1, -1] > 0).all()
    # but for rounding
    assert (found.output_spread < 1e-6).all()


def test_the_first_step_of_adam_is_the_learning_rate_whatever_the_scale_of_the_targets():
    images, targets = torch.rand(6, 1, 63, 63), torch.rand(6, 2)
    moved = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        network = alexnet(2, 1 / 32)
        before = network.classifier[6].bias.detach().clone()
        fit(network, images, scale * targets + 1, replace(THESIS, batch_size=6, epochs=1))
        moved.append((network.classifier[6].bias.detach() - before).abs())
    torch.testing.assert_close(moved[0], torch.full((2,), THESIS.learning_rate), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=0)


def test_a_loss_that_is_not_finite_is_a_collapse(problem):
    images, targets = problem
    targets = targets.clone()
    targets[0, 0] = float("inf")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    losses = fit(network, images, targets, replace(THESIS, epochs=2))
    assert np.isinf(losses).all()


def test_images_without_their_targets_are_refused(problem):
    images, targets = problem
    with pytest.raises(InputError, match="12 images and 11 targets"):
        fit(Constant(targets.mean(0)), images, targets[:11], THESIS)
