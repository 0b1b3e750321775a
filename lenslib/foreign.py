"""DeepLense folders: images that others wrote, in `.npy` files by class."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from lenslib.errors import InputError
from lenslib.npy_files import read_npy

CLASSES = ("no_sub", "cdm", "vortex")
# the names of class folders in circulation; DeepLenseSim's axion halos hold a vortex
ALIASES = {
    **dict.fromkeys(("no", "no_sub", "nosub", "no_substructure"), 0),
    **dict.fromkeys(("cdm", "sphere", "subhalo", "subhalos"), 1),
    **dict.fromkeys(("vort", "vortex", "axion"), 2),
}
MOST_CHANNELS = 4


class LazyImages:
    """Images [n, c, h, w], float32, that stay in their files until asked for: `images[rows]` is an array.

    `read(path)` gives the images [m, c, h, w] of one file; row i is image `place[i]` of `files[file[i]]`.
    """

    ndim, dtype = 4, np.dtype(np.float32)

    def __init__(self, read: Callable, files: Sequence[Path], file, place, shape: tuple[int, int, int]):
        self._read, self._files = read, files
        self._file, self._place = np.asarray(file, np.int64), np.asarray(place, np.int64)
        self.shape = (len(self._file), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if rows is Ellipsis:
            rows, rest = slice(None), [Ellipsis, *rest]
        rows = np.arange(len(self))[rows]
        images = np.empty((rows.size, *self.shape[1:]), np.float32)
        wanted, places = self._file[rows.ravel()], self._place[rows.ravel()]
        # each file is opened once
        order = np.argsort(wanted, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(wanted[order])) + 1) if rows.size else []
        for group in tqdm(groups, desc="read images", unit="file", delay=2, leave=False, disable=None):
            path = self._files[wanted[group[0]]]
            found = self._read(path)
            if found.shape[1:] != self.shape[1:] or len(found) <= places[group].max():
                raise InputError(f"'{path}': it was changed since it was opened: open the folder again")
            images[group] = found[places[group]]
        images = images.reshape(*rows.shape, *self.shape[1:])
        return images[(slice(None),) * rows.ndim + tuple(rest)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class Grid:
    """Pixels a side. Found files do not say their arcsec, so lengths are in pixels."""

    pixels: int
    pixel_scale: float = 1.0


@dataclass(frozen=True)
class FoundFiles:
    """What stands in for a recipe where images were found, not simulated. Sets of one kind compare equal."""

    instrument: Grid
    channels: int = 1
    name: str = "deeplense_files"
    classes: tuple[str, ...] = CLASSES


class Found(NamedTuple):
    """What a folder of another's images holds; see `read_deeplense`."""

    images: LazyImages
    labels: np.ndarray
    params: pd.DataFrame
    recipe: FoundFiles
    digest: str


def find_deeplense(folder: str | Path) -> dict[int, list[Path]]:
    """The `.npy` files of a DeepLense folder by label (0 no_sub, 1 cdm, 2 vortex); empty if it is no such folder.

    A class is a sub-folder of files or one file, by any name of `ALIASES`: `no|sphere|vort`, `no_sub|cdm|axion` and so
    on. Files are in order of their names, numbers in them counted (2 before 10). InputError for two names of one class
    and for a sub-folder of arrays that is no known class.
    """
    found, named, strangers = {}, {}, []
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            files, label = sorted(path.glob("*.npy"), key=natural), ALIASES.get(path.name.lower())
        else:
            files, label = [path], ALIASES.get(path.stem.lower()) if path.suffix == ".npy" else None
        if label is None:
            strangers += [path.name] if path.is_dir() and files else []
        elif files:
            if label in found:
                raise InputError(f"'{folder}': both {named[label]} and {path.name} mean {CLASSES[label]}: remove one")
            found[label], named[label] = files, path.name
    if found and strangers:
        raise InputError(f"'{folder}': {', '.join(strangers)} is no known class: name folders {', '.join(CLASSES)}")
    return dict(sorted(found.items()))


