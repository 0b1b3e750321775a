"""One contract for every registered model: a new model is tested by being registered."""

import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from lenslib.errors import InputError
from lenslib.models import create_model, legal_size, list_models, model_info
from lenslib.models.transformers import patch_size

NAMES = list_models()
OUTPUTS = 3


def build(name, size=64, seed=0, **options):
    torch.manual_seed(seed)
    return create_model(name, OUTPUTS, legal_size(name, size), **options)


def images(model_name, count=2, size=64, seed=0):
    side = legal_size(model_name, size)
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [64, 150])
@pytest.mark.parametrize("name", NAMES)
def test_forward_backward_and_every_pixel_counts(name, size):
    model = build(name, size)
    logits = model(images(name, size=size))
    assert logits.shape == (2, OUTPUTS)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    # one step, because residual branches may start at zero, behind shortcuts that skip pixels
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.eval()
    reached = 0
    for seed in range(8):  # a dead ReLU or a maximum elsewhere can hide a pixel from one image
        x = images(name, 1, size, seed).requires_grad_()
        model(x).abs().sum().backward()
        reached = reached + x.grad.abs()
        if (reached > 0).all():
            break
    assert (reached > 0).all(), f"{int((reached == 0).sum())} pixels never reach the output"


@pytest.mark.parametrize("name", NAMES)
def test_weights_round_trip_to_the_bit(name, tmp_path):
    model = build(name, seed=1)
    model(images(name))  # moves the running statistics away from their start
    model.eval()
    trained_keys = set(model.state_dict())
    assert trained_keys == set(model.train().state_dict())
    save_file(model.state_dict(), tmp_path / "weights.safetensors")

    loaded = build(name, seed=2, weights=tmp_path / "weights.safetensors").eval()
    late = build(name, seed=3).eval()
    late.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, other = model.eval()(images(name)), build(name, seed=2).eval()(images(name))
        assert not torch.equal(other, expected)
        assert torch.equal(loaded(images(name)), expected)
        assert torch.equal(late(images(name)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_seed_fixes_the_initial_weights(name):
    first, again, other = (build(name, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_exports_or_says_why_not(name):
    if model_info(name).export:
        assert model_info(name).export.strip()
        return
    model, x = build(name).eval(), images(name)
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_registry_facts(name):
    info = model_info(name)
    assert info.precision in ("32-true", "bf16-mixed")
    assert name in list_models(info.family)
    assert all(info.takes_size(legal_size(name, size)) for size in (1, 64, 75, 149, 150))
    assert build(name, in_chans=2)(images(name).repeat(1, 2, 1, 1)).shape == (2, OUTPUTS)


def test_patches_tile_the_image():
    sizes = [size for size in range(32, 257) if patch_size(size)]
    assert all(size % patch_size(size) == 0 for size in sizes)
    assert {64, 75, 100, 150, 224} <= set(sizes)
    assert patch_size(224) == 16
    assert 149 not in sizes, "149 is prime"


def test_unknown_names():
    with pytest.raises(InputError, match="did you mean resnet18"):
        create_model("resnet81", 3, 64)
    with pytest.raises(InputError, match="convolutional"):
        list_models("convolution")


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [("vit_tiny", 149, "147 or 150"), ("c8_steerable", 64, "61 or 65"), ("small_cnn", 3, "to 16")],
)
def test_illegal_size_names_the_nearest(name, size, near):
    with pytest.raises(InputError, match=near):
        create_model(name, 3, size)


@pytest.mark.parametrize(
    ("outputs", "size", "chans"), [(0, 64, 1), (3, -64, 1), (3, 64, 0), (3, 64.0, 1), (3, 64, True)]
)
def test_counts_must_be_positive_whole_numbers(outputs, size, chans):
    with pytest.raises(InputError, match="whole number"):
        create_model("small_cnn", outputs, size, chans)


def test_bad_weights(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        build("small_cnn", weights=tmp_path / "absent.safetensors")

    opened = tmp_path / "opened"
    bomb = type("Bomb", (), {"__reduce__": lambda self: (open, (str(opened), "w"))})()
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(bomb))
    with pytest.raises(InputError, match="pickle"):
        build("small_cnn", weights=tmp_path / "weights.pt")
    assert not opened.exists(), "the pickle was executed"

    state = build("small_cnn").state_dict()
    for spoil in ({"head.bias": torch.zeros(7)}, {"extra": torch.zeros(1)}):
        save_file(state | spoil, tmp_path / "foreign.safetensors")
        with pytest.raises(InputError, match=next(iter(spoil))):
            build("small_cnn", weights=tmp_path / "foreign.safetensors")


def test_imagenet_weights_absent_or_offline(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no ImageNet weights.*resnet18"):
        build("small_cnn", weights="imagenet")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="could not be fetched"):
        build("resnet18", weights="imagenet")


def test_listing_models_loads_no_model_library():
    heavy = "import sys, lenslib.models; print({'timm', 'e2cnn', 'vit_pytorch'} & set(sys.modules))"
    listed = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert listed.stdout.strip() == "set()"
