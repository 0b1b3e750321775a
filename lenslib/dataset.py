"""A data-set folder: images.npy, params.parquet and dataset.json, which seals the two with their SHA-256.

write_dataset(load_recipe("deeplense_1"), 12000, seed=0, folder="data/train")
data = open_dataset("data/train")          # verified; data.images is memory-mapped

A DeepLense folder (class folders of .npy files) opens too: see `lenslib.foreign`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

import lenslib
from lenslib.errors import InputError
from lenslib.foreign import FoundFiles, LazyImages, find_deeplense, read_deeplense
from lenslib.npy_files import read_npy
from lenslib.recipe import Recipe, parse_recipe
from lenslib.seals import seal
from lenslib.simulate import sample_chunks
from lenslib.untrusted import parse_json

Batches = Iterable[tuple[Tensor, dict[str, Tensor]]]
FILES = ("images.npy", "params.parquet")
KEYS = ("recipe", "seed", "start", "count", "units", "library_version", "sha256")
# of brightness, in which an image has neither scale nor offset of its own; or of the noise's standard deviations
UNITS = ("light", "deviations")
# of images in deviations: of the noise, and of a mass at each place (see `lenslib.residuals`)
CHANNELS = ("image", "residual", "significance", "sensitivity")


@dataclass(frozen=True)
class DataSet:
    """An opened data-set folder. images: float32 [n, c, h, w], memory-mapped; labels: int64 [n]; params: one row an
    image; digest: SHA-256 over the digests of its files; classes: names by label.

    Of a DeepLense folder, images are read as they are asked for, a `FoundFiles` stands in for the recipe, and the seed
    is a number from the digest: two sets of one seed are the same files. units: see `UNITS`; library_version: of what
    wrote it.
    """

    folder: Path
    images: np.ndarray | LazyImages
    labels: np.ndarray
    params: pd.DataFrame
    recipe: Recipe | FoundFiles
    seed: int
    digest: str
    units: str = "light"
    library_version: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.recipe.classes

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def prepared(
        self, image_size: int, rows: slice | np.ndarray = slice(None), crop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images of the given rows as networks see them (see `prepare`), and their labels."""
        wanted = np.arange(len(self))[rows]
        firsts = tqdm(range(0, len(wanted), 512), desc="prepare images", delay=2, leave=False, disable=None)
        parts = [prepare(self.images[wanted[first : first + 512]], image_size, crop, self.units) for first in firsts]
        return torch.cat(parts), torch.from_numpy(self.labels[wanted])


def resize(images: Tensor, size: int) -> Tensor:
    """Images [n, c, h, w] resampled to [n, c, size, size]; commutes with flips and right-angle turns."""
    if images.shape[-2:] == (size, size):
        return images
    return interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def normalise(images: Tensor) -> Tensor:
    """Each channel of each image with mean 0 and standard deviation 1: blind to its units, offset and exposure."""
    mean, deviation = images.mean((-2, -1), keepdim=True), images.std((-2, -1), keepdim=True)
    # an image of one grey level has a deviation of rounding errors; bounds that follow its units keep it near zero
    return (images - mean) / torch.maximum(deviation, 1e-5 * mean.abs()).clamp(min=1e-30)


def prepare(images, image_size: int, crop: int | None = None, units: str = "light") -> Tensor:
    """What every network is shown, float32 [n, c, image_size, image_size]: `normalise(resize(images))`; of images in
    deviations, whose scale says what is too much, asinh(resize(images)): of a large one nearly the logarithm.

    `crop` takes the central square of so many pixels first, for recipes that leave most of the sky empty; it must be
    even or odd as the image is, so that the centre stays. Accepts arrays or tensors [n, c, h, w].
    """
    size = images.shape[-1]
    if crop is not None and crop != size:
        if not 0 < crop < size or (size - crop) % 2:
            raise InputError(f"crop must be {'an even' if size % 2 == 0 else 'an odd'} number below {size}, not {crop}")
        edge = (size - crop) // 2
        images = images[..., edge : edge + crop, edge : edge + crop]
    images = torch.as_tensor(images if isinstance(images, Tensor) else np.array(images), dtype=torch.float32)
    resized = resize(images, image_size)
    return normalise(resized) if units == "light" else resized.asinh()


def write_dataset(
    recipe: Recipe, count: int, seed: int, folder, start: int = 0, device="cpu", progress=True
) -> DataSet:
    """Simulate `count` images into a new folder, at constant memory. A killed run leaves no folder that opens.

    Raises InputError for a folder that is not empty, one that cannot be written, and a disk without room.
    """
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}")

    def batches() -> Batches:
        for batch in sample_chunks(recipe, count, seed, start, device, progress=progress):
            yield batch.images, {"label": batch.labels} | batch.params

    return write_batches(recipe, count, recipe.channels, batches(), seed, folder, start)


