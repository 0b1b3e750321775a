"""Images: against lenstronomy, the same whatever the batch, and with the noise that the instrument states."""

import time
from functools import lru_cache

import numpy as np
import pytest
import torch

from lenslib import compilation, simulate
from lenslib.errors import InputError
from lenslib.instruments import DeepLenseNoise, NumpyNoise, PhotonNoise, TorchNoise
from lenslib.interop import lenstronomy_image
from lenslib.optics import macro_deflection, pixel_grid
from lenslib.recipe import list_recipes, load_recipe
from lenslib.simulate import render, sample_chunks

SCENES_A_CLASS = 20


@pytest.fixture
def small_chunks(monkeypatch):
    """Of eight images a class: a chunk is drawn whole, however few of it are asked for."""
    monkeypatch.setattr("lenslib.recipe.PER_CLASS", 8)


@pytest.fixture(scope="module")
def clean_chunk(shipped_recipe):
    """The first chunk of a shipped recipe without noise, drawn once."""
    # hundreds of halos take a minute uncompiled; forty are drawn by the same code
    fewer = {f"substructure.populations.{name}.count": 40 for name in ("cdm", "axion")}
    overrides = {"deeplense_4": fewer}
    return lru_cache(lambda name: shipped_recipe(name, overrides.get(name)).sample(96, seed=123, noise=False))


def _scenes_a_class(name: str, label_name: str) -> int:
    # what takes lenstronomy a second an image is shown on fewer: strings as a thousand masses, hundreds of halos
    return 5 if name == "deeplense_4" or (name.startswith("matched") and label_name == "vortex") else SCENES_A_CLASS


def test_a_cusp_in_a_pixel_is_lenstronomys():
    """A ray that all but meets the centre of a source of n = 1.8, whose brightness falls steeply from there."""
    steep = {"value": 1.8}
    recipe = load_recipe("matched_hst", {"source.n_sersic": steep, "instrument.psf": {"gaussians": [{"fwhm": 0.1}]}})
    batch = recipe.sample(1, seed=0, noise=False)
    params = {name: value.clone() for name, value in batch.params.items()}
    x, y = pixel_grid(recipe.instrument.pixels, recipe.instrument.pixel_scale)
    alpha = macro_deflection(params, x, y, recipe.lens.profile)
    # 1e-5 arcsec beside the ray of one pixel of an arc
    params["source_center_x"] = (x - alpha[0])[:, 50, 70] + 1e-5
    params["source_center_y"] = (y - alpha[1])[:, 50, 70]
    nothing = {name: torch.zeros_like(value) for name, value in batch.substructure.items()}
    smooth = simulate.Batch(render(recipe, params), batch.labels, params, nothing, recipe)
    theirs = lenstronomy_image(smooth.to_lenstronomy(0))
    np.testing.assert_allclose(smooth.images[0, 0], theirs, rtol=0, atol=1e-3 * theirs.max())


@pytest.mark.parametrize(
    ("name", "label"),
    [(name, label) for name in list_recipes("lens") for label in range(len(load_recipe(name).classes))],
)
def test_noise_free_images_are_lenstronomys(clean_chunk, name, label):
    batch = clean_chunk(name)
    recipe, label_name = batch.recipe, batch.recipe.classes[label]
    for i in (batch.labels == label).nonzero()[: _scenes_a_class(name, label_name), 0].tolist():
        # every third image in each of its bands
        for channel in range(recipe.channels if i % 3 == 0 else 1):
            scene = batch.to_lenstronomy(i, channel)
            # lenstronomy takes the sky beyond the edge as dark where the kernel is one of pixels, else as the edge
            edge = len(scene.kwargs_psf.get("kernel_point_source", [])) // 2
            inner = slice(edge, recipe.instrument.pixels - edge)
            theirs, ours = lenstronomy_image(scene)[inner, inner], batch.images[i, channel, inner, inner].numpy()
            near = 1e-3 * theirs.max()
            if len(scene.lens_model_list) < 900:
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=near)
                continue
            # a pixel that a string passes within a thousandth of its length sees the masses that stand for it
            off = np.abs(ours - theirs)
            assert (off > near).mean() < 1e-3
            assert off.max() < 10 * near


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
        "vortex": {"kind": "vortex", "length": 1.0, "center": {"x": 0.5, "y": 0.5}, "angle": 0.3}
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

    def compiler(graph, inputs, options):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compilation, "_compile", compiler)
    kernels = compiled_kernels.__wrapped__("cpu")
    monkeypatch.setattr(simulate, "_kernels", lambda device: kernels)
    torch.testing.assert_close(small_recipe.sample(96, noise=False).images, expected.images)
    # deflection by 25 and by 100 points; rays and light of three classes, point-spread function
    assert len(graphs) == 4


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_is_told_once_of_long_compilation(terminal, monkeypatch, capsys):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, config_patches: time.sleep(0.3))
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(compilation, "_LONG", 0.01)
    compilation._say_that_it_compiles.cache_clear()
    for _ in range(2):
        compilation._compile(None, [], {})
    said = capsys.readouterr()
    assert said.err.count("compile (once") == terminal
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


