"""Networks written from their papers: the published numbers of parameters, and the law each is named for."""

import pytest
import torch
from torch.nn.functional import conv2d, relu

from lenslib.models import a_vit, create_model
from lenslib.models.cswin import Block as CSWinBlock
from lenslib.models.cswin import CrossShapedAttention
from lenslib.models.mobile_former import DynamicReLU, MapReadsTokens, TokensReadMap
from lenslib.models.rvt import RVT, PositionAwareAttention


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [
        ("a_vit", 5.7, 0.01),  # DeiT-T: nothing is added
        ("rvt", 10.9, 0.01),  # RVT-Ti*
        ("rvt_s", 23.3, 0.01),  # RVT-S*
        ("cswin_t", 23, 0.04),  # the paper rounds to millions
        ("mobileformer", 11.4, 0.005),
        ("mobileformer_508", 14.0, 0.005),
    ],
)
def test_parameters_of_the_papers(name, millions, tolerance):
    """At the papers' 224 pixels, 3 channels and 1000 classes."""
    with torch.device("meta"):
        model = create_model(name, 1000, 224, 3)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=tolerance)


class TestAViT:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return create_model("a_vit", 3, 64).eval()

    @torch.no_grad()
    def test_without_halting_it_is_the_vit(self, model, monkeypatch):
        monkeypatch.setattr(a_vit, "SHIFT", -1000.0)
        images = noise(2, 1, 64, 64)
        halting = model.halting(images)
        torch.testing.assert_close(halting.logits, model.vit(images))
        assert (halting.depth == 12).all()
        torch.testing.assert_close(halting.ponder, torch.full((2,), 13.0))  # 12 blocks and all of the remainder

    @torch.no_grad()
    def test_tokens_that_halt_at_once_run_through_one_block(self, model, monkeypatch):
        monkeypatch.setattr(a_vit, "SHIFT", 1000.0)
        images = noise(2, 1, 64, 64)
        halting = model.halting(images)
        assert (halting.depth == 1).all()
        first = model.vit.blocks[0](model.vit._pos_embed(model.vit.patch_embed(images)))
        torch.testing.assert_close(halting.logits, model.vit.head(model.vit.norm(first[:, 0])))

    def test_a_halted_token_is_no_longer_heard(self, model, monkeypatch):
        """Of tokens that halt after the first block, what follows is independent."""
        monkeypatch.setattr(a_vit, "SCALE", 1000.0)
        monkeypatch.setattr(a_vit, "SHIFT", 0.0)  # a token halts at once where its first element is positive
        depth = model.halting(noise(1, 1, 64, 64)).depth
        assert depth.min() == 1
        assert depth.max() > 1
        heard = []
        model.vit.blocks[1].register_forward_pre_hook(lambda _, args: heard.append(args[0]))
        model.halting(noise(1, 1, 64, 64))
        assert (heard[0][depth == 1] == 0).all()
        assert (heard[0][depth > 1] != 0).any(1).all()

    def test_costs_have_gradients(self, model):
        halting = model.halting(noise(2, 1, 64, 64))
        assert halting.divergence > 0
        (halting.ponder.mean() + halting.divergence).backward()
        assert model.vit.patch_embed.proj.weight.grad.abs().max() > 0


@torch.no_grad()
def test_rvt_attention_is_plain_until_positions_are_learnt():
    torch.manual_seed(0)
    aware, plain = (PositionAwareAttention(24, 2, 9, positions) for positions in (True, False))
    plain.load_state_dict(aware.state_dict(), strict=False)
    x = noise(2, 9, 24)
    torch.testing.assert_close(aware(x), plain(x))
    order = torch.randperm(9)
    torch.testing.assert_close(plain(x[:, order]), plain(x)[:, order])
    aware.importance.copy_(noise(2, 9, 9))
    assert not torch.allclose(aware(x[:, order]), aware(x)[:, order], atol=1e-3), "order of tokens is not seen"


