"""Faults of disks, clocks and people, made on purpose: what they do to a run's folder and to a data set's.

Each function makes one fault many times in a folder of its own and says how often it was detected (an InputError, or a
word and a fresh start, before any number was shown), how often it was harmless (every number as it was), and how often
neither. `lenslib bench faults` records them, and the faults of whole workflows (`lenslib.faults_workflow`) with them.
"""

import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import torch

from lenslib.checkpoints import Keeper
from lenslib.dataset import open_dataset, write_batches
from lenslib.errors import InputError
from lenslib.notebooks import keep, read_whole, verify_run
from lenslib.recipe import load_recipe
from lenslib.records import CHECKPOINT, run_folder, write_run
from lenslib.status import overview

PLACE = {"profile": "test", "task": "classification", "recipe": "deeplense_1", "model": "small_cnn", "seed": 0}
COUNT = 12
DAY = 86400.0


@dataclass(frozen=True)
class Outcome:
    """How often a fault was made, detected, and harmless."""

    tried: int
    detected: int
    harmless: int

    @property
    def unnoticed(self) -> int:
        """How often a number was lost or changed without a word."""
        return self.tried - self.detected - self.harmless


def write_data(folder: Path) -> None:
    """A data set of noise in `folder`."""
    recipe = load_recipe("deeplense_1", {"instrument.pixels": 16})
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, 1, 16, 16, generator=generator)
    batches = [(images, {"label": torch.arange(COUNT) % 3, "lens_theta_E": torch.rand(COUNT, generator=generator)})]
    write_batches(recipe, COUNT, 1, batches, 0, folder)


def write_results(folder: Path, score: float = 0.5) -> None:
    """A run with all its files in `folder`, whose last parts are those of PLACE; all its scores are `score`."""
    scores = np.full((COUNT, 3), score, np.float32)
    write_run(
        folder,
        **PLACE,
        parameters={"train_count": COUNT},
        metrics={"macro_auc": {"value": score, "low": score / 2, "high": 1.0}},
        predictions={"labels": np.arange(COUNT) % 3, "scores": scores},
        history=[{"epoch": 1, "train_loss": 1.25, "seconds": 3.5}],
        weights={"layer": torch.linspace(0, 1, 64)},
    )


def write_checkpoint(folder: Path) -> None:
    """The checkpoint of a training in `folder`."""
    Keeper(folder, "this run").save({"weights": torch.linspace(0, 1, 64)})


def write_notebook(folder: Path) -> None:
    """An executed notebook in `folder`, from the log of its run, which is in memory: that disk has room."""
    output = nbformat.v4.new_output("stream", name="stdout", text="macro AUC 0.50\n")
    cell = nbformat.v4.new_code_cell("1", id="one", outputs=[output])
    keep(nbformat.v4.new_notebook(cells=[cell]), folder / "notebook.ipynb")


def read_data(folder: Path) -> list:
    data = open_dataset(folder)
    table = data.params.to_json(double_precision=15)
    return [data.images.tobytes(), data.labels.tobytes(), table, data.recipe.to_yaml(), data.seed, data.units]


def read_results(folder: Path) -> list:
    run = verify_run(folder)
    said = {name: run.record[name] for name in ("metrics", "parameters", "datasets", "seconds", "files", *PLACE)}
    predictions = {name: array.tobytes() for name, array in run.predictions().items()}
    return [said, predictions, run.history().to_json(), run.path("weights.safetensors").read_bytes()]


def read_checkpoint(folder: Path) -> list:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        state = Keeper(folder, "this run").load()
    if state is None:
        raise InputError(said.getvalue())
    return state["weights"].tolist()


def read_notebook(folder: Path) -> list:
    return read_whole(folder / "notebook.ipynb").cells


# what is written to a folder, and read again: a run's folder has the name that its record says
KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], list]]] = {
    "data set": (write_data, read_data),
    "run": (write_results, read_results),
    "checkpoint": (write_checkpoint, read_checkpoint),
    "notebook": (write_notebook, read_notebook),
}


def _place(root: Path, kind: str) -> Path:
    return run_folder(root / kind, **PLACE)


def corrupted_byte(root: Path, tries: int = 40, seed: int = 0) -> Outcome:
    """One bit or more of one byte changed, `tries` times in every file of a run and of a data set."""
    rng = np.random.default_rng(seed)

    def damage(content: bytes) -> bytes:
        place = rng.integers(len(content))
        return content[:place] + bytes([content[place] ^ rng.integers(1, 256)]) + content[place + 1 :]

    return _damaged(root, damage, tries)


def truncated(root: Path, tries: int = 10, seed: int = 0) -> Outcome:
    """Every file of a run and of a data set cut short, `tries` times."""
    rng = np.random.default_rng(seed)
    return _damaged(root, lambda content: content[: rng.integers(len(content))], tries)


