"""The readers that `fuzz.py` puts damaged files through, and whole files to damage."""

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Reader(NamedTuple):
    """What makes whole files [bytes], what reads one in a folder, and words that mean something to it."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]
    words: tuple[str, ...] = ()


def _file(name: str, read: Callable) -> Callable:
    """Of a reader of one file: what writes the content to a file of that name and reads it."""

    def write_and_read(content: bytes, folder: Path):
        (folder / name).write_bytes(content)
        return read(folder / name)

    return write_and_read


def _saved(save: Callable, *arguments, **named) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arguments, **named)
    return buffer.getvalue()


def _image() -> np.ndarray:
    return np.random.default_rng(0).normal(5, 2, (16, 16)).astype(np.float32)


def _pair() -> np.ndarray:
    pair = np.empty(2, object)
    pair[:] = [_image(), 1e-23]
    return pair


def _npys() -> list[bytes]:
    image = _image()
    arrays = [image, image.astype(">f8"), np.asfortranarray(image)[None], np.stack([image] * 5)]
    return [_saved(np.save, array) for array in arrays] + [_saved(np.save, _pair(), allow_pickle=True)]


def _read_npy(path: Path):
    from lenslib.errors import InputError
    from lenslib.image_files import read_images
    from lenslib.npy_files import read_npy

    read_npy(path, mapped=True)
    try:
        read_images(path, 16)
    except InputError as error:
        return error


def _read_deeplense(content: bytes, folder: Path):
    from lenslib.dataset import open_dataset

    for name, bytes_ in (("no_sub", _npys()[0]), ("axion", content)):
        (folder / "set" / name).mkdir(parents=True, exist_ok=True)
        (folder / "set" / name / "0.npy").write_bytes(bytes_)
    return open_dataset(folder / "set").images[:]


def _fits() -> list[bytes]:
    from astropy.io import fits

    bare, placed = fits.PrimaryHDU(_image()), fits.ImageHDU(_image().round().astype(np.int16))
    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 8.0, "CD1_1": -1e-5, "CD2_2": 1e-5, "BZERO": 5.0}
    placed.header.update(header)
    squeezed = fits.CompImageHDU(_image().round().astype(np.int16))
    return [
        _saved(lambda file, units=units: fits.HDUList(units).writeto(file))
        for units in ([bare], [fits.PrimaryHDU(), placed], [fits.PrimaryHDU(), squeezed])
    ]


@cache
def _data_set() -> dict[str, bytes]:
    import torch

    from lenslib.dataset import write_batches
    from lenslib.recipe import load_recipe

    recipe = load_recipe("deeplense_1", {"instrument.pixels": 16, "instrument.pixel_scale": 0.3})
    with tempfile.TemporaryDirectory() as place:
        drawn = (
            torch.from_numpy(_image()).repeat(6, 1, 1, 1),
            {"label": torch.arange(6) % 3, "theta_E": torch.ones(6)},
        )
        folder = write_batches(recipe, 6, 1, [drawn], 0, Path(place) / "set").folder
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _read_data_set(name: str) -> Callable:
    """Of a reader of one file of a data set: with digests and seal as whoever made the file would have them."""

    def read(content: bytes, folder: Path):
        from lenslib import dataset

        files = _data_set() | {name: content}
        try:
            said = json.loads(files["dataset.json"])
            if name != "dataset.json":
                said["sha256"] = said["sha256"] | {name: hashlib.sha256(content).hexdigest()}
            said["seal"] = dataset._seal(said)
            files["dataset.json"] = json.dumps(said).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # no more to be sealed
        (folder / "sealed").mkdir(exist_ok=True)
        for own, bytes_ in files.items():
            (folder / "sealed" / own).write_bytes(bytes_)
        return dataset.open_dataset(folder / "sealed")

    return read


def _records() -> list[bytes]:
    from lenslib.records import run_folder, write_run

    place = {"profile": "test", "task": "t", "recipe": "r", "model": "m", "seed": 0}
    with tempfile.TemporaryDirectory() as results:
        metrics = {"macro_auc": {"value": 0.9, "low": 0.8, "high": 1.0}, "bare": 3, "name": "x"}
        given = {"parameters": {"count": 3}, "seconds": {"train": 3.5}, "predictions": {"scores": _image()}}
        run = write_run(run_folder(results, **place), **place, metrics=metrics, **given)
        return [(run.folder / "record.json").read_bytes()]


def _read_record(content: bytes, folder: Path):
    from lenslib.records import load_run

    place = folder / "test/t/r/m/seed0"
    place.mkdir(parents=True, exist_ok=True)
    (place / "record.json").write_bytes(content)
    return load_run(place)


def _weights() -> list[bytes]:
    import torch
    from safetensors.torch import save

    from lenslib.inference import classifier_metadata
    from lenslib.models import create_model
    from lenslib.recipe import load_recipe

    torch.manual_seed(0)
    recipe = load_recipe("deeplense_1", {"instrument.pixels": 16})
    state = create_model("small_cnn", 3, 16).state_dict()
    return [
        save({name: value.contiguous() for name, value in state.items()}, classifier_metadata("small_cnn", recipe, 16))
    ]


def _predictions() -> list[bytes]:
    return [_saved(save, scores=_image(), labels=np.arange(16)) for save in (np.savez, np.savez_compressed)]


def _notebooks() -> list[bytes]:
    import nbformat

    from lenslib.notebooks import keep

    output = nbformat.v4.new_output("display_data", {"text/html": "<b>1</b>", "text/plain": "1"})
    cell = nbformat.v4.new_code_cell("1", id="one", outputs=[output], metadata={"tags": ["parameters"]})
    with tempfile.TemporaryDirectory() as place:
        keep(nbformat.v4.new_notebook(cells=[cell]), Path(place) / "a.ipynb")
        return [(Path(place) / "a.ipynb").read_bytes()]


def _frames() -> list[bytes]:
    import h5py

    def save(file):
        image = _image()
        with h5py.File(file, "w") as stored:
            stored["image_data"], stored["kernel_point_source"] = image, image[:15, :15] ** 2
            stored["exposure_time"], stored["background_rms"] = 100 + image, 0.1
            stored["transform_pix2angle"] = 0.05 * np.eye(2)

    return [_saved(save)]


def _read_frame(path: Path):
    from lenslib.frames import read_frame

    path.with_name("psf.h5").write_bytes(path.read_bytes())
    return read_frame(path, path.with_name("psf.h5"))


def _cosmosim() -> list[bytes]:
    return [
        b"index,filename,source,lens,chi,einsteinR,sigma,x,y\n1,a.png,s,SIS,50,20,10.5,3,4\n2,a.png,s,SIS,50,20,9,1,2\n"
    ]


def _read_cosmosim(content: bytes, folder: Path):
    from lenslib.cosmosim import read_cosmosim

    (folder / "a.png").write_bytes(_pngs()[0])
    (folder / "a.csv").write_bytes(content)
    return read_cosmosim(folder / "a.csv")


@cache
def _pngs() -> list[bytes]:
    from PIL import Image

    levels = Image.fromarray((20 * _image()).clip(0, 255).astype(np.uint8))
    return [_saved(lambda file: levels.save(file, format="PNG"))]


def _read_png(content: bytes, folder: Path):
    from lenslib.cosmosim import read_cosmosim

    (folder / "b.png").write_bytes(content)
    (folder / "b.csv").write_text("filename,source,x,y,sigma\nb.png,s,1,2,3\n")
    return read_cosmosim(folder / "b.csv").images[:]


def _of(module: str, name: str) -> Callable:
    """A function of the library, imported when it is called."""

    def call(path: Path):
        from importlib import import_module

        return getattr(import_module(f"lenslib.{module}"), name)(path)

    return call


def _recipes() -> list[bytes]:
    folder = Path(__file__).parents[1] / "lenslib/recipes"
    return [
        (folder / f"{name}.yaml").read_bytes() for name in ("deeplense_1", "matched_hst", "roulette_sis", "model_b")
    ]


TAGS = ("!!bool x", "!!float x", "2001-99-99", "&a", "*a", "<<: ", "!!python/name:os.system")
TYPES = ("|O", "<f8", "(-1,", "cos\nsystem\n", "r\xff\xff\xff\x7f", "PK\x03\x04")
CARDS = ("NAXIS1  =", "ZNAXIS1 =", "TFORM1  = '", "CPDIS1  = 'LOOKUP'")
READERS = {
    "recipe": Reader(_recipes, _file("own.yaml", _of("recipe", "load_recipe")), TAGS),
    "record": Reader(_records, _read_record, ('"../../x"', '"seed"', "<script>", "1e400")),
    "manifest": Reader(lambda: [_data_set()["dataset.json"]], _read_data_set("dataset.json"), ('"../x"', "null")),
    "images": Reader(lambda: [_data_set()["images.npy"]], _read_data_set("images.npy"), TYPES),
    "params": Reader(lambda: [_data_set()["params.parquet"]], _read_data_set("params.parquet")),
    "npy": Reader(_npys, _file("a.npy", _read_npy), TYPES),
    "deeplense": Reader(_npys, _read_deeplense, TYPES),
    "fits": Reader(_fits, _file("a.fits", _of("fits_files", "read_fits")), CARDS),
    "predictions": Reader(_predictions, _file("a.npz", _of("npy_files", "read_npz")), TYPES),
    "notebook": Reader(_notebooks, _file("a.ipynb", _of("notebooks", "read_whole")), ('"cells"', '"data"', "[[[[")),
    "cosmosim": Reader(_cosmosim, _read_cosmosim, ("../", ",,", '"', "1e999")),
    "png": Reader(_pngs, _read_png, ("IHDR", "IDAT", "acTL")),
    "hdf5": Reader(_frames, _file("a.h5", _read_frame), ("SNOD", "TREE", "HEAP")),
    "weights": Reader(_weights, _file("w", _of("inference", "load_classifier")), ("F64", "I8", "size", "in_chans")),
}
