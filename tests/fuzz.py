"""Files that are damaged at random, put through every reader: each is read, or refused in one line.

    python tests/fuzz.py --inputs 1000000                       # the campaign; its record goes to results/
    python tests/fuzz.py --inputs 50000 --only npy fits         # of some readers alone
    python tests/fuzz.py --atheris fits -- -runs=100000  # led by coverage, where atheris is installed

Input k of a reader is the same on every computer. One that fails is kept in `tests/once_failed`, where the test suite
reads it again. The suite itself puts a few through each reader (`tests/test_hostile_files.py`).
"""

import argparse
import hashlib
import io
import json
import math
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

ONCE_FAILED = Path(__file__).parent / "once_failed"
# seconds and bytes that no small file may take, and bytes by which none may raise the most that was held
MOST_SECONDS, MOST_BYTES, MOST_GROWTH = 20, 8 << 30, 1 << 30
NUMBERS = [
    "-1",
    "0",
    "1",
    "2147483648",
    "99999999999999999999",
    "1e999",
    "NaN",
    "0x10",
    "''",
    "[]",
    "{}",
    "null",
    "9" * 30,
]
BYTES = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    ord("-"),
    ord("0"),
    ord("9"),
    ord("["),
    ord("{"),
    ord("("),
    ord("'"),
    ord("\n"),
    ord("."),
]


class Reader(NamedTuple):
    """What makes whole files [bytes], what reads one in a folder, and words that mean something to it."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]
    words: tuple[str, ...] = ()


def damage(rng: random.Random, content: bytes, words: tuple[str, ...] = ()) -> bytes:
    """The content with one to six small changes, now and then none."""
    damaged = bytearray(content)
    for _ in range(rng.randrange(7)):
        place = rng.randrange(len(damaged) + 1)
        # headers lie at the beginning
        place = place if rng.random() < 0.5 else min(place, rng.randrange(1, 200))
        length = min(len(damaged) - place, 1 << rng.randrange(8))
        match rng.randrange(8):
            case 0 | 1 if place < len(damaged):
                damaged[place] = rng.choice(BYTES) if rng.random() < 0.5 else rng.randrange(256)
            case 2:
                del damaged[place : place + length]
            case 3:
                other = rng.randrange(len(damaged) + 1)
                damaged[place:place] = damaged[other : other + length]
            case 4 if rng.random() < 0.2:
                del damaged[place:]
            case 5 if words:
                damaged[place:place] = rng.choice(words).encode("latin1")
            case 6:  # a number there becomes another
                digits = [k for k in range(place, min(place + 200, len(damaged))) if chr(damaged[k]).isdigit()]
                if digits:
                    end = digits[0] + 1
                    while end < len(damaged) and chr(damaged[end]).isdigit():
                        end += 1
                    damaged[digits[0] : end] = rng.choice(NUMBERS).encode()
            case 7:
                damaged[place : place + length] = rng.randbytes(length)
    return bytes(damaged)


class TooLong(BaseException):
    """A reader took longer than any small file may: no reader can take this for damage of the file."""


def fault(reader: Reader, content: bytes, folder: Path) -> str:
    """What is wrong with how a reader takes this content; nothing if it reads it or refuses it in one line, without
    taking long or much memory. A refusal for want of memory is wrong: it came after the memory was asked for."""
    from lenslib.errors import InputError

    before, said = _peak(), ""
    try:
        reader.read(content, folder)
    except InputError as error:
        said = "" if "\n" not in str(error) else f"more than one line: {error!r:.300}"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                said = f"asks for more than {MOST_BYTES >> 30} GB"
            cause = cause.__context__
    except TooLong:
        said = f"takes more than {MOST_SECONDS} s"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:300]
    grown = _peak() - before
    return said or (f"takes {grown >> 20} MB of memory" if grown > MOST_GROWTH else "")


def _peak() -> int:
    """The most memory in bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


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
    from lenslib.inference import read_images
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
    "weights": Reader(_weights, _file("w", _of("inference", "load_classifier")), ("F64", "I8", "size", "in_chans")),
}