def _damaged(root: Path, damage: Callable[[bytes], bytes], tries: int) -> Outcome:
    tried = detected = harmless = 0
    for kind, (write, reader) in KINDS.items():
        folder = _place(root, kind)
        write(folder)
        expected = reader(folder)
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            content = path.read_bytes()
            for _ in range(tries):
                path.write_bytes(damage(content))
                seen = _same(reader, folder, expected)
                tried, detected, harmless = tried + 1, detected + (seen is None), harmless + (seen is True)
            path.write_bytes(content)
    return Outcome(tried, detected, harmless)


def _same(reader: Callable[[Path], list], folder: Path, expected: list) -> bool | None:
    """Whether all numbers are as expected; None where reading them is refused."""
    try:
        return reader(folder) == expected
    except InputError:
        return None


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can grow past `room` bytes: a write that would fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def disk_full(root: Path, rooms=(0, 100, 400)) -> Outcome:
    """The disk is full when a data set, a run, a checkpoint and a notebook are written; then there is room again."""
    found = [_refused(_place(root / str(room), kind), kind, full_disk(room)) for room in rooms for kind in KINDS]
    return Outcome(len(found), sum(found), 0)


def _refused(folder: Path, kind: str, fault: contextlib.AbstractContextManager) -> bool:
    """Whether writing is refused in words, leaves nothing behind that could be taken for whole, and works afterwards
    as if nothing had been."""
    write, reader = KINDS[kind]
    try:
        with fault:
            write(folder)
    except InputError:
        pass
    else:
        return False
    kept = [path for path in folder.parent.rglob("*") if path.is_file()] if folder.parent.exists() else []
    if any(path.name in ("record.json", "dataset.json", CHECKPOINT) or "part" in path.suffix for path in kept):
        return False
    write(folder)
    write(_place(folder.parent / "other", kind))
    return reader(folder) == reader(_place(folder.parent / "other", kind))


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written to `folder`. InputError where that cannot be had."""
    root = os.geteuid() == 0
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)  # root may write wherever it likes
    try:
        with contextlib.suppress(PermissionError):
            (folder / "probe").touch()
            raise InputError(f"'{folder}' cannot be made read-only")
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


def read_only_folder(root: Path) -> Outcome:
    """A data set, a run, a checkpoint and a notebook are written to a folder that cannot be written to."""
    found = []
    # others may enter none of the folders that are made for one user
    with tempfile.TemporaryDirectory(prefix="lenslib-faults-") as place:
        Path(place).chmod(0o755)
        for kind in KINDS:
            folder = Path(place, kind)
            folder.mkdir()
            found.append(_refused(_place(folder, "inside"), kind, read_only(folder)))
    return Outcome(len(found), sum(found), 0)


def two_at_once(root: Path, times: int = 4) -> Outcome:
    """Two processes write the same run, and two threads the same data set, at the same time."""
    found = [_two_data_sets(root / str(k)) for k in range(times)]
    folder, fork = _place(root, "two runs"), multiprocessing.get_context("fork")
    for _ in range(times):
        writers = [fork.Process(target=write_results, args=(folder, score)) for score in (0.25, 0.75)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        found.append(_one_of_two(folder))
    return Outcome(len(found), found.count(None), found.count(True))


def _two_data_sets(root: Path) -> bool | None:
    """None where the second writer was refused and the set is whole."""
    together, refused = threading.Barrier(2, timeout=60), []

    def write():
        together.wait()
        try:
            write_data(root / "set")
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    write_data(root / "other")
    whole = read_data(root / "set") == read_data(root / "other")
    return None if whole and len(refused) == 1 else False


def _one_of_two(folder: Path) -> bool | None:
    try:
        run = verify_run(folder)
        scores = run.predictions()["scores"]
    except InputError:
        return None
    return bool((scores == run.metrics["macro_auc"]["value"]).all())


def clock_back(root: Path) -> Outcome:
    """The clock went back by a day when everything was written: files are of tomorrow, and ages below zero."""
    found = []
    for kind, (write, reader) in KINDS.items():
        folder = _place(root, kind)
        write(folder)
        expected = reader(folder)
        for path in folder.iterdir():
            os.utime(path, (time.time() + DAY,) * 2)
        found.append(_same(reader, folder, expected))
    told = overview(root / "checkpoint", root / "logs")
    found.append(bool(told) and not any("-" in one.note for one in told))
    return Outcome(len(found), found.count(None), found.count(True))


# by their name in the record
FAULTS: dict[str, Callable[[Path], Outcome]] = {
    "corrupted_byte": corrupted_byte,
    "truncated": truncated,
    "disk_full": disk_full,
    "read_only": read_only_folder,
    "two_at_once": two_at_once,
    "clock_back": clock_back,
}


def make_faults(seed: int = 0, step: Callable[[str], None] = print) -> dict[str, Outcome]:
    """Every fault of FAULTS, by name, in a folder that goes afterwards; `step` is told what comes next."""
    outcomes = {}
    for name, make in FAULTS.items():
        step(name.replace("_", " "))
        folder = Path(tempfile.mkdtemp(prefix="lenslib-faults-"))
        try:
            given = {"seed": seed} if name in ("corrupted_byte", "truncated") else {}
            outcomes[name] = make(folder, **given)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes
