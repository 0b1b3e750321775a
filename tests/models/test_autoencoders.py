"""What the pieces of the autoencoders' losses are."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lenslib.models import autoencoders, create_model, list_models


def images(count=4, size=21):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=list_models("autoencoder"))
def model(request):
    torch.manual_seed(0)
    return create_model(request.param, num_outputs=6, image_size=21)


def test_the_code_has_the_length_asked_for(model):
    code = model.encode(images())
    assert code.shape == (4, 6)
    assert model.decode(code).shape == images().shape
    torch.testing.assert_close(model.eval()(images()), model.decode(model.encode(images())))


def test_training_on_the_sum_of_the_losses_lowers_the_error(model):
    optimiser, x = torch.optim.Adam(model.parameters(), lr=1e-3), images()
    errors = []
    for _ in range(30):
        pieces = model.losses(x)
        errors.append(pieces["reconstruction"].item())
        optimiser.zero_grad()
        sum(pieces.values()).backward()
        optimiser.step()
    assert errors[-1] < 0.7 * errors[0]


def test_divergence_is_that_of_normal_distributions():
    mean, log_variance = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(autoencoders.kl_divergence(mean, log_variance), expected)


def test_vae_draws_in_training_alone():
    torch.manual_seed(0)
    model, x = create_model("vae", 6, 21), images()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert torch.equal(model.encode(x), model.encode_distribution(x)[0])


def test_vae_draws_have_the_variance_it_states():
    torch.manual_seed(0)
    model = create_model("vae", 2, 21)
    mean, log_variance = torch.full((20000, 2), 3.0), torch.tensor([[0.0, -2.0]]).expand(20000, 2)
    drawn = model._draw(mean, log_variance)
    torch.testing.assert_close(drawn.mean(0), torch.tensor([3.0, 3.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), torch.tensor([0.0, -2.0]).exp(), rtol=0.05, atol=0)


def gradients(model, loss):
    """Names of the parts of the model that the loss would move."""
    model.zero_grad()
    loss.backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_each_adversarial_loss_moves_one_player():
    torch.manual_seed(0)
    model = create_model("aae", 6, 21)
    assert gradients(model, model.losses(images())["critic"]) == {"critic"}
    assert gradients(model, model.losses(images())["deception"]) == {"encoder"}
    assert gradients(model, model.losses(images())["reconstruction"]) == {"encoder", "decoder"}


def test_codes_nearer_to_the_prior_deceive_a_trained_critic():
    torch.manual_seed(0)
    model = create_model("aae", 6, 21)
    prior, far = torch.randn(512, 6), torch.randn(512, 6) + 3
    optimiser = torch.optim.Adam(model.critic.parameters(), lr=1e-2)
    for _ in range(50):
        optimiser.zero_grad()
        model.critic_loss(far).backward()
        optimiser.step()
    with torch.no_grad():
        assert model.deception_loss(prior) < 0.1 * model.deception_loss(far)
        assert model.critic_loss(prior) > model.critic_loss(far)
