"""Weights files and image files: what is read, and what is refused without being run."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lenslib.dataset import write_dataset
from lenslib.errors import InputError
from lenslib.image_files import find_images, read_images
from lenslib.inference import classifier_metadata, load_classifier, predict_files
from lenslib.models import create_model
from lenslib.recipe import load_recipe

SIZE = 32


@pytest.fixture
def save(small_recipe, tmp_path):
    """Writes an untrained small_cnn's weights and returns (path, network); metadata can be changed."""

    def make(metadata=None):
        torch.manual_seed(0)
        network = create_model("small_cnn", 3, 24).eval()
        said = classifier_metadata("small_cnn", small_recipe, 24)
        path = tmp_path / "weights.safetensors"
        save_file(network.state_dict(), path, said | metadata if metadata is not None else None)
        return path, network

    return make


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(5, 2, (4, SIZE, SIZE)).astype(np.float32)


def test_a_saved_network_answers_as_before(save, images, test_data):
    path, network = save({})
    classifier = load_classifier(path)
    with torch.no_grad():
        # written out: antialiased resizing, then mean 0 and deviation 1
        small = torch.nn.functional.interpolate(
            torch.from_numpy(images)[:, None], (24, 24), mode="bilinear", antialias=True
        )
        small = (small - small.mean((2, 3), keepdim=True)) / small.std((2, 3), keepdim=True)
        expected = network(small).softmax(1)
    probabilities = classifier.probabilities(images[:, None])
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert classifier.classes == test_data.classes
    assert classifier.native_size == SIZE
    # in any units of brightness
    np.testing.assert_allclose(classifier.probabilities(300 * images[:, None] + 20), probabilities, atol=1e-3)


def test_weights_that_are_absent_or_pickled_are_refused(tmp_path):
    with pytest.raises(InputError, match="no weights file"):
        load_classifier(tmp_path / "weights.safetensors")
    path = tmp_path / "weights.safetensors"
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(InputError, match="not a safetensors file"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "does not say its model"),
        ({"model": "small_cn"}, "unknown model"),
        ({"image_size": "wide"}, "image_size"),
        ({"image_size": "4"}, "16 pixels or more"),
        ({"classes": "no_sub, cdm"}, "classes"),
        ({"classes": "3"}, "classes"),
        ({"classes": json.dumps(["no_sub", "cdm"])}, "weights.safetensors"),
        ({"in_chans": "-1"}, "in_chans"),
    ],
)
def test_weights_that_say_the_wrong_thing_of_themselves_are_refused(save, metadata, said):
    path, _ = save(metadata)
    with pytest.raises(InputError, match=said) as error:
        load_classifier(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.uint16, np.int64])
def test_numbers_of_any_kind_are_read(tmp_path, images, dtype):
    np.save(tmp_path / "one.npy", images[0].astype(dtype))
    np.testing.assert_array_equal(
        read_images(tmp_path / "one.npy", SIZE)[:, 0], images[:1].astype(dtype).astype(np.float32)
    )


@pytest.mark.parametrize("shape", [(4, SIZE, SIZE), (4, 1, SIZE, SIZE)])
def test_stacks_are_read(tmp_path, images, shape):
    np.save(tmp_path / "stack.npy", images.reshape(shape))
    np.testing.assert_array_equal(read_images(tmp_path / "stack.npy", SIZE)[:, 0], images)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda images: images[:, :-1], "trained on 32 x 32"),
        (lambda images: images[0, 0], "trained on 32 x 32"),
        (lambda images: np.moveaxis(images[:3], 0, -1), "trained on 32 x 32"),
        (lambda images: np.stack([images, images, images], 1), "trained on 32 x 32"),
        (lambda images: images[:0], "no image"),
        (lambda images: np.where(images == images[2, 3, 4], np.nan, images), "1 pixels that are NaN"),
        (lambda images: np.where(images > 9, np.inf, images), "NaN or infinite"),
        (lambda images: images.astype(np.float64) * 1e300, "NaN or infinite"),
        (lambda images: np.zeros_like(images), "all equal"),
        (lambda images: np.concatenate([images, np.full((1, SIZE, SIZE), 0.1, np.float32)]), "all equal"),
        (lambda images: np.full((SIZE, SIZE), 1e-3), "all equal"),
        (lambda images: images.astype(str), "not numbers"),
        (lambda images: images + 1j, "not numbers"),
    ],
)
# a warning would be a second line on the terminal
@pytest.mark.filterwarnings("error")
def test_a_file_of_something_else_is_named_and_explained(tmp_path, images, spoil, said):
    path = tmp_path / "image.npy"
    np.save(path, spoil(images))
    with pytest.raises(InputError, match=said) as error:
        read_images(path, SIZE)
    assert "image.npy" in str(error.value)
    assert "\n" not in str(error.value)


