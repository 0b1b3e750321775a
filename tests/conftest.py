"""What several test files share: an uncompiled renderer (compiling takes longer than a test) and small data sets."""

import shutil

import numpy as np
import pytest
import torch

from lenslib import information, roulette_camera, simulate
from lenslib.dataset import write_dataset
from lenslib.recipe import load_recipe


def pytest_xdist_make_scheduler(config, log):
    """A file goes to one worker, and the files that share a run of the workflow to the same, which runs it once."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "workflow" if file.endswith(("test_workflow.py", "test_browser.py")) else file

    return Files(config, log)


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window; without one, or without playwright to drive it, the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    if not (path := next(filter(None, map(shutil.which, names)), None)):
        pytest.skip("no Chromium on this computer (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


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
def small_matched():
    """matched_hst on few, large pixels at a high signal-to-noise: quick to fit. Takes more changes."""
    small = {
        "instrument.pixels": 40,
        "instrument.pixel_scale": 0.12,
        "instrument.psf": {"gaussians": [{"fwhm": 0.15}]},
        "instrument.noise.peak_snr": 40.0,
    }
    return lambda changes: load_recipe("matched_hst", small | changes)


@pytest.fixture(scope="session")
def training_data(small_recipe, tmp_path_factory):
    return write_dataset(small_recipe, 200, 0, tmp_path_factory.mktemp("data") / "train", progress=False)


@pytest.fixture(scope="session")
def test_data(small_recipe, tmp_path_factory):
    return write_dataset(small_recipe, 100, 1, tmp_path_factory.mktemp("data") / "test", progress=False)


@pytest.fixture(scope="session")
def galaxy_pictures(tmp_path_factory):
    """A folder of three drawn galaxies in colour: clumps on a grey sky."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("galaxies"), np.random.default_rng(0)
    y, x = np.mgrid[:128, :128] - 63.5
    for k in range(3):
        sky = np.full((128, 128, 3), 4.0)
        for centre in rng.normal(0, 14, (7, 2)):
            clump = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * rng.uniform(3, 8) ** 2))
            sky += clump[..., None] * rng.uniform(20, 80, 3)
        Image.fromarray(sky.clip(0, 255).astype(np.uint8)).save(folder / f"galaxy{k}.png")
    return folder


@pytest.fixture(scope="session")
def shipped_recipe(galaxy_pictures):
    """A recipe of the library by name, with drawn galaxies where it takes its sources from pictures."""

    def load(name: str, overrides: dict | None = None):
        pictures = {"source.folder": str(galaxy_pictures), "source.only": None} if name == "deeplense_4" else {}
        return load_recipe(name, pictures | (overrides or {}))

    return load


@pytest.fixture
def run(capsys):
    """Runs a command and returns (exit code, standard output, lines of standard error)."""

    from lenslib.cli import main

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err.splitlines()

    return call


@pytest.fixture(scope="session")
def frame_view():
    """A frame of 50 x 50 pixels without arcs, seen through a 1 x 1 kernel: `frame_view(noise=0.01)`."""
    from lenslib.frame_views import View

    def make(kernel=None, noise=0.004, mask=None, grain=None):
        blank, none = torch.zeros(1, 50, 50), torch.zeros(1, 50, 50, dtype=torch.bool)
        kernel = np.ones((1, 1)) if kernel is None else kernel
        grain = np.pad(np.ones((1, 1)), 3) if grain is None else grain
        noise = torch.full_like(blank, noise)
        return View("simulated", blank, noise, none if mask is None else mask, kernel / kernel.sum(), 2200.0, grain)

    return make
