"""DeepLense folders in the layouts found in the wild, written here by numpy alone."""

import hashlib

import numpy as np
import pytest

from lenslib.classification import classify, open_pair, train_classifier
from lenslib.dataset import open_dataset, prepare
from lenslib.errors import InputError
from lenslib.foreign import CLASSES
from lenslib.image_files import read_images
from lenslib.metrics import macro_auc
from lenslib.training import Settings

SIZE = 16
NAMES = [("no", "sphere", "vort"), ("no_sub", "cdm", "axion"), ("no_sub", "cdm", "vortex"), ("nosub", "CDM", "Vort")]


def pictures(count, seed=0, shape=(SIZE, SIZE)):
    return np.random.default_rng(seed).normal(5, 2, (count, *shape))


def pair(image, mass):
    array = np.empty(2, object)
    array[:] = [image, mass]
    return array


def write(folder, arrays: dict, allow_pickle=False):
    """Arrays by path in the folder."""
    for name, array in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array, allow_pickle=allow_pickle)
    return folder


def one_a_file(folder, names, count=4, change=lambda image: image, seed=0):
    images = pictures(3 * count, seed).reshape(3, count, SIZE, SIZE)
    write(folder, {f"{name}/{k}.npy": change(images[c, k]) for c, name in enumerate(names) for k in range(count)})
    return images


def check(data, images):
    """Every row is the image of its label and place in its class."""
    assert data.images.shape == (images.shape[0] * images.shape[1], 1, SIZE, SIZE)
    seen = [0] * len(images)
    for row, label in enumerate(data.labels):
        np.testing.assert_array_equal(data.images[row, 0], images[label, seen[label]].astype(np.float32))
        seen[label] += 1
    assert seen == [images.shape[1]] * len(images)


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[-1])
def test_classes_are_known_by_their_names(tmp_path, names):
    images = one_a_file(tmp_path, names)
    data = open_dataset(tmp_path)
    check(data, images)
    assert data.classes == CLASSES == ("no_sub", "cdm", "vortex")
    assert data.labels.dtype == np.int64
    assert data.images.dtype == np.float32
    np.testing.assert_array_equal(data.params["label"], data.labels)
    np.testing.assert_array_equal(data.params["index"], np.arange(12))
    for file, label in zip(data.params["file"], data.labels, strict=True):
        assert file.split("/")[0] == names[label]
        assert (tmp_path / file).is_file()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image.astype(np.float32),
        lambda image: image[None],
        lambda image: image[:, :, None],
        lambda image: image[None, None],
        np.asfortranarray,
        lambda image: image.astype(">f8"),
    ],
)
def test_one_channel_in_every_shape(tmp_path, change):
    images = one_a_file(tmp_path, NAMES[0], change=change)
    check(open_dataset(tmp_path), images)


@pytest.mark.parametrize("axis", [0, 2])
def test_colour_bands_come_first(tmp_path, axis):
    image = pictures(1, shape=(SIZE, SIZE, 3))[0]
    write(tmp_path, {"cdm/1.npy": np.moveaxis(image, 2, axis), "no_sub/1.npy": np.moveaxis(image + 1, 2, axis)})
    data = open_dataset(tmp_path)
    assert data.images.shape == (2, 3, SIZE, SIZE)
    np.testing.assert_array_equal(data.images[1], np.moveaxis(image, 2, 0).astype(np.float32))


@pytest.mark.parametrize("form", ["{}.npy", "{}/all.npy"])
@pytest.mark.parametrize("change", [lambda stack: stack, lambda stack: stack[:, None], lambda stack: stack[..., None]])
def test_stacks_are_taken_apart(tmp_path, form, change):
    images = pictures(30).reshape(3, 10, SIZE, SIZE)
    write(tmp_path, {form.format(name): change(images[c]) for c, name in enumerate(NAMES[1])})
    data = open_dataset(tmp_path)
    check(data, images)
    np.testing.assert_array_equal(np.sort(data.params["file_index"]), np.repeat(np.arange(10), 3))


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (1, SIZE, SIZE)])
def test_axion_files_give_their_masses(tmp_path, shape):
    images, masses = pictures(8).reshape(2, 4, *shape), 10 ** np.linspace(-24, -22, 4)
    write(tmp_path, {f"no_sub/{k}.npy": images[0, k] for k in range(4)})
    write(tmp_path, {f"axion/{k}.npy": pair(images[1, k], masses[k]) for k in range(4)}, allow_pickle=True)
    data = open_dataset(tmp_path)
    assert data.images.shape == (8, 1, SIZE, SIZE)
    axion = data.labels == 2
    np.testing.assert_array_equal(data.images[axion], images[1].reshape(4, 1, SIZE, SIZE).astype(np.float32))
    np.testing.assert_array_equal(data.params["axion_mass"][axion], masses)
    assert data.params["axion_mass"][~axion].isna().all()
    # and the same file is an image to predict on
    np.testing.assert_array_equal(read_images(tmp_path / "axion" / "0.npy", SIZE)[0], data.images[axion][0])


