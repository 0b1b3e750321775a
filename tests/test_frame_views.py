"""Frames as a recipe draws them: noise of the right grain, arcs through the frame's own kernel, labels that turn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve

from lenslib.augmentation import turn_images
from lenslib.errors import InputError
from lenslib.frame_network import empty_like, scaled, train_finder, train_lens_network
from lenslib.frame_views import (
    correlated_noise,
    correlation,
    draw_like,
    frames_shown,
    like_frames,
    shown,
    stand_ins,
    through,
    twins,
    view_of,
    without_arcs,
)
from lenslib.frames import Frame
from lenslib.lens_light import LensLight
from lenslib.recipe import changed
from lenslib.settings import Settings
from lenslib.simulate import render

EXPOSURE = 2200.0
GRAIN = np.zeros((7, 7))
GRAIN[3, 3], GRAIN[3, 2], GRAIN[3, 4] = 1, 0.3, 0.3


@pytest.fixture(scope="module")
def recipe():
    return like_frames()


def test_noise_has_the_correlation_it_was_made_with():
    noise = correlated_noise(GRAIN, 200, 40, np.random.default_rng(1))
    assert noise.std() == pytest.approx(1, abs=0.01)
    everywhere = np.ones((40, 40), bool)
    # of normal deviates cut at three deviations, correlations are a little smaller
    measured = np.mean([correlation(one, everywhere) for one in noise], axis=0)
    np.testing.assert_allclose(measured, GRAIN, atol=0.02)
    assert measured[3, 3] == 1


def test_what_no_noise_can_have_is_brought_to_what_it_can():
    impossible = np.full((7, 7), 0.9)
    impossible[3, 3] = 1
    noise = correlated_noise(impossible, 20, 40, np.random.default_rng(1))
    assert np.isfinite(noise).all()
    assert noise.std() == pytest.approx(1, abs=0.1)


def test_a_view_keeps_the_light_and_the_noise_of_its_frame(recipe):
    y, x = np.indices((110, 110)) - 54.5
    arcs = 0.3 * np.exp(-0.5 * ((np.hypot(x, y) - 24) / 3) ** 2)
    noise = np.sqrt(0.006**2 + arcs / EXPOSURE)
    image = arcs + noise * np.random.default_rng(2).standard_normal(arcs.shape)
    time = np.full(arcs.shape, EXPOSURE)
    frame = Frame("LENS", image, noise, np.ones((1, 1)), 0.05, 0.05 * np.eye(2), 0.006, time, (54.5, 54.5))
    whole = np.ones(image.shape, bool)
    light = LensLight(frame.image, np.zeros(image.shape), (54.5, 54.5), (0.0, 0.0), whole, ~whole)
    view = view_of(frame, light, recipe)
    counts = ~view.mask[0].numpy()
    expected = arcs[5:105, 5:105].reshape(50, 2, 50, 2).sum((1, 3))
    pulls = (view.image[0].numpy() - expected)[counts] / view.own_deviation[0, 0].numpy()[counts]
    # the pixels of a frame that was not drizzled are independent, and the variance is half as large as allowed for
    assert pulls.std() == pytest.approx(1.5**-0.5, rel=0.05)
    assert abs(pulls.mean()) < 0.1
    assert not counts[24:26, 24:26].any()
    assert not counts[0, 0]
    with pytest.raises(InputError, match="do not make up"):
        view_of(frame, light, changed(recipe, {"instrument.pixel_scale": 0.07}))


def test_lenses_are_drawn_through_the_kernel_and_with_the_noise_of_their_frame(recipe, frame_view):
    kernel = np.outer([0.1, 0.3, 0.6], [0.2, 0.2, 0.6])
    views = [frame_view(noise=0.004), frame_view(kernel, noise=0.02)]
    images, params, which = draw_like(recipe, views, 64, seed=3)
    assert which.tolist() == [0, 1] * 32
    clean = render(through(views[0], recipe), params)
    np.testing.assert_array_equal(params["background_rms"].unique(), np.float32([0.004, 0.02]))
    for k, view in enumerate(views):
        mine = which == k
        blurred = fftconvolve(clean[mine][:, 0].numpy(), view.kernel[None], "same", axes=(1, 2))
        pulls = (images[mine][:, 0].numpy() - blurred) / view.deviation(torch.from_numpy(blurred)[:, None])[
            :, 0
        ].numpy()
        # but at the rim, where the sky beyond is another
        assert pulls[:, 2:-2, 2:-2].std() == pytest.approx(1, abs=0.02)
        assert abs(pulls[:, 2:-2, 2:-2].mean()) < 0.03
    again = draw_like(recipe, views, 64, seed=3)[0]
    assert torch.equal(images, again)
    assert not torch.equal(images, draw_like(recipe, views, 64, seed=4)[0])


def test_a_source_that_nothing_lenses_keeps_its_flux(recipe, frame_view):
    views = [frame_view(noise=1e-4)]
    images, params, _ = draw_like(recipe, views, 32, seed=3, lensed=False)
    radius = torch.hypot(params["source_center_x"], params["source_center_y"])
    assert 0.5 <= float(radius.min())
    assert float(radius.max()) <= 2
    # an image of a source is that source: its brightest pixel is where it was put
    x, y = (np.indices((50, 50))[::-1] - 24.5) * 0.1
    best = images[:, 0].flatten(1).argmax(1).numpy()
    compact = (params["clump0_amp"] < 3).numpy() & (params["R_sersic"] > 0.06).numpy()
    apart = np.hypot(
        x.ravel()[best] - params["source_center_x"].numpy(), y.ravel()[best] - params["source_center_y"].numpy()
    )
    assert np.median(apart[compact]) < 0.15


def test_what_does_not_count_is_not_shown(recipe, frame_view):
    mask = torch.zeros(1, 50, 50, dtype=bool)
    mask[0, :10] = True
    views = [frame_view(mask=mask), frame_view()]
    images, _, which = draw_like(recipe, views, 64, seed=3)
    seen = shown(views, images, which)
    assert (seen[which == 0][:, 0, :10] == 0).all()
    assert (seen[which == 1][:, 0, :10] != 0).all()
    assert frames_shown(views).shape == (2, 1, 50, 50)


def test_targets_return_and_turn_with_their_images(recipe, frame_view):
    _, params, _ = draw_like(recipe, [frame_view()], 32, seed=3)
    flat = {name: value.clone() for name, value in params.items()}
    for name in ("lens_center_x", "lens_center_y", "source_e1", "source_e2"):
        flat[name] = torch.zeros(32)
    flat = {name: value for name, value in flat.items() if not name.startswith("clump")}
    labels = {name: value.numpy() for name, value in flat.items()}
    targets = scaled(labels)
    encoded = torch.from_numpy(targets.encode(labels))
    for name, value in targets.decode(encoded).items():
        np.testing.assert_allclose(value, labels[name], rtol=1e-5, atol=1e-6)
    images = render(through(frame_view(), recipe), flat)
    for kind in range(8):
        turned = targets.decode(targets.turned(encoded, kind))
        other = flat | {name: torch.from_numpy(value).float() for name, value in turned.items()}
        expected = turn_images(images, kind)
        drawn = render(through(frame_view(), recipe), other)
        torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3 * float(images.max()))


def test_networks_train_and_answer(recipe, frame_view):
    views = [frame_view(), frame_view(noise=0.01)]
    settings = Settings(epochs=1, batch_size=16, learning_rate=2e-3)
    network = train_lens_network(recipe, views, 64, 1, settings)
    found = network.estimates(frames_shown(views))
    assert all(np.isfinite(value).all() and value.shape == (2,) for value in found.values())
    assert (found["lens_theta_E"] > 0).all()
    finder = train_finder(recipe, views, 40, 1, settings)
    assert finder(frames_shown(views)).shape == (2, 2)


def test_empty_frames_have_noise_alone(frame_view):
    views = [frame_view(noise=0.01), frame_view(noise=0.02)]
    images, which = empty_like(views, 60, seed=1)
    for k, noise in enumerate((0.01, 0.02)):
        assert float(images[which == k].std()) == pytest.approx(noise, rel=0.03)
    with pytest.raises(InputError, match="nothing to draw"):
        draw_like(like_frames(), [], 5, 1)


def test_twins_keep_all_of_a_frame_but_what_it_shows(recipe, frame_view):
    views = [frame_view(noise=0.004), frame_view(noise=0.01)]
    made, truths = twins(recipe, views, 5)
    for view, twin, truth in zip(views, made, truths, strict=True):
        assert twin.noise is view.noise
        assert twin.mask is view.mask
        pulls = (twin.image - render(through(view, recipe), truth)[0]) / view.deviation(twin.image)
        assert float(pulls.std()) == pytest.approx(1, abs=0.1)


def test_frames_without_arcs_are_noise(recipe):
    views, truths = stand_ins(recipe, 3, 1)
    assert len(truths) == 3
    assert [view.name for view in views] == ["simulated 0", "simulated 1", "simulated 2"]
    for view in views:
        assert float((view.image / view.noise).max()) > 5
        empty = without_arcs(view, np.random.default_rng(1))
        pulls = (empty.image / view.noise)[~view.mask]
        # what is fainter than the noise stays
        assert float(pulls.std()) == pytest.approx(1, abs=0.15)
        assert float(pulls.max()) < 5
    untouched = without_arcs(replace(view, image=torch.zeros_like(view.image)), np.random.default_rng(1))
    assert not untouched.image.any()