def campaign(names: list[str], inputs: int, first: int, most: float, step: Callable[[str], None]) -> dict[str, dict]:
    """So many inputs through each reader, or as many as `most` seconds allow; how many, in how many seconds, and the
    faults by what was said."""
    found = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        for name in names:
            reader, faults = READERS[name], {}
            seeds, count = reader.seeds(), 0
            for seed in seeds:  # whole files are read; and all is imported before anything is timed
                reader.read(seed, Path(place))
            start = time.perf_counter()
            for k in range(first, first + inputs):
                if time.perf_counter() - start > most:
                    break
                rng = random.Random(f"{name} {k}")
                content = damage(rng, rng.choice(seeds), reader.words)
                signal.alarm(MOST_SECONDS)
                said = fault(reader, content, Path(place))
                signal.alarm(0)
                count += 1
                if said and said not in faults:
                    faults[said] = keep(name, content)
                    step(f"{name} {k}: {said}")
            found[name] = {"inputs": count, "seconds": round(time.perf_counter() - start, 1), "faults": faults}
            step(f"{name}: {count:,} inputs, {len(faults)} kinds of fault, {found[name]['seconds']:.0f} s")
    return found


def keep(name: str, content: bytes) -> str:
    ONCE_FAILED.mkdir(exist_ok=True)
    path = ONCE_FAILED / f"{name}-{hashlib.sha256(content).hexdigest()[:10]}"
    path.write_bytes(content)
    return path.name


def guided(name: str, options: list[str]) -> None:
    """libFuzzer through atheris, until it is told to stop; the first fault ends it."""
    import atheris

    with atheris.instrument_imports(include=["lenslib", "numpy.lib", "yaml", "json", "pickletools", "astropy.io.fits"]):
        import lenslib.dataset
        import lenslib.fits_files
        import lenslib.inference  # noqa: F401
    reader = READERS[name]
    place = Path(tempfile.mkdtemp())
    (place / "seeds").mkdir()
    for k, seed in enumerate(reader.seeds()):
        (place / "seeds" / str(k)).write_bytes(seed)

    def one(content: bytes) -> None:
        if said := fault(reader, content, place):
            raise RuntimeError(f"{said}; kept as {keep(name, content)}")

    atheris.Setup([sys.argv[0], f"-timeout={MOST_SECONDS}", *options, str(place / "seeds")], one)
    atheris.Fuzz()


def _too_long(*_) -> None:
    raise TooLong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for each reader at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first input; another goes on elsewhere")
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--atheris", choices=READERS, help="one reader, led by coverage; options of libFuzzer after --")
    parser.add_argument("--results", default="results")
    parser.add_argument("--profile", default="desk")
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    if arguments.atheris:
        guided(arguments.atheris, arguments.options)
    from lenslib.records import run_folder, write_run

    signal.signal(signal.SIGALRM, _too_long)
    share = -(-arguments.inputs // len(arguments.only))
    found = campaign(arguments.only, share, arguments.first, arguments.seconds, lambda line: print(line, flush=True))
    place = {
        "profile": arguments.profile,
        "task": "bench",
        "recipe": "readers",
        "model": "fuzz",
        "seed": arguments.first,
    }
    metrics = {"inputs": sum(one["inputs"] for one in found.values())}
    metrics |= {f"inputs_{name}": one["inputs"] for name, one in found.items()}
    metrics["kinds_of_fault"] = sum(len(one["faults"]) for one in found.values())
    seconds = {name: one["seconds"] for name, one in found.items()}
    run = write_run(run_folder(arguments.results, **place), **place, parameters={}, metrics=metrics, seconds=seconds)
    print(run.folder)
    return 1 if metrics["kinds_of_fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