NOISY = [name for name in list_recipes("lens") if load_recipe(name).instrument.noise.kind != "none"]


@pytest.mark.parametrize("name", NOISY)
def test_no_shipped_data_set_is_less_noisy_than_its_background(name, shipped_recipe, small_chunks):
    recipe = shipped_recipe(name, {"instrument.pixels": 40, "instrument.divide_by_peak": False})
    noisy, clean = recipe.sample(20, seed=4), recipe.sample(20, seed=4, noise=False)
    # DeepLenseSim's images are counts: bring them back to flux
    flux = (noisy.images * clean.images).sum((1, 2, 3)) / clean.images.square().sum((1, 2, 3))
    residual = noisy.images / flux[:, None, None, None] - clean.images
    # 1600 pixels tell a deviation to 2 per cent; clipped counts lose up to a third of it
    assert (residual.std((2, 3)) > 0.6 * clean.params["background_rms"][:, None]).all()


def test_one_word_turns_the_noise_of_model_ii_on(small_chunks):
    quiet, loud = (load_recipe("deeplense_2", {"instrument.noise.kind": kind}) for kind in ("none", "photon"))
    images = quiet.sample(3, seed=1)
    # added to itself, where noise should be
    assert torch.equal(images.images, 2 * quiet.sample(3, seed=1, noise=False).images)
    single = load_recipe("deeplense_2", {"instrument.noise.doubled": False}).sample(3, seed=1)
    assert torch.equal(single.images, quiet.sample(3, seed=1, noise=False).images)
    assert not {"background_rms", "exposure_time"} & images.params.keys()
    noisy = loud.sample(3, seed=1)
    # lenstronomy's background: 4 exposures of 565 s, read noise 4.2, sky 22.35 at zero point 24, pixels of 0.101 arcsec
    sky = 10 ** (-0.4 * (22.35 - 24.0)) * 0.101**2
    background = np.sqrt(4 * 4.2**2 + sky * 2260) / 2260
    assert noisy.params["background_rms"].tolist() == pytest.approx([background] * 3, rel=2e-3)
    dark = single.images < 1e-3 * background
    assert (noisy.images - single.images)[dark].std() == pytest.approx(background, rel=0.1)
    bright = load_recipe("deeplense_2", {"instrument.noise.kind": "photon", "instrument.noise.peak_snr": 30.0})
    assert bright.sample(3, seed=1).params["peak_snr"].tolist() == [30.0] * 3


@pytest.mark.parametrize(("again", "draws"), [(True, 2), (False, 1)])
def test_the_peak_signal_to_noise_counts_every_draw_of_photons(again, draws, small_chunks):
    noise = {"instrument.noise.peak_snr": 20.0, "instrument.noise.poisson_again": again, "instrument.pixels": 40}
    params = load_recipe("deeplense_1", noise).sample(1, seed=2, noise=False)
    peak, time, background = float(params.images.max()), params.params["exposure_time"], params.params["background_rms"]
    assert peak / float((draws * peak / time + background**2).sqrt()) == pytest.approx(20, rel=1e-4)


def test_each_class_of_model_iv_has_the_lens_that_is_coded_for_it(shipped_recipe):
    batch = shipped_recipe("deeplense_4", {"instrument.pixels": 16}).sample(96, noise=False)
    plain = batch.labels == 0
    assert batch.params["gamma1"][plain].tolist() == [0.0] * 32
    scale = 0.634  # of a deflection for a source at 2.5 that is at 1 (tests/test_substructure.py has lenstronomy's)
    torch.testing.assert_close(batch.params["theta_E"][~plain], torch.full((64,), 1.5 * scale), rtol=2e-3, atol=0)
    torch.testing.assert_close(batch.params["gamma1"][~plain], torch.full((64,), 0.05 * scale), rtol=2e-3, atol=0)
    # 4 pi (260 km/s / c)^2 D_ls / D_s with D_ls / D_s = 0.42 at z = 0.5 and 1 is 0.82 arcsec
    assert batch.params["theta_E"][plain].mean() == pytest.approx(0.82, abs=0.05)
    assert batch.params["theta_E"][plain].std() == pytest.approx(2 * 20 / 260 * 0.82, rel=0.5)
    assert batch.images.shape[1] == 3
    noisy = shipped_recipe("deeplense_4", {"instrument.pixels": 16}).sample(8)
    assert noisy.images.amin() >= 0
    assert noisy.images.amax((1, 2, 3)).tolist() == [1.0] * 8


def test_bands_differ_by_their_colours_alone(small_chunks):
    same_psf = {f"bands.{band}.psf": None for band in "gr"}
    flat = {"source.n_sersic": 1.0, "lens_light": None}
    batch = load_recipe("example_colours", same_psf | flat).sample(4, noise=False)
    g, r, i = batch.images.unbind(1)
    torch.testing.assert_close(r, g * 10**0.08, rtol=1e-5, atol=0)
    torch.testing.assert_close(i, g * 10**0.12, rtol=1e-5, atol=0)
    assert torch.equal(
        load_recipe("example_colours").sample(4).images[:3], load_recipe("example_colours").sample(3).images
    )
