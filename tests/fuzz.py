"""Files that are damaged at random, put through every reader: each is read, or refused in one line.

    python tests/fuzz.py --inputs 1000000                       # the campaign; its record goes to results/
    python tests/fuzz.py --inputs 50000 --only npy fits         # of some readers alone
    python tests/fuzz.py --atheris fits -- -runs=100000  # led by coverage, where atheris is installed

Input k of a reader is the same on every computer. One that fails is kept in `tests/once_failed`, where the test suite
reads it again. The suite itself puts a few through each reader (`tests/test_hostile_files.py`).
"""

import argparse
import hashlib
import math
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fuzz_readers import READERS, Reader

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
