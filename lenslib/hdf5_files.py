"""Arrays from HDF5 files, which lie in the file itself: one that points into another file is refused."""

from pathlib import Path

import h5py
import numpy as np

from lenslib.errors import InputError

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
# of a lens's file, what its image is called, where there are other arrays beside it
_IMAGES = ("image_data", "image", "images", "data", "sci")
# a few bytes of a compressed file can claim more than any memory holds
MOST_VALUES = 2**26


def is_hdf5(path: str | Path) -> bool:
    """Whether a file is HDF5 by its name."""
    return str(path).lower().endswith(HDF5_SUFFIXES)


def read_hdf5(path: str | Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Named arrays, float64, of those that are `required` and those that may be there.

    InputError for a file that is absent, damaged, lacks one, or keeps one elsewhere.
    """

    def read(file: h5py.File) -> dict[str, np.ndarray]:
        names = set(file)  # of links, which are not followed
        if missing := [key for key in required if key not in names]:
            raise InputError(f"{path}: lacks {', '.join(missing)}: write them as datasets of those names")
        return {key: _values(path, file, key) for key in (*required, *optional) if key in names}

    return _opened(path, read)


def read_hdf5_image(path: str | Path) -> np.ndarray:
    """The one array of an HDF5 file with two dimensions or more, or that among several which is called an image.

    InputError for a file that is absent, damaged, or has no such array, several, or one that lies elsewhere.
    """

    def read(file: h5py.File) -> np.ndarray:
        arrays = [key for key in file if _lies_here(file, key)]
        arrays = [key for key in arrays if isinstance(file[key], h5py.Dataset) and file[key].ndim > 1]
        named = [key for key in arrays if key.lower() in _IMAGES] or arrays
        if len(named) != 1:
            raise InputError(
                f"'{path}': holds {', '.join(arrays) or 'no array'}: give an HDF5 file of one image, or call it "
                f"{_IMAGES[0]}"
            )
        return _values(path, file, named[0])

    return _opened(path, read)


def _opened(path: str | Path, read):
    if not Path(path).is_file():
        raise InputError(f"no file {path}: give the path of an HDF5 file")
    try:
        with h5py.File(path) as file:
            return read(file)
    # h5py raises any of these for a file cut short, a group in place of an array, or text in place of numbers
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a whole HDF5 file ({reason}): fetch it again") from None


def _lies_here(file: h5py.File, key: str) -> bool:
    return isinstance(file.get(key, getlink=True), h5py.HardLink)


def _values(path: str | Path, file: h5py.File, key: str) -> np.ndarray:
    if not _lies_here(file, key) or file[key].external or file[key].is_virtual:
        raise InputError(f"{path}: keeps {key} in another file: write it into this one")
    if file[key].size > MOST_VALUES:
        raise InputError(f"{path}: {key} has {file[key].size:,} values: cut the lens out")
    if file[key].dtype.kind not in "fiu":
        raise InputError(f"{path}: {key} holds {file[key].dtype}, not numbers")
    return np.asarray(file[key][()], dtype=np.float64)