def write_batches(
    recipe: Recipe, count: int, channels: int, batches: Batches, seed: int, folder, start: int = 0, units: str = "light"
) -> DataSet:
    """Write `count` images of so many channels, and the columns that go with them, into a new folder as they come.

    Each batch is images [n, c, h, w] and, by name, values [n], among them `label`. As `write_dataset` otherwise.
    """
    folder = Path(folder)
    _check_room(recipe, count, channels, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot write to '{folder.parent}': {error.strerror}; choose another --out") from None
    try:
        shape = (count, channels, recipe.instrument.pixels, recipe.instrument.pixels)
        digests = _write_files(partial, shape, batches, start)
        values = (recipe.to_yaml(), seed, start, count, units, lenslib.__version__, digests)
        content = dict(zip(KEYS, values, strict=True))
        (partial / "dataset.json").write_text(json.dumps(content | {"seal": _seal(content)}, indent=1))
        # mkdtemp makes the folder private to its owner; a data set is as open as any other
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"could not write '{folder}': {error.strerror}; nothing was kept") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_dataset(folder, verify=False)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_room(recipe: Recipe, count: int, channels: int, folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' exists and is not empty: choose another --out or remove it")
    needed = count * (channels * recipe.instrument.pixels**2 * 4 + 400)
    place = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{count} images need {needed / 1e9:,.1f} GB, and '{place}' has {free / 1e9:,.1f} GB free: "
            "lower --count or choose another --out"
        )


def _write_files(folder: Path, shape: tuple[int, ...], batches: Batches, start: int) -> dict[str, str]:
    columns, done = {}, 0
    with open(folder / "images.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for images, values in batches:
            file.write(images.cpu().numpy())
            for name, value in values.items():
                # as long as they will be from the start: small arrays kept from every chunk would let the memory of the
                # large ones between them be used no more
                if name not in columns:
                    columns[name] = np.empty(shape[0], value.cpu().numpy().dtype)
                columns[name][done : done + len(images)] = value.cpu().numpy()
            done += len(images)
    params = pd.DataFrame(columns)
    params.insert(0, "index", np.arange(start, start + shape[0]))
    params.to_parquet(folder / "params.parquet", index=False)
    return {name: _sha256(folder / name) for name in FILES}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(content: dict) -> str:
    """SHA-256 over what dataset.json says."""
    return seal({key: content[key] for key in KEYS})


def open_dataset(folder, verify: bool = True) -> DataSet:
    """Open a data-set folder; with `verify`, every byte is checked against the recorded digests.

    A folder without a dataset.json opens if it is a DeepLense one (see `lenslib.foreign.read_deeplense`).
    Raises InputError for a folder that is missing, torn or altered.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"no data-set folder '{folder}': make one with `lenslib simulate RECIPE --count N --out {folder}`"
        )
    if not (folder / "dataset.json").exists():
        return _open_foreign(folder)
    try:
        content = parse_json((folder / "dataset.json").read_bytes())
        if content["seal"] != _seal(content) or not _is_whole(content):
            raise ValueError("altered")
        digests, recipe, seed, count, units = (content[key] for key in ("sha256", "recipe", "seed", "count", "units"))
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"'{folder}/dataset.json' was altered or cut short: simulate the set again") from None
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"'{folder}' lacks {name}: it was cut short; simulate the set again")
        if verify and _sha256(folder / name) != digests[name]:
            raise InputError(
                f"'{folder / name}' was altered or cut short (its SHA-256 differs): simulate the set again"
            )
    recipe = parse_recipe(recipe, str(folder))
    images, params = _read_files(folder, count)
    labels = params["label"].to_numpy() if "label" in params else np.array([""])
    if labels.dtype.kind not in "iu":
        raise InputError(f"'{folder}' has no whole numbers for labels: simulate it again")
    digest = hashlib.sha256("".join(digests[name] for name in FILES).encode()).hexdigest()
    version = content["library_version"]
    return DataSet(folder, images, labels.astype(np.int64), params, recipe, seed, digest, units, version)


def _is_whole(content: dict) -> bool:
    """Whether dataset.json, which anyone can seal, says what `write_batches` says."""
    counts = all(type(content[name]) is int and content[name] >= least for name, least in (("seed", 0), ("count", 1)))
    digests = all(isinstance(content["sha256"][name], str) for name in FILES)
    return counts and digests and isinstance(content["recipe"], str) and content["units"] in UNITS


def _read_files(folder: Path, count: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Images, memory-mapped, and parameters, as many as dataset.json says."""
    images = read_npy(folder / "images.npy", mapped=True)
    if images.dtype != np.float32 or images.ndim != 4 or not images.size or images.shape[2] != images.shape[3]:
        raise InputError(
            f"'{folder}/images.npy' holds {images.dtype} {list(images.shape)}, not float32 [n, c, h, h]: simulate again"
        )
    try:
        rows = pq.read_metadata(folder / "params.parquet").num_rows
        params = pd.read_parquet(folder / "params.parquet") if rows == count else range(rows)
    except Exception as error:  # arrow raises whatever damage leads it to
        reason = " ".join(str(error).split())
        raise InputError(f"'{folder}/params.parquet' cannot be read ({reason:.200}): simulate the set again") from None
    if not len(images) == len(params) == count:
        raise InputError(
            f"'{folder}' holds {len(images)} images and {len(params)} rows, not {count}: simulate it again"
        )
    return images, params


def _open_foreign(folder: Path) -> DataSet:
    if find_deeplense(folder):
        found = read_deeplense(folder)
        seed = int(found.digest[:8], 16)
        return DataSet(folder, found.images, found.labels, found.params, found.recipe, seed, found.digest)
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and find_deeplense(path))
    if inside:
        raise InputError(f"'{folder}' holds the sets {', '.join(inside)}: name one of these folders")
    if list(folder.glob("*.csv")) and (list(folder.glob("*.png")) or list(folder.glob("images/*.png"))):
        raise InputError(f"'{folder}' is a CosmoSim set, without classes: read it with lenslib.cosmosim.read_cosmosim")
    raise InputError(f"'{folder}' is not a data-set folder: it has no dataset.json and no folders of a DeepLense class")
