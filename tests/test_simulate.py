"""Images: against lenstronomy, the same whatever the batch, and with the noise that the instrument states."""

import time
from functools import lru_cache

import numpy as np
import pytest
import torch

from lenslib import simulate
from lenslib.errors import InputError
from lenslib.instruments import DeepLenseNoise, NumpyNoise, PhotonNoise, TorchNoise
from lenslib.interop import lenstronomy_image
from lenslib.recipe import list_recipes, load_recipe
from lenslib.simulate import sample_chunks

SCENES_A_CLASS = 20


@pytest.fixture(scope="module")
def clean_chunk():
    """The first chunk of a shipped recipe without noise, drawn once."""
    return lru_cache(lambda name: load_recipe(name).sample(96, seed=123, noise=False))


@pytest.mark.parametrize("name", list_recipes())
@pytest.mark.parametrize("label", [0, 1, 2])
def test_noise_free_images_are_lenstronomys(clean_chunk, name, label):
    recipe, batch = load_recipe(name), clean_chunk(name)
    # lenstronomy takes the sky beyond the edge as dark where the kernel is one of pixels, and as the edge otherwise
    kernel = batch.to_lenstronomy(0).kwargs_psf.get("kernel_point_source", [])
    edge = len(kernel) // 2
    inner = slice(edge, recipe.instrument.pixels - edge)
    for i in (batch.labels == label).nonzero()[:SCENES_A_CLASS, 0].tolist():
        theirs = lenstronomy_image(batch.to_lenstronomy(i))
        np.testing.assert_allclose(
            batch.images[i, 0, inner, inner], theirs[inner, inner], rtol=0, atol=1e-3 * theirs.max()
        )


def test_only_substructured_classes_hold_point_masses():
    recipe = load_recipe("deeplense_1", {"instrument.pixels": 8})
    batch = recipe.sample(96, noise=False)
    masses = (batch.substructure["theta_E"] > 0).sum(1)
    counts = {0: 0, 1: 25, 2: 100}
    assert masses.tolist() == [counts[label] for label in batch.labels.tolist()]
    assert batch.to_lenstronomy(int((batch.labels == 1).nonzero()[0, 0])).lens_model_list.count("POINT_MASS") == 25
    with pytest.raises(InputError, match="no image 96"):
        batch.to_lenstronomy(96)


def _assert_same(one, other):
    torch.testing.assert_close(vars(one)["images"], other.images, rtol=0, atol=0)
    assert torch.equal(one.labels, other.labels)
    for mine, theirs in ((one.params, other.params), (one.substructure, other.substructure)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, equal_nan=True)


def test_an_image_depends_on_recipe_seed_and_index_alone(small_recipe):
    size = small_recipe.chunk_size
    whole = small_recipe.sample(size + 10, seed=5)
    # across the border between two chunks, and one image at a time
    part = small_recipe.sample(8, seed=5, start=size - 4)
    assert torch.equal(part.images, whole.images[size - 4 : size + 4])
    for i in (0, size - 1, size, size + 9):
        one = small_recipe.sample(1, seed=5, start=i)
        assert torch.equal(one.images[0], whole.images[i])
        assert one.labels[0] == whole.labels[i]
        for name, value in one.params.items():
            assert torch.equal(value.nan_to_num(-1)[0], whole.params[name].nan_to_num(-1)[i])


def test_chunks_are_the_sample(small_recipe):
    chunks = list(sample_chunks(small_recipe, 150, seed=2, start=50))
    assert torch.equal(torch.cat([chunk.images for chunk in chunks]), small_recipe.sample(150, 2, 50).images)


def test_noise_leaves_the_scene_as_it_was(small_recipe):
    noisy, clean = small_recipe.sample(20, seed=1), small_recipe.sample(20, seed=1, noise=False)
    assert not torch.equal(noisy.images, clean.images)
    clean.images = noisy.images
    _assert_same(noisy, clean)


def test_seeds_differ(small_recipe):
    size = small_recipe.chunk_size
    # the second chunk of seed 0 is not the first of seed 1
    first, second = small_recipe.sample(2 * size, seed=0), small_recipe.sample(2 * size, seed=1)
    images = torch.cat([first.images, second.images]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 4 * size
    x = torch.cat([first.params["source_center_x"], second.params["source_center_x"]])
    assert len(x.unique()) > 4 * size - 5


VORTEX_ALONE = {
    "classes": ["vortex"],
    "instrument.pixels": 40,
    "substructure.populations": {
        "vortex": {"kind": "vortex", "points": 12, "length": 1.0, "center": {"x": 0.5, "y": 0.5}, "angle": 0.3}
    },
}


def test_threads_and_compilation_change_nothing(compiled_renderer, threads, monkeypatch):
    recipe = load_recipe("matched_hst", VORTEX_ALONE)
    threads(1)
    compiled, compiled_clean = recipe.sample(32, seed=8), recipe.sample(32, seed=8, noise=False)
    threads(2)
    _assert_same(compiled, recipe.sample(32, seed=8))
    monkeypatch.setattr(simulate, "_kernels", lambda device: simulate.EAGER)
    plain = recipe.sample(32, seed=8, noise=False)
    peaks = plain.images.amax((1, 2, 3), keepdim=True)
    assert float(((compiled_clean.images - plain.images).abs() / peaks).max()) < 1e-4
    threads(1)
    _assert_same(plain, recipe.sample(32, seed=8, noise=False))


def test_one_kernel_serves_classes_of_all_sizes(compiled_kernels, small_recipe, monkeypatch):
    expected, graphs = small_recipe.sample(96, noise=False), []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(simulate, "_compiler", compiler)
    kernels = compiled_kernels.__wrapped__("cpu")
    monkeypatch.setattr(simulate, "_kernels", lambda device: kernels)
    torch.testing.assert_close(small_recipe.sample(96, noise=False).images, expected.images)
    # deflection by 25 and by 100 points, light of three classes, point-spread function
    assert len(graphs) == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_is_told_once_of_long_compilation(terminal, monkeypatch, capsys):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, config_patches: time.sleep(0.3))
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(simulate, "_LONG", 0.01)
    simulate._say_that_it_compiles.cache_clear()
    for _ in range(2):
        simulate._compiler(None, [])
    said = capsys.readouterr()
    assert said.err.count("compile the simulator") == terminal
    assert not said.out


