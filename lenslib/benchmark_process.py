"""The scores that a user's model gives to images, whatever else it does: crash, hang, or give what are no scores."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from threading import Timer

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

# bytes of one answer; 100,000 scores are a hundredth of it
_MOST = 1 << 26
# the last words of a process that died, at most so many letters of them
_LAST = 160


class Failed(Exception):
    """Why a model has no scores, in words that a table can hold."""


@dataclass(frozen=True)
class Submitted:
    """A user's model: a Python or an ONNX file, whether it gives `logits`, and its limits: seconds from its start to
    its last answer, 10^9 bytes of memory, images a batch."""

    file: Path
    logits: bool = False
    timeout: float = 600.0
    memory: float = 8.0
    batch_size: int = 128


@dataclass(frozen=True)
class Answers:
    """scores: probabilities float64 [n, classes]; weights: how many the model has, None where it does not say;
    images_per_second: of the model itself, without its start."""

    scores: np.ndarray
    weights: int | None
    images_per_second: float


def ask(model: Submitted, recipe, count: int, batch: Callable[[np.ndarray], np.ndarray], progress=True) -> Answers:
    """Show `count` images of a recipe to a model, in an order that tells nothing, and return its scores in theirs.

    batch: rows [k] -> images float32 [k, c, h, w]. Raises Failed, and leaves no process behind.
    """
    order = np.random.default_rng(count).permutation(count)
    parts = np.split(order, range(model.batch_size, count, model.batch_size))
    shape = list(batch(order[:1]).shape[1:])
    task = {"name": recipe.name, "classes": list(recipe.classes), "shape": shape, "text": recipe.to_yaml()}
    task["pixel_scale"] = recipe.instrument.pixel_scale
    job = {"file": str(model.file.resolve()), "memory": model.memory, "task": task}
    scores, seconds = np.empty((count, len(recipe.classes))), 0.0
    with _process(model, count) as (tell, hear, done):
        tell(json.dumps(job).encode())
        weights = _heard(hear())["weights"]
        what = {"desc": f"{model.file.name} on {recipe.name}", "unit": "image", "leave": False}
        with tqdm(total=count, disable=None if progress else True, **what) as bar:
            for rows in parts:
                tell(np.ascontiguousarray(batch(rows), dtype=np.float32).tobytes())
                seconds += _heard(hear())["seconds"]
                scores[rows] = np.frombuffer(hear()).reshape(len(rows), -1)
                done[0] += len(rows)
                bar.update(len(rows))
    return Answers(_probabilities(scores, model.logits), weights, count / max(seconds, 1e-9))


def _heard(content: bytes) -> dict:
    said = json.loads(content)
    if "failed" in said:
        raise Failed(said["failed"])
    return said


def _probabilities(scores: np.ndarray, logits: bool) -> np.ndarray:
    """Scores as probabilities; Failed, with how many images it is, for what are none."""
    bad = ~np.isfinite(scores).all(1)
    if bad.any():
        raise Failed(f"its scores of {bad.sum():,} of {len(scores):,} images are not finite")
    if logits:
        return softmax(scores, axis=1)
    off = (np.abs(scores.sum(1) - 1) > 1e-3) | (scores.min(1) < -1e-3)
    if off.any():
        raise Failed(
            f"its scores of {off.sum():,} of {len(scores):,} images are negative or do not sum to one: if they are "
            "logits, say --logits"
        )
    return scores


@contextmanager
def _process(model: Submitted, count: int) -> Iterator[tuple]:
    """How to tell and hear a process that runs the model, and a list that holds how many images it has judged."""
    ours, theirs = Pipe()
    done, late = [0], []
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lenslib.benchmark_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts ends with it
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        theirs.close()

        def stop() -> None:
            late.append(True)
            _kill(process)

        timer = Timer(model.timeout, stop)
        timer.daemon = True
        timer.start()
        try:
            yield ours.send_bytes, lambda: ours.recv_bytes(_MOST), done
        except (EOFError, OSError):
            if late:
                raise Failed(
                    f"it took longer than {model.timeout:g} s and was stopped: {done[0]:,} of {count:,} images were "
                    "judged by then"
                ) from None
            raise Failed(_end(process) + _last_words(log)) from None
        finally:
            timer.cancel()
            _kill(process)
            process.wait()
            ours.close()


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _end(process: subprocess.Popen) -> str:
    try:
        code = process.wait(10)
    except subprocess.TimeoutExpired:
        return "it stopped answering"
    if code == -signal.SIGKILL:
        return "its process was killed (SIGKILL), as where memory runs out"
    how = f"ended with exit code {code}" if code >= 0 else f"died of {signal.Signals(-code).name}"
    return f"its process {how}"


def _last_words(log) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read()[-4096:].decode(errors="replace").splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:_LAST]}" if lines else ""
