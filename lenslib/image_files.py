"""Images of lenses from files that others wrote: .npy, FITS, HDF5 and PNG."""

from pathlib import Path

import numpy as np

from lenslib.errors import InputError
from lenslib.fits_files import FITS_SUFFIXES, is_fits, read_fits
from lenslib.foreign import split_masses
from lenslib.hdf5_files import HDF5_SUFFIXES, is_hdf5, read_hdf5_image
from lenslib.npy_files import read_npy
from lenslib.png_files import read_png

SUFFIXES = (".npy", ".png", *FITS_SUFFIXES, *HDF5_SUFFIXES)


def _reader(path: Path):
    """What reads a file of this name, or None."""
    if is_fits(path):
        return lambda: read_fits(path)[0]
    if is_hdf5(path):
        return lambda: read_hdf5_image(path)
    return {".npy": lambda: _of_npy(path), ".png": lambda: read_png(path)}.get(path.suffix.lower())


def _of_npy(path: Path) -> np.ndarray:
    images = read_npy(path)
    return split_masses(path, images)[0] if images.dtype == object else images


def read_images(path: str | Path, size: int, in_chans: int = 1, mask: np.ndarray | None = None) -> np.ndarray:
    """Images [n, in_chans, size, size], float32: of a .npy file one image, a stack of them or [image, axion mass], of
    FITS the first image, of HDF5 the only one or that which is called so, of PNG grey levels with the lowest row first.
    Colours may come first or last. Under a `mask` [size, size], true where a pixel is not to count, pixels that are not
    finite are set to 0.

    InputError names what is wrong with the file; nothing in it is run.
    """
    path = Path(path)
    read = _reader(path)
    if read is None:
        raise InputError(f"'{path}': only .npy, FITS, HDF5 and PNG images are read here")
    images = read()
    if images.dtype.kind not in "fiu":
        raise InputError(f"'{path}': holds {images.dtype}, not numbers")
    shape = images.shape
    if in_chans == 1 and images.ndim in (2, 3):
        images = images[..., None, :, :]
    elif images.ndim > 2 and shape[-1] == in_chans:
        images = np.moveaxis(images, -1, -3)
    one = (in_chans, size, size)
    if images.ndim not in (3, 4) or images.shape[-3:] != one:
        colours = f" in {in_chans} colours" if in_chans > 1 else ""
        raise InputError(f"'{path}': has shape {shape}, and the network was trained on {size} x {size} pixels{colours}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        images = images.reshape(-1, *one).astype(np.float32)
    bad = ~np.isfinite(images)
    if mask is not None and mask.shape[-2:] == images.shape[-2:]:
        images, bad = np.where(bad & mask, np.float32(0), images), bad & ~mask
    if bad.any():
        raise InputError(f"'{path}': has {int(bad.sum())} pixels that are NaN or infinite")
    if not len(images) or (np.ptp(images, axis=(2, 3)) == 0).any():
        raise InputError(f"'{path}': holds no image, or one whose pixels are all equal")
    return images


def find_images(paths: list[str | Path]) -> list[Path]:
    """The files among `paths`, and the images in their folders. InputError for a folder without any."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _reader(file))
            if not inside:
                raise InputError(f"'{path}' holds no images: no .npy, FITS, HDF5 or PNG file")
            found += inside
        else:
            found.append(path)
    return found