@pytest.mark.parametrize(
    "given",
    [{"count": 0}, {"count": -3}, {"count": 1.5}, {"count": True}, {"seed": -1}, {"seed": 0.5}, {"start": -1}],
)
def test_bad_counts_and_seeds_are_named(small_recipe, given):
    with pytest.raises(InputError, match=next(iter(given))):
        small_recipe.sample(**({"count": 3} | given))


def _sources():
    return [NumpyNoise(np.random.default_rng(3)), TorchNoise(3, "cpu")]


DRAWS = 40_000


def _draws(noise, images, source, **params):
    """Mean and variance of each pixel over many exposures, and five times their sampling errors."""
    params = {name: torch.full((DRAWS,), value) for name, value in params.items()}
    drawn = noise.add(images.expand(DRAWS, -1, -1), params, source).double()
    variance = drawn.var(0)
    return drawn.mean(0), variance, 5 * (variance / DRAWS).sqrt(), 5 * variance * np.sqrt(2.2 / DRAWS)


@pytest.mark.parametrize("source", _sources(), ids=["numpy", "torch"])
@pytest.mark.parametrize("poisson_again", [False, True])
def test_deeplense_noise_has_the_stated_moments(source, poisson_again):
    images, time, background = torch.tensor([[0.3, 0.8], [1.5, 4.0]]), 1000.0, 0.01
    noise = DeepLenseNoise(kind="deeplense", background_rms=background, exposure_time=time, poisson_again=poisson_again)
    mean, variance, mean_error, variance_error = _draws(
        noise, images, source, background_rms=background, exposure_time=time
    )
    expected = time**2 * (images / time + background**2)
    if poisson_again:
        expected = expected + images * time
    assert ((mean - images * time).abs() < mean_error).all()
    assert ((variance - expected).abs() < variance_error).all()


@pytest.mark.parametrize("source", _sources(), ids=["numpy", "torch"])
def test_photon_noise_has_the_stated_moments(source):
    images, time, background = torch.tensor([[0.0, 0.02], [0.1, 0.4]]), 2300.0, 0.008
    noise = PhotonNoise(kind="photon", background_rms=background, exposure_time=time, peak_snr=20.0)
    mean, variance, mean_error, variance_error = _draws(
        noise, images, source, background_rms=background, exposure_time=time
    )
    assert ((mean - images).abs() < mean_error).all()
    assert ((variance - (images / time + background**2)).abs() < variance_error).all()


def test_matched_hst_reaches_its_peak_signal_to_noise(clean_chunk):
    batch = clean_chunk("matched_hst")
    peak, params = batch.images.amax((1, 2, 3)), batch.params
    snr = peak / (peak / params["exposure_time"] + params["background_rms"] ** 2).sqrt()
    torch.testing.assert_close(snr, params["peak_snr"], rtol=1e-4, atol=0)
    # and `amp` is that of the image as it is
    i = int((batch.labels == 0).nonzero()[0, 0])
    assert lenstronomy_image(batch.to_lenstronomy(i)).max() == pytest.approx(float(peak[i]), rel=1e-3)


NOISY = [name for name in list_recipes() if load_recipe(name).instrument.noise.kind != "none"]


@pytest.mark.parametrize("name", NOISY)
def test_no_shipped_data_set_is_less_noisy_than_its_background(name):
    recipe = load_recipe(name, {"instrument.pixels": 40})
    noisy, clean = recipe.sample(20, seed=4), recipe.sample(20, seed=4, noise=False)
    # DeepLenseSim's images are counts: bring them back to flux
    flux = (noisy.images * clean.images).sum((1, 2, 3)) / clean.images.square().sum((1, 2, 3))
    residual = noisy.images / flux[:, None, None, None] - clean.images
    # 1600 pixels tell a deviation to 2 per cent; clipped counts lose up to a third of it
    assert (residual.std((1, 2, 3)) > 0.6 * clean.params["background_rms"]).all()