def test_rvt_learns_positions_in_its_first_blocks():
    with torch.device("meta"):
        model = RVT(3, 64, dims=(24,), depths=(3,), heads=(2,), positions=2)
    assert [name for name, _ in model.named_parameters() if "importance" in name] == [
        "features.4.attention.importance",
        "features.5.attention.importance",
    ]


@pytest.mark.parametrize("stripe", [1, 2])
def test_cswin_attends_within_a_cross(stripe):
    torch.manual_seed(0)
    x = noise(1, 8, 8, 16).requires_grad_()
    CSWinBlock(16, heads=4, stripe=stripe)(x)[0, 2, 5].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    row, column = 2 // stripe * stripe, 5 // stripe * stripe
    expected[row : row + stripe] = expected[:, column : column + stripe] = True
    assert torch.equal(seen, expected)


@torch.no_grad()
def test_cswin_is_attention_and_a_convolution_stripe_by_stripe():
    """Equation 7, written out for each stripe: softmax(q k^T / sqrt(d)) v + convolution(v)."""
    torch.manual_seed(0)
    module, x = CrossShapedAttention(16, heads=4, stripe=2), noise(2, 6, 6, 16)
    q, k, v = module.qkv(x).chunk(3, dim=-1)
    expected = torch.empty_like(x)
    for half, (height, width) in ((slice(0, 8), (2, 6)), (slice(8, 16), (6, 2))):
        for row in range(0, 6, height):
            for column in range(0, 6, width):
                place = (slice(None), slice(row, row + height), slice(column, column + width), half)
                mine = [t[place].flatten(1, 2).unflatten(2, (2, 4)).transpose(1, 2) for t in (q, k, v)]
                heard = (mine[0] @ mine[1].mT / 2).softmax(-1) @ mine[2]
                weights = module.positions.weight[half], module.positions.bias[half]
                local = conv2d(v[place].permute(0, 3, 1, 2), *weights, padding=1, groups=8).permute(0, 2, 3, 1)
                expected[place] = heard.transpose(1, 2).reshape(local.shape) + local
    torch.testing.assert_close(module(x), module.out(expected))


def test_cswin_stripe_as_wide_as_the_map_is_full_attention():
    torch.manual_seed(0)
    x = noise(1, 4, 4, 16).requires_grad_()
    CSWinBlock(16, heads=4, stripe=4)(x)[0, 0, 0].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


@torch.no_grad()
def test_dynamic_relu_starts_near_a_relu_and_follows_the_token():
    torch.manual_seed(0)
    activation, x, token = DynamicReLU(16, 5), noise(2, 5, 4, 4), noise(2, 16)
    assert not torch.allclose(activation(x, token), relu(x))
    activation.layers[-1].weight.zero_()
    torch.testing.assert_close(activation(x, token), relu(x))
    activation.layers[-1].bias.copy_(torch.tensor([3.0] * 5 + [-3.0] * 5))  # both slopes as far as they go
    torch.testing.assert_close(activation(x, token), torch.maximum(2 * x, -x))


@torch.no_grad()
def test_mobile_formers_tokens_see_the_map_in_no_order():
    """Neither reading of the map has positions: shuffled pixels give the same tokens, and a map shuffled alike."""
    torch.manual_seed(0)
    read, write = TokensReadMap(12, 8), MapReadsTokens(12, 8)
    tokens, x, order = noise(2, 3, 12), noise(2, 8, 4, 4, seed=1), torch.randperm(16)
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(read(tokens, shuffled), read(tokens, x))
    expected = write(x, tokens).flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(write(shuffled, tokens), expected)


@torch.no_grad()
def test_squeezenet_can_say_less_than_nothing():
    outputs = []
    for final_relu in (False, True):
        torch.manual_seed(0)
        model = create_model("squeezenet1_1", 8, 65, final_relu=final_relu).eval()
        outputs.append(model(noise(4, 1, 65, 65)))
    free, clipped = outputs
    assert (free < 0).any()
    assert (clipped >= 0).all()
