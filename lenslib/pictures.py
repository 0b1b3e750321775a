"""Source galaxies that are pictures: of a folder that the user names, or of Galaxy10 DECaLS."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import grid_sample

from lenslib.errors import InputError
from lenslib.npy_files import read_npy
from lenslib.priors import Position, prior
from lenslib.sources import Brightness

GALAXY10 = "galaxy10"
# Leung & Bovy, https://zenodo.org/records/10845026; the hash is the one that astroNN publishes with it
GALAXY10_URL = "https://zenodo.org/records/10845026/files/Galaxy10_DECals.h5"
GALAXY10_SHA256 = "19aefc477c41bb7f77ff07599a6b82a038dc042f889a111b0d4d98bb755c1571"
FORMATS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
# bytes of all pictures together, which are held in memory
MOST_BYTES = 2e9


class PictureGalaxy(Brightness):
    """A galaxy that is one of many pictures, drawn at random, turned and shifted.

    `folder` holds pictures (PNG, JPEG, TIFF or .npy; grey or in as many colours as the recipe has bands) or is
    `galaxy10`, the unbarred tight spirals below redshift 0.02 of Galaxy10 DECaLS, downloaded (2.5 GB) at first use.
    `only` picks some, by their place in the order of file names. Each is `pixel_scale` arcsec a pixel, without its
    background (the median of a corner), and has a flux of 1 in each band; `amp` multiplies it, or `magnitude` sets it.
    """

    profile: Literal["picture"]
    folder: str = Field(GALAXY10, min_length=1)
    only: tuple[int, ...] | None = Field(None, min_length=1)
    pixel_scale: float = Field(gt=0)
    angle: prior()
    center: Position

    def draw(self, stream, n: int, prefix: str, own: str, zero_point: float | None) -> dict[str, np.ndarray]:
        """Parameters [n], among them `source_picture`, the index of the picture."""
        count = len(self.pictures())
        drawn = {f"{prefix}picture": stream("source_picture").integers(count, size=n).astype(float)}
        drawn |= {f"{own}amp": self.draw_amp(stream, n, own, zero_point, 1.0)}
        drawn[f"{prefix}angle"] = self.angle.draw(stream(f"{prefix}angle"), n)
        drawn[f"{prefix}center_x"], drawn[f"{prefix}center_y"] = self.center.draw(stream, n, f"{prefix}center_")
        return drawn

    def pictures(self) -> Tensor:
        """All pictures, float32 [n, c, h, w] in flux an arcsec^2, rows along +y, read once.

        Raises InputError, which names `source.folder`, for a folder that is missing or empty, for a file that is not a
        picture or has no light, and for Galaxy10 where it cannot be had.
        """
        return _read_pictures(self.folder, self.only, self.pixel_scale)

    def in_bands(self, channels: int) -> Tensor:
        """`pictures` in so many channels: grey ones the same in each, coloured ones as grey where they do not fit."""
        pictures = self.pictures()
        if pictures.shape[1] == channels:
            return pictures
        return pictures.mean(1, keepdim=True).expand(-1, channels, -1, -1)


def interpolated(params: dict[str, Tensor], x: Tensor, y: Tensor, pictures: Tensor, pixel_scale: float) -> Tensor:
    """Surface brightness [n, c, h, w] of pictures at coordinates [n, h, w] in arcsec: bilinear, dark beyond the edges.

    `params` holds source_picture (index into `pictures` [m, c, h, w]), amp, source_angle (radians), source_center_x and
    source_center_y, each [n], as in lenstronomy's INTERPOL.
    """
    cos, sin = torch.cos(params["source_angle"])[:, None, None], torch.sin(params["source_angle"])[:, None, None]
    dx = (x - params["source_center_x"][:, None, None]) / pixel_scale
    dy = (y - params["source_center_y"][:, None, None]) / pixel_scale
    height, width = pictures.shape[-2:]
    places = torch.stack([(cos * dx + sin * dy) * (2 / width), (cos * dy - sin * dx) * (2 / height)], -1)
    chosen = pictures[params["source_picture"].long()]
    light = grid_sample(chosen, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return params["amp"][:, None, None, None] * light


@lru_cache(maxsize=2)
def _read_pictures(folder: str, only: tuple[int, ...] | None, pixel_scale: float) -> Tensor:
    """Float32 [n, c, h, w], each of unit flux in each band, padded with darkness to the largest."""
    arrays = _galaxy10(only) if folder == GALAXY10 else _of_folder(Path(folder), only)
    channels, height, width = np.max([array.shape for array in arrays.values()], axis=0)
    needed = 4.0 * len(arrays) * channels * height * width
    if needed > MOST_BYTES:
        raise InputError(
            f"source.folder: the pictures in '{folder}' take {needed / 1e9:.1f} GB: pick some with source.only"
        )
    pictures = torch.zeros(len(arrays), channels, height, width)
    for picture, (name, array) in zip(pictures, arrays.items(), strict=True):
        if len(array) not in (1, channels):
            raise InputError(f"source.folder: '{name}' has {len(array)} colours, others {channels}: convert them alike")
        _, h, w = array.shape
        top, left = (height - h) // 2, (width - w) // 2
        picture[:, top : top + h, left : left + w] = torch.from_numpy(_without_background(name, array))
    return pictures / pixel_scale**2


def _without_background(name: str, array: np.ndarray) -> np.ndarray:
    """Light of unit sum [c, h, w]: less the median of a corner of a fifth of its size, as DeepLenseSim's Model IV has
    it (50 of 256 pixels)."""
    corner = max(1, round(min(array.shape[1:]) * 50 / 256))
    light = array - np.median(array[:, :corner, :corner], axis=(1, 2), keepdims=True)
    flux = light.sum((1, 2), keepdims=True)
    if not (np.isfinite(flux).all() and (flux > 0).all()):
        raise InputError(f"source.folder: '{name}' has no light above its corner: remove it")
    return (light / flux).astype(np.float32)


def _of_folder(folder: Path, only: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    if not folder.is_dir():
        raise InputError(f"source.folder: no folder '{folder}': name one that holds pictures of galaxies")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    if not files:
        raise InputError(f"source.folder: '{folder}' holds no pictures ({', '.join(FORMATS)})")
    return {str(file): _read_picture(file) for file in _picked(files, only, folder)}


def _picked(items, only: tuple[int, ...] | None, folder) -> list:
    if only is None:
        return list(items)
    if not all(0 <= k < len(items) for k in only):
        raise InputError(
            f"source.only: there are {len(items)} pictures in '{folder}', so each must be in 0..{len(items) - 1}"
        )
    return [items[k] for k in only]


def _read_picture(file: Path) -> np.ndarray:
    """Float32 [c, h, w]."""
    if file.suffix.lower() == ".npy":
        array = read_npy(file).astype(np.float32)
    else:
        from PIL import Image

        try:
            with Image.open(file) as picture:
                grey = picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;")
                array = np.asarray(picture.convert("F" if grey else "RGB"), np.float32)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"source.folder: '{file}' is not a picture that can be read ({error}): remove it"
            ) from None
    if array.ndim == 3 and array.shape[-1] <= 5:
        array = array.transpose(2, 0, 1)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or min(array.shape[1:]) < 5 or not np.isfinite(array).all():
        raise InputError(
            f"source.folder: '{file}' is not a picture of finite numbers of at least 5 x 5 pixels: remove it"
        )
    return array


def _galaxy10(only: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    """The unbarred tight spirals (class 6) below redshift 0.02, in the order of the file."""
    import h5py
    import pooch

    try:
        path = pooch.retrieve(
            GALAXY10_URL, f"sha256:{GALAXY10_SHA256}", path=pooch.os_cache("lenslib"), progressbar=True
        )
    except Exception as error:  # whatever the network answers
        raise InputError(
            f"source.folder: Galaxy10 could not be had from {GALAXY10_URL} ({type(error).__name__}): "
            "name a folder of pictures instead, --set source.folder=PATH"
        ) from None
    with h5py.File(path) as file:
        near = np.flatnonzero((file["ans"][:] == 6) & (file["redshift"][:] < 0.02))
        return {
            f"Galaxy10 DECaLS {k}": file["images"][k].astype(np.float32).transpose(2, 0, 1)
            for k in _picked(near, only, GALAXY10)
        }
