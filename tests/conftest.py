"""What several test files share: an uncompiled renderer (compiling takes longer than a test) and small data sets."""

import pytest
import torch

from lenslib import information, roulette_camera, simulate
from lenslib.dataset import write_dataset
from lenslib.recipe import load_recipe


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels():
    """Every test in this process renders uncompiled; the value is what `compiled_renderer` puts back."""
    compiled = simulate._kernels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "_kernels", lambda device: simulate.EAGER)
        patch.setattr(information, "_kernels", lambda: (information._light_and_slopes, information.convolve))
        patch.setattr(roulette_camera, "_kernel", lambda device, eager: roulette_camera._levels)
        yield compiled


@pytest.fixture
def compiled_renderer(compiled_kernels, monkeypatch):
    monkeypatch.setattr(simulate, "_kernels", compiled_kernels)


@pytest.fixture
def threads():
    """Sets the number of threads for one test: `threads(1)`."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_recipe():
    """deeplense_1 on few, large pixels: the same physics at a hundredth of the cost."""
    return load_recipe("deeplense_1", {"instrument.pixels": 32, "instrument.pixel_scale": 0.15})


@pytest.fixture(scope="session")
def training_data(small_recipe, tmp_path_factory):
    return write_dataset(small_recipe, 200, 0, tmp_path_factory.mktemp("data") / "train", progress=False)


@pytest.fixture(scope="session")
def test_data(small_recipe, tmp_path_factory):
    return write_dataset(small_recipe, 100, 1, tmp_path_factory.mktemp("data") / "test", progress=False)
