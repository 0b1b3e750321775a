"""A stream: the images that a folder of the same seed holds, made while others are in use, none of them twice."""

import hashlib
import threading

import pytest
import torch

from lenslib.classification import train_classifier
from lenslib.errors import InputError
from lenslib.stream import Stream, _ahead
from lenslib.training import Settings


def _epochs(stream, epochs, batch_size=32):
    """Images and labels of the first epochs."""
    batches = [batch for epoch in range(epochs) for batch in stream.batches(epoch, batch_size)]
    return tuple(torch.cat(part) for part in zip(*batches, strict=True))


def _digests(images):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


def test_a_stream_is_the_folder_of_the_same_seed(small_recipe, training_data):
    # 70 images an epoch: the borders of epochs and of the recipe's chunks of 96 do not meet
    stream = Stream(small_recipe, 70, seed=training_data.seed, image_size=24, crop=28, device="cpu")
    images, labels = _epochs(stream, 2)
    expected, expected_labels = training_data.prepared(24, slice(0, 140), crop=28)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert torch.equal(labels, expected_labels)


def test_no_image_is_shown_twice(small_recipe):
    stream = Stream(small_recipe, 100, image_size=32, device="cpu")
    shown = _digests(_epochs(stream, 3)[0]) + _digests(stream.validation(150)[0])
    assert len(set(shown)) == len(shown) == 450


def test_the_stream_depends_on_its_seed_alone(small_recipe):
    one, other = (Stream(small_recipe, 110, seed=4, image_size=32, device="cpu") for _ in range(2))
    images, labels = _epochs(one, 2)
    # neither on the size of a batch nor on what was drawn before
    again, labels_again = _epochs(other, 2, batch_size=7)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    second = torch.cat([batch for batch, _ in Stream(small_recipe, 110, seed=4, image_size=32).batches(1, 50)])
    assert torch.equal(second.cpu(), images[110:])
    differs = Stream(small_recipe, 110, seed=5, image_size=32, device="cpu")
    assert not set(_digests(_epochs(differs, 1)[0])) & set(_digests(images))
    assert one.digest == other.digest != differs.digest


@pytest.mark.parametrize(("batch_size", "sizes"), [(32, [32, 32, 32, 4]), (50, [50, 50]), (300, [100])])
def test_batches_are_whole_but_for_the_last(small_recipe, batch_size, sizes):
    stream = Stream(small_recipe, 100, image_size=16, device="cpu")
    batches = list(stream.batches(0, batch_size))
    assert [tuple(images.shape) for images, _ in batches] == [(size, 1, 16, 16) for size in sizes]
    assert [len(labels) for _, labels in batches] == sizes
    assert len(stream) == 100


def test_the_next_is_made_while_the_present_is_in_use():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    ahead = _ahead(items())
    assert next(ahead) == 1
    assert second.wait(30)
    assert list(ahead) == [2]


def test_a_failure_of_the_simulator_reaches_the_loop():
    def items():
        yield 1
        raise InputError("no such thing")

    ahead = _ahead(items())
    assert next(ahead) == 1
    with pytest.raises(InputError, match="no such thing"):
        next(ahead)


def test_a_network_trains_on_a_stream(small_recipe, monkeypatch):
    shown, judged = [], []
    monkeypatch.setattr("lenslib.training.augmented", lambda values, *_: shown.append(values) or values)
    monkeypatch.setattr("lenslib.classification.macro_auc", lambda labels, scores: judged.append(labels) or len(judged))
    settings = Settings(epochs=2, batch_size=40)
    trained = train_classifier(Stream(small_recipe, 100), "small_cnn", 24, settings, device="cpu", crop=30)
    # what it saw, labels apart, are the first 200 images, as networks see them, and 300 of another seed judged it
    assert torch.equal(torch.cat(shown[::2]), _epochs(Stream(small_recipe, 100, 0, 24, 30, "cpu"), 2)[0])
    assert [len(labels) for labels in judged] == [300, 300]
    assert trained.best["epoch"] == 2
    assert all(row["train_loss"] < 3 for row in trained.history)


@pytest.mark.parametrize(
    "given",
    [
        {"count": 0},
        {"count": -3},
        {"count": 1.5},
        {"count": True},
        {"seed": -1},
        {"validation_seed": 0.5},
        {"seed": 3},
        {"image_size": 0},
        {"crop": 31},
        {"crop": 34},
    ],
)
def test_bad_streams_are_named(small_recipe, given):
    with pytest.raises(InputError, match=next(iter(given))) as error:
        Stream(**({"recipe": small_recipe, "count": 3} | given))
    assert "\n" not in str(error.value)