class _Trap:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["array", "bare"])
def test_a_pickle_is_refused_and_not_run(tmp_path, form):
    bait, path = tmp_path / "sprung", tmp_path / "image.npy"
    if form == "array":
        np.save(path, np.array([_Trap(bait)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(_Trap(bait)))
    with pytest.raises(InputError, match="pickled"):
        read_images(path, SIZE)
    assert not bait.exists()
    # the trap does work
    if form == "array":
        np.load(path, allow_pickle=True)
    else:
        pickle.loads(path.read_bytes())
    assert bait.exists()


def _archive(path, image):
    with open(path, "wb") as file:
        np.savez(file, image=image)


def _cut(path, image):
    np.save(path, image)
    path.write_bytes(path.read_bytes()[:-100])


def _boast(path, image):
    with open(path, "wb") as file:
        shape = (10**13, SIZE, SIZE)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


@pytest.mark.parametrize(
    "write", [_archive, _cut, _boast, lambda path, image: path.write_bytes(b""), lambda path, image: path.mkdir()]
)
def test_what_is_no_whole_npy_file_is_refused(tmp_path, images, write):
    path = tmp_path / "image.npy"
    write(path, images[0])
    with pytest.raises(InputError, match="not a whole .npy file"):
        read_images(path, SIZE)


def test_files_are_found_in_folders_in_order(tmp_path):
    for name in ("b/2.npy", "b/1.npy", "a.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "b" / "notes.txt").write_text("")
    found = find_images([tmp_path / "b", tmp_path / "a.npy"])
    assert [path.name for path in found] == ["1.npy", "2.npy", "a.npy"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        find_images([tmp_path / "empty"])


def test_one_bad_file_does_not_stop_the_others(save, tmp_path, images):
    classifier = load_classifier(save({})[0])
    np.save(tmp_path / "1.npy", images[0])
    (tmp_path / "3.npy").write_text("no array")
    np.save(tmp_path / "4.npy", images[1:])
    paths = [tmp_path / name for name in ("1.npy", "2.npy", "3.npy", "4.npy", "5.png")]
    first, absent, torn, stack, png = (answer for _, answer in predict_files(classifier, paths, progress=False))
    for answer in (absent, torn, png):
        assert isinstance(answer, InputError)
    np.testing.assert_allclose(np.concatenate([first, stack]), classifier.probabilities(images[:, None]), atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_colours_go_from_the_recipe_to_the_prediction(tmp_path, last):
    from lenslib.classification import classify, open_pair, record_run, train_classifier
    from lenslib.training import Settings

    recipe = load_recipe("example_colours", {"instrument.pixels": 20})
    for name, seed in (("train", 1), ("test", 2)):
        write_dataset(recipe, 64, seed, tmp_path / name, progress=False)
    training, test = open_pair(tmp_path / "train", tmp_path / "test")
    settings = Settings(epochs=1, batch_size=16)
    trained = train_classifier(training, "small_cnn", 20, settings, device="cpu")
    scores, rate = classify(trained, test, "small_cnn", 20)
    run = record_run(tmp_path / "results", "mine", "small_cnn", 20, settings, trained, training, test, scores, rate)
    classifier = load_classifier(run.folder / "weights.safetensors")
    assert classifier.in_chans == 3
    np.testing.assert_allclose(classifier.probabilities(test.images), scores, atol=1e-4)
    image = test.images[0]
    np.save(tmp_path / "one.npy", np.moveaxis(image, 0, -1) if last else image)
    (_, answer), *_ = predict_files(classifier, [tmp_path / "one.npy"], progress=False)
    np.testing.assert_allclose(answer, scores[:1], atol=1e-4)
    np.save(tmp_path / "grey.npy", image[0])
    (_, refused), *_ = predict_files(classifier, [tmp_path / "grey.npy"], progress=False)
    assert "in 3 colours" in str(refused)
