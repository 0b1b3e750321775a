"""Frames of other kinds than .npy and FITS (tests/test_inference.py, tests/test_fits_files.py): PNG and HDF5."""

import h5py
import numpy as np
import pytest
from PIL import Image

from lenslib.errors import InputError
from lenslib.hdf5_files import read_hdf5
from lenslib.image_files import find_images, read_images

SIZE = 16


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(5, 2, (SIZE, SIZE))


def test_a_png_is_read_from_its_lowest_row(tmp_path, image):
    levels = (20 * image).clip(0, 255).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_images(tmp_path / "a.png", SIZE)[0, 0], levels[::-1])


@pytest.mark.parametrize("name", ["image_data", "anything"])
def test_an_hdf5_image_is_read(tmp_path, image, name):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name], file["exposure_time"] = image, 100.0
    np.testing.assert_allclose(read_images(tmp_path / "a.h5", SIZE)[0, 0], image, rtol=1e-6)


def test_of_several_arrays_the_one_called_an_image_is_read(tmp_path, image):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["noise"], file["image_data"] = image + 1, image
    np.testing.assert_allclose(read_images(tmp_path / "a.h5", SIZE)[0, 0], image, rtol=1e-6)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["one"], file["other"] = image, image
    with pytest.raises(InputError, match="holds one, other"):
        read_images(tmp_path / "b.h5", SIZE)


def test_an_array_that_lies_in_another_file_is_refused(tmp_path, image):
    image.tofile(tmp_path / "secret")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = image
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("image", (SIZE, SIZE), "f8", external=[(tmp_path / "secret", 0, 8 * SIZE**2)])
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/image")
    layout = h5py.VirtualLayout((SIZE, SIZE), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "image", (SIZE, SIZE))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("image", layout)
    for name in ("raw", "linked", "virtual"):
        with pytest.raises(InputError, match="another file"):
            read_hdf5(tmp_path / f"{name}.h5", ("image",))
        with pytest.raises(InputError, match="another file|no array"):
            read_images(tmp_path / f"{name}.h5", SIZE)


def test_damaged_files_are_named(tmp_path, image):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = image
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.h5", "text.png", "absent.h5"):
        with pytest.raises(InputError, match=name):
            read_images(tmp_path / name, SIZE)
    with pytest.raises(InputError, match="only .npy, FITS, HDF5 and PNG"):
        read_images(tmp_path / "a.tif", SIZE)


def test_folders_are_searched_for_every_kind(tmp_path):
    for name in ("a.npy", "b.png", "c.h5", "d.fits", "e.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images([tmp_path])] == ["a.npy", "b.png", "c.h5", "d.fits"]