def test_numbers_in_names_are_counted(tmp_path):
    images = pictures(12)
    write(tmp_path, {f"no/{k}.npy": image for k, image in enumerate(images)})
    write(tmp_path, {"vort/1.npy": images[0]})
    data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.images[data.labels == 0][:, 0], images.astype(np.float32))


def test_every_run_of_rows_holds_its_share_of_each_class(tmp_path):
    for name, count in zip(NAMES[0], (40, 20, 20), strict=True):
        write(tmp_path, {f"{name}.npy": pictures(count)})
    labels = open_dataset(tmp_path).labels
    for first in range(0, 80, 8):
        counts = np.bincount(labels[first : first + 8], minlength=3)
        assert (np.abs(counts - [4, 2, 2]) <= 1).all()


def test_rows_are_asked_for_as_of_an_array(tmp_path):
    one_a_file(tmp_path, NAMES[0])
    write(tmp_path, {"no/stack.npy": pictures(5)})
    images = open_dataset(tmp_path).images
    whole = np.asarray(images)
    assert whole.shape == images.shape == (17, 1, SIZE, SIZE)
    assert len(images) == 17
    for key in (
        *(3, -1, slice(2, 9), slice(None, None, -3), slice(5, 5), np.array([4, 4, 0, 16]), whole[:, 0, 0, 0] > 5),
        *((slice(0, 4), 0), (2, 0), (slice(None), 0, slice(3, 7)), (..., slice(2, 5)), np.array([[1, 2], [3, 4]])),
    ):
        np.testing.assert_array_equal(images[key], whole[key])
    np.testing.assert_array_equal(list(images), whole)
    with pytest.raises(IndexError):
        images[17]


def test_the_digest_is_of_the_bytes_and_their_classes(tmp_path):
    def digest(folder):
        return open_dataset(folder).digest

    one_a_file(tmp_path / "a", NAMES[0])
    one_a_file(tmp_path / "b", NAMES[1])
    first = hashlib.sha256()
    for label, name in enumerate(NAMES[0]):
        for k in range(4):
            content = (tmp_path / "a" / name / f"{k}.npy").read_bytes()
            first.update(f"{label} {hashlib.sha256(content).hexdigest()}\n".encode())
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == first.hexdigest()
    (tmp_path / "a" / "no" / "3.npy").rename(tmp_path / "a" / "sphere" / "00.npy")
    moved = digest(tmp_path / "a")
    assert moved != first.hexdigest()
    content = bytearray((tmp_path / "b" / "cdm" / "0.npy").read_bytes())
    content[-9] ^= 1
    (tmp_path / "b" / "cdm" / "0.npy").write_bytes(content)
    assert digest(tmp_path / "b") not in (moved, first.hexdigest())


def test_a_network_learns_from_one_and_judges_another(tmp_path):
    for split, seed, count in (("train", 0, 40), ("val", 1, 10)):
        images = pictures(3 * count, seed).reshape(3, count, SIZE, SIZE)
        images[1, :, ::2] += 20  # stripes and a blob, which anything can tell from noise
        images[2, :, 5:11, 5:11] += 20
        for c, name in enumerate(NAMES[0]):
            write(tmp_path / split, {f"{name}/{k}.npy": images[c, k] for k in range(count)})
    training, test = open_pair(tmp_path / "train", tmp_path / "val")
    settings = Settings(epochs=3, batch_size=8, learning_rate=3e-3, seed=0, augment="none")
    trained = train_classifier(training, "small_cnn", SIZE, settings, "cpu")
    scores, _ = classify(trained, test, "small_cnn", SIZE)
    assert macro_auc(test.labels, scores) > 0.8
    with pytest.raises(InputError, match="seed"):
        open_pair(tmp_path / "train", tmp_path / "train")