def natural(path: Path) -> tuple:
    """By what files are ordered: their names, numbers in them counted (2 before 10)."""
    return tuple(int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", path.name)))


def read_deeplense(folder: str | Path, progress: bool = True) -> Found:
    """A DeepLense folder of one split (such as `train`), every file read and checked once.

    - `images`: float32 [n, c, h, w], left in their files. A file holds one image [h, w], [c, h, w] or [h, w, c] with
      at most 4 channels, a stack [n, h, w] or [n, c, h, w], or an object array [image, axion mass].
    - `labels`: int64 [n]. Classes are dealt out evenly over the rows, so that any run of rows holds its share of each.
    - `params`: `label`, `index` (the row), `file` (in the folder), `file_index` (image in the file), and where files
      give it `axion_mass` (eV; NaN elsewhere).
    - `digest`: SHA-256 over each file's label and SHA-256, in order of label and name.

    Layouts as written by DeepLenseSim (github.com/mwt5345/DeepLenseSim, Model_*/sim_*.py) and as handed out for the
    DeepLense tests. InputError names the file that is damaged, of another shape, not square, or not finite.
    """
    folder, digest = Path(folder), hashlib.sha256()
    files = [(label, path) for label, paths in find_deeplense(folder).items() for path in paths]
    if not files:
        raise InputError(f"'{folder}' has no .npy files in folders named {', '.join(CLASSES)}")
    counts, masses, shape = [], [], None
    for label, path in tqdm(files, desc="check files", unit="file", delay=1, disable=None if progress else True):
        images, mass = _pictures(path)
        shape = shape or images.shape[1:]
        _check(path, images, shape)
        with open(path, "rb") as file:
            digest.update(f"{label} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        counts.append(len(images))
        masses.append(np.full(len(images), np.nan) if mass is None else mass)
    file, place = np.repeat(np.arange(len(files)), counts), np.concatenate([np.arange(count) for count in counts])
    labels = np.array([label for label, _ in files], np.int64)[file]
    order = _dealt(labels)
    params = pd.DataFrame({"label": labels[order], "index": np.arange(len(order))})
    params["file"] = np.array([path.relative_to(folder).as_posix() for _, path in files], object)[file[order]]
    params["file_index"] = place[order]
    if np.isfinite(mass := np.concatenate(masses)).any():
        params["axion_mass"] = mass[order]
    images = LazyImages(_images, [path for _, path in files], file[order], place[order], shape)
    recipe = FoundFiles(Grid(shape[-1]), shape[0])
    return Found(images, labels[order], params, recipe, digest.hexdigest())


def _dealt(labels: np.ndarray) -> np.ndarray:
    """Rows in an order in which every class is spread evenly."""
    when = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        when[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((labels, when))


def _check(path: Path, images: np.ndarray, shape: tuple[int, ...]) -> None:
    if images.shape[1:] != shape:
        raise InputError(
            f"'{path}': its images are {images.shape[1:]}, those before it {shape}: keep one shape a folder"
        )
    if shape[1] != shape[2]:
        raise InputError(f"'{path}': its images have {shape[1]} x {shape[2]} pixels: cut them square")
    for first in range(0, len(images), 1024):
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused as such
            part = images[first : first + 1024].astype(np.float32)
        if bad := int((~np.isfinite(part)).sum()):
            raise InputError(f"'{path}': has {bad} pixels that are NaN or infinite: fill them or remove the file")


def _pictures(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    return split_masses(path, read_npy(path, mapped=True))


def _images(path: Path) -> np.ndarray:
    return _pictures(path)[0]


def split_masses(path: Path, array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Images [n, c, h, w] and axion masses [n] (eV; None where the file gives none) of an array in any known layout."""
    if array.dtype != object:
        return _stack(path, array), None
    if array.shape[-1:] != (2,) or array.ndim > 2 or not array.size:
        raise InputError(f"'{path}': holds an object array of shape {array.shape}, where [image, mass] is known")
    images = [_stack(path, np.asarray(image)) for image, _ in array.reshape(-1, 2)]
    masses = [np.asarray(mass, np.float64).ravel() for _, mass in array.reshape(-1, 2)]
    if any(image.shape != images[0].shape or len(image) != 1 for image in images):
        raise InputError(f"'{path}': every [image, mass] must hold one image, all of one shape")
    if any(mass.shape != (1,) or not np.isfinite(mass[0]) for mass in masses):
        raise InputError(f"'{path}': a mass is not one finite number (eV)")
    return np.concatenate(images), np.concatenate(masses)


def _stack(path: Path, array: np.ndarray) -> np.ndarray:
    """An array in any known layout as [n, c, h, w]."""
    if array.dtype.kind not in "fiu":
        raise InputError(f"'{path}': holds {array.dtype}, not numbers")
    shape = array.shape
    if array.ndim == 3 and shape[0] > MOST_CHANNELS >= shape[2]:
        array = np.moveaxis(array, 2, 0)
    if array.ndim == 4 and shape[1] > MOST_CHANNELS >= shape[3]:
        array = np.moveaxis(array, 3, 1)
    if array.ndim == 3:
        array = array[None] if len(array) <= MOST_CHANNELS else array[:, None]
    if array.ndim == 2:
        array = array[None, None]
    known = array.ndim == 4 and array.size and array.shape[1] <= MOST_CHANNELS < min(array.shape[2:])
    if not known:
        raise InputError(f"'{path}': has shape {shape}, which is no image and no stack of images")
    return array
