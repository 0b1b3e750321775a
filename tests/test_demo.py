"""The demo: what it says of a frame, and its page in a real browser."""

import gc

import numpy as np
import psutil
import pytest
import torch

from lenslib.allocation import nothing_kept
from lenslib.errors import InputError
from lenslib.recipe import load_recipe
from lenslib.validation import load_validation

pytest.importorskip("gradio", reason="needs the extra `demo`")
demo = pytest.importorskip("lenslib.demo")
demo_page = pytest.importorskip("lenslib.demo_page")
NAME = "classification/deeplense_1/polar_cnn"


@pytest.fixture(scope="module")
def subject():
    return demo.load_subject(NAME, templates=96)


@pytest.fixture(scope="module")
def batch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lenslib.recipe.PER_CLASS", 4)
        return load_recipe("deeplense_1").sample(12, seed=2**31 + 5)


def test_frames_of_its_recipe_are_told_apart_and_others_doubted(subject, batch):
    answers = [subject.judge(image[None]) for image in batch.images.numpy()]
    likeliest = [max(answer.classes, key=answer.classes.get) for answer in answers]
    right = [name == batch.recipe.classes[label] for name, label in zip(likeliest, batch.labels, strict=True)]
    assert sum(right) >= 10
    assert sum(bool(answer.warning) for answer in answers) <= 2
    noise = torch.randn(1, 1, 150, 150, generator=torch.Generator().manual_seed(0)).numpy()
    assert "Unlike" in subject.judge(noise).warning


def test_what_is_dark_already_hides_nothing(subject, batch):
    found = subject.attribution(batch.images.numpy()[:1])
    assert found.shape == (150, 150)
    assert np.abs(found[:20, :20]).max() < 0.1  # the network sees the central 96 pixels
    assert np.abs(found).max() <= 1


def test_the_noise_is_that_of_the_edge():
    sky = (
        torch.randn(2, 1, 150, 150, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 5.0])[:, None, None, None]
    )
    sky[:, :, 60:90, 60:90] += 100
    found = demo.edge_noise(sky)
    np.testing.assert_allclose(found[:, 0, 0, 0], [1, 5], rtol=0.05)
    photons = demo.edge_noise(sky, photons=4.0)
    assert float(photons[0, 0, 75, 75]) == pytest.approx((1 + 100 / 4) ** 0.5, rel=0.05)
    with pytest.raises(InputError, match="no noise"):
        demo.edge_noise(torch.zeros(1, 1, 20, 20))


@pytest.fixture(scope="module")
def address():
    page = demo_page.build([NAME])
    _, url, _ = page.queue().launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    yield url
    page.close()


@pytest.fixture
def tab(chromium, address):
    tab, asked, said = chromium.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    tab.goto(address)
    tab.wait_for_selector("#frame input[type=file]", state="attached")
    yield tab
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert said == []
    tab.close()


def drop(tab, path):
    tab.locator("#frame input[type=file]").set_input_files(path)


def test_a_dropped_frame_gets_probabilities_and_a_fit(tab, batch, tmp_path):
    np.save(tmp_path / "frame.npy", batch.images[0])
    drop(tab, tmp_path / "frame.npy")
    tab.wait_for_function("/no sub|no_sub/.test(document.querySelector('#classes').innerText)", timeout=60_000)
    shares = tab.locator("#classes").inner_text()
    assert sum(int(part.removesuffix("%")) for part in shares.split() if part.endswith("%")) == pytest.approx(
        100, abs=2
    )
    tab.locator("#exposure input").fill("0.5")
    tab.click("#fit")
    tab.wait_for_function("document.querySelector('#fitted').innerText.includes('Einstein radius')", timeout=120_000)
    assert "arcsec" in tab.locator("#fitted").inner_text()


def test_the_einstein_radius_is_the_one_drawn(subject, batch):
    found = subject.measure(batch.images.numpy()[:1], demo.photons_of(batch)[0])
    assert found.radius[0] == pytest.approx(float(batch.params["lens_theta_E"][0]), abs=0.02)
    assert found.radius[1] < found.radius[0] < found.radius[2]
    assert "exposure" not in found.words
    assert "exposure" in subject.measure(batch.images.numpy()[:1]).words


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.npy", b"\x93NUMPY\x01\x00 broken", "broken.npy"),
        ("small.npy", None, "150 x 150"),
        ("text.png", b"no picture", "whole PNG"),
    ],
)
def test_a_broken_file_is_named(tab, tmp_path, name, content, said):
    path = tmp_path / name
    if content is None:
        np.save(path, np.random.default_rng(0).normal(size=(64, 64)))
    else:
        path.write_bytes(content)
    drop(tab, path)
    tab.wait_for_function(f"document.querySelector('#words').innerText.includes({said!r})", timeout=60_000)
    assert "Traceback" not in tab.content()


def test_a_folder_to_host_has_all_that_the_page_needs(tmp_path):
    folder = demo_page.write_space([NAME], tmp_path / "space")
    (weights,) = folder.rglob("weights.safetensors")
    assert load_validation(weights) is not None
    assert weights.with_suffix(".onnx").is_file()
    assert (folder / "lenslib/demo_page.py").is_file()
    assert "gradio" in (folder / "requirements.txt").read_text()
    with pytest.raises(InputError, match="not an empty folder"):
        demo_page.write_space([NAME], folder)


def test_fifty_requests_leave_memory_as_it_was(subject, batch, tmp_path, monkeypatch):
    """Through all that one request does; the first ones fill what is kept for good."""
    monkeypatch.setattr(demo, "STRIDE", 0.1)  # still more windows than go through the network at once
    images = batch.images.numpy()

    def request(k: int) -> None:
        np.save(tmp_path / "frame.npy", images[k % len(images)])
        image = demo_page._read(subject, str(tmp_path / "frame.npy"))
        answer = subject.judge(image)
        demo_page._attribution(subject, image, answer)

    def held() -> int:
        gc.collect()
        with nothing_kept():
            return psutil.Process().memory_info().rss

    for k in range(10):
        request(k)
    before = held()
    for k in range(50):
        request(k)
    assert held() - before < 64 << 20