def test_prepared_images_are_those_of_the_rows(tmp_path):
    one_a_file(tmp_path, NAMES[0])
    data = open_dataset(tmp_path)
    images, labels = data.prepared(SIZE, slice(3, 9))
    np.testing.assert_array_equal(images, prepare(np.asarray(data.images)[3:9], SIZE))
    np.testing.assert_array_equal(labels, data.labels[3:9])
    np.testing.assert_array_equal(prepare(data.images, 8, 8), prepare(np.asarray(data.images), 8, 8))


class Touch:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda image: image[:-1], "one shape"),
        (lambda image: image[:8, :8], "one shape"),
        (lambda image: np.stack([image] * 3), "one shape"),
        (lambda image: image[0], "no image"),
        (lambda image: np.zeros((2, 3, 4, SIZE, SIZE)), "no image"),
        (lambda image: np.zeros((9, 9, SIZE, SIZE)), "no image"),
        (lambda image: np.zeros((0, SIZE, SIZE)), "no image"),
        (lambda image: np.where(image == image.max(), np.nan, image), "1 pixels that are NaN"),
        (lambda image: image * 1e300, "NaN or infinite"),
        (lambda image: image.astype(str), "not numbers"),
        (lambda image: pair(image, np.inf), "mass"),
        (lambda image: pair(image, image), "mass"),
        (lambda image: pair(1.0, 2.0), "no image"),
        (lambda image: np.array([image, 1.0, 2.0], object), r"\[image, mass\]"),
    ],
)
def test_a_spoiled_file_is_named(tmp_path, spoil, said):
    one_a_file(tmp_path, NAMES[0])
    np.save(tmp_path / "sphere" / "2.npy", spoil(pictures(1)[0]), allow_pickle=True)
    with pytest.raises(InputError, match=said) as error:
        open_dataset(tmp_path)
    assert "sphere/2.npy" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_trap_in_a_folder_is_named_and_not_sprung(tmp_path):
    one_a_file(tmp_path / "set", NAMES[1])
    np.save(tmp_path / "set" / "axion" / "3.npy", pair(pictures(1)[0], Touch(tmp_path / "sprung")), allow_pickle=True)
    for read in (lambda: open_dataset(tmp_path / "set"), lambda: read_images(tmp_path / "set/axion/3.npy", SIZE)):
        with pytest.raises(InputError, match=r"axion/3\.npy.*io\.open"):
            read()
    assert not (tmp_path / "sprung").exists()


def test_images_that_are_not_square_are_refused(tmp_path):
    write(tmp_path, {"no/1.npy": pictures(1, shape=(SIZE, 20))[0], "cdm/1.npy": pictures(1, shape=(SIZE, 20))[0]})
    with pytest.raises(InputError, match=r"no/1\.npy.*16 x 20"):
        open_dataset(tmp_path)


def test_a_file_changed_after_opening_is_named(tmp_path):
    one_a_file(tmp_path, NAMES[0])
    data = open_dataset(tmp_path)
    np.save(tmp_path / "no" / "0.npy", pictures(1, shape=(20, 20))[0])
    with pytest.raises(InputError, match=r"no/0\.npy.*changed"):
        data.images[:]
    (tmp_path / "no" / "0.npy").unlink()
    with pytest.raises(InputError, match=r"no/0\.npy.*no such file"):
        data.images[:]


def test_the_folder_above_names_its_sets(tmp_path):
    for split in ("train", "val"):
        one_a_file(tmp_path / split, NAMES[0])
    with pytest.raises(InputError, match="train, val"):
        open_dataset(tmp_path)


def test_two_folders_of_one_class_are_refused(tmp_path):
    one_a_file(tmp_path, ("no", "vort", "axion"))
    with pytest.raises(InputError, match="axion and vort mean vortex"):
        open_dataset(tmp_path)


def test_a_folder_of_an_unknown_class_is_refused(tmp_path):
    one_a_file(tmp_path, ("no", "cdm", "wdm"))
    with pytest.raises(InputError, match="wdm is no known class"):
        open_dataset(tmp_path)


def test_other_files_and_empty_folders_do_no_harm(tmp_path):
    images = one_a_file(tmp_path, NAMES[0])
    (tmp_path / "README.txt").write_text("")
    (tmp_path / "sphere" / "notes.txt").write_text("")
    (tmp_path / "plots").mkdir()
    (tmp_path / ".cache").mkdir()
    np.save(tmp_path / ".cache" / "x.npy", images)
    check(open_dataset(tmp_path), images)
    (tmp_path / "none" / "no").mkdir(parents=True)
    with pytest.raises(InputError, match="not a data-set folder"):
        open_dataset(tmp_path / "none")
