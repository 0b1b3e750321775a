import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lenslib.attention import attention_maps, attention_rollout, rollout
from lenslib.errors import InputError
from lenslib.models import create_model

SIZE = 48  # 8 x 8 patches of 6 pixels


def random_attention(seed, layers=3, heads=2, tokens=5):
    logits = torch.randn(layers, 1, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    return (3 * logits.double()).softmax(-1)


def build(name, seed=0):
    torch.manual_seed(seed)
    return create_model(name, 3, SIZE)


def images(count=2, seed=0):
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 4), st.integers(1, 7))
def test_rows_are_shares(seed, layers, heads, tokens):
    shares = rollout(random_attention(seed, layers, heads, tokens))
    assert shares.shape == (layers, 1, tokens, tokens)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares.sum(-1)))


def test_who_attends_to_himself_alone_stays_himself():
    identity = torch.eye(4).expand(5, 2, 3, 4, 4)
    torch.testing.assert_close(rollout(identity), torch.eye(4).expand(5, 2, 4, 4))


def test_two_layers_by_hand():
    """Layer 1: both look at token 0. Layer 2: one head swaps the tokens, the other looks straight on."""
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).expand(2, 2, 2)
    second = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    one, two = rollout(torch.stack([first, second]))
    # halves with the identity: [[1, 0], [1/2, 1/2]] and [[3/4, 1/4], [1/4, 3/4]]
    torch.testing.assert_close(one, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    torch.testing.assert_close(two, torch.tensor([[7 / 8, 1 / 8], [5 / 8, 3 / 8]]))


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_renaming_tokens_renames_shares(seed):
    attention = random_attention(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(attention.shape[-1]))
    renamed = attention[..., order, :][..., order]
    torch.testing.assert_close(rollout(renamed), rollout(attention)[..., order, :][..., order])


def test_what_is_no_attention_is_refused():
    attention = random_attention(0)
    for wrong in (attention.log(), 2 * attention, attention[0, 0, 0], attention[..., :-1]):
        with pytest.raises(InputError, match="attention must be"):
            rollout(wrong)


@pytest.mark.parametrize("name", ["vit_tiny", "a_vit", "cpvt"])
def test_shares_of_patches(name):
    shares = attention_rollout(build(name), images())
    assert shares.shape == (12, 2, 8, 8)
    assert (shares > 0).all()
    total = shares.sum((2, 3))
    if name == "cpvt":  # no class token that could keep a share
        torch.testing.assert_close(total, torch.ones(12, 2))
    else:
        assert (total.diff(dim=0) > 0).all()
        assert total.max() < 1


def test_uniform_attention_spreads_evenly():
    """Where queries are zero, L layers leave a token 1 / 2^L of itself and spread the rest over all evenly."""
    network = build("vit_tiny")
    for block in network.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    shares = attention_rollout(network, images())
    expected = (1 - 0.5 ** torch.arange(1.0, 13)) / 65
    torch.testing.assert_close(shares, expected[:, None, None, None].expand_as(shares))


def test_shares_follow_their_patches():
    """Without positions, a vision transformer does not know where a patch lies: turned patches, turned shares."""
    network = build("vit_tiny")
    torch.nn.init.zeros_(network.pos_embed)
    upright = images()
    upside_down = upright.unflatten(2, (8, 6)).flip(2).flatten(2, 3)
    torch.testing.assert_close(attention_rollout(network, upside_down), attention_rollout(network, upright).flip(2))


def test_the_network_is_left_as_it_was():
    network = build("vit_tiny").train()
    fused = [block.attn.fused_attn for block in network.blocks]
    before = network.eval()(images())
    network.train()
    attention = attention_maps(network, images())
    assert attention.shape == (12, 2, 3, 65, 65)
    assert not attention.requires_grad
    assert network.training
    assert [block.attn.fused_attn for block in network.blocks] == fused
    assert not network.blocks[0].attn.attn_drop._forward_pre_hooks
    torch.testing.assert_close(network.eval()(images()), before)


@pytest.mark.parametrize(("name", "size"), [("swin", 32), ("pit", 48), ("small_cnn", 48)])
def test_windows_and_shrinking_maps_are_refused(name, size):
    with pytest.raises(InputError, match="one grid of tokens"):
        attention_maps(create_model(name, 3, size), torch.zeros(1, 1, size, size))
