"""A user's model in a process of its own: `python -m lenslib.benchmark_worker SOCKET`.

It is told the recipe and shown images, and gives scores; it never sees a label, a seed or the order of the test set.
Messages are bytes: JSON, numbers of known kind, and nothing that is unpickled.
"""

import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Task:
    """What a model is told: the recipe's name and its `classes`, in the order of scores; the `shape` (c, h, w) of every
    image that it will be shown; arcsec a pixel, as drawn; and the recipe's own text, in YAML."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    pixel_scale: float
    text: str


class Refused(Exception):
    """Why a model cannot be judged, in words."""


def _work(connection: Connection) -> None:
    job = json.loads(connection.recv_bytes())
    _limit(int(job["memory"] * 1e9))
    try:
        predict, weights = (_onnx if job["file"].endswith(".onnx") else _python)(job)
    except BaseException as error:  # exit() too: whatever it is, it costs the model's row alone
        connection.send_bytes(json.dumps({"failed": _said(error, job["file"])}).encode())
        return
    connection.send_bytes(json.dumps({"weights": weights}).encode())
    while content := connection.recv_bytes():
        images = np.frombuffer(content, np.float32).reshape(-1, *job["task"]["shape"]).copy()
        try:
            start = time.perf_counter()
            found = predict(images)
            seconds = time.perf_counter() - start
            scores = _checked(found, len(images), len(job["task"]["classes"]))
        except BaseException as error:
            connection.send_bytes(json.dumps({"failed": _said(error, job["file"])}).encode())
            return
        connection.send_bytes(json.dumps({"seconds": seconds}).encode())
        connection.send_bytes(scores.tobytes())


def _limit(memory: int) -> None:
    """Bound what this process can allocate, and be the first to go where the computer runs out of memory."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # not Linux


def _said(error: BaseException, file: str) -> str:
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "out of memory")):
        return "it ran out of memory"
    place, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            place = f" (line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"


def _checked(found, count: int, classes: int) -> np.ndarray:
    """Scores float64 [count, classes], of whatever kind a model gave."""
    if hasattr(found, "detach"):
        found = found.detach().cpu().double().numpy()
    try:
        found = np.asarray(found)
    except ValueError:
        raise Refused("it gave rows of different lengths") from None
    if found.dtype.kind not in "fiub":
        raise Refused(f"it gave {type(found).__name__} of {found.dtype}, not numbers")
    if found.shape != (count, classes):
        raise Refused(f"it gave an array of shape {list(found.shape)} for {count} images, not {[count, classes]}")
    return np.ascontiguousarray(found, dtype=np.float64)


def _python(job: dict) -> tuple[Predict, int | None]:
    """What `model(recipe)` of a Python file returns, and the weights of a torch network."""
    path = Path(job["file"])
    sys.path.insert(0, str(path.parent))  # what lies beside it can be imported
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "model", None)):
        raise Refused("the file defines no function model(recipe)")
    found = module.model(Task(**{key: tuple(v) if isinstance(v, list) else v for key, v in job["task"].items()}))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(found, torch.nn.Module):
        return _torch(torch, found.eval()), sum(weight.numel() for weight in found.parameters())
    if not callable(found):
        raise Refused(f"model(recipe) returned {type(found).__name__}, not a function of images or a torch network")
    return found, None


def _torch(torch, network) -> Predict:
    weight = next(network.parameters(), torch.zeros(1))

    @torch.inference_mode()
    def predict(images: np.ndarray):
        return network(torch.from_numpy(images).to(weight.device, weight.dtype))

    return predict


def _onnx(job: dict) -> tuple[Predict, int]:
    """The first output of an ONNX file, and how many numbers it holds."""
    from lenslib.errors import InputError
    from lenslib.onnx_files import open_session

    try:
        session, program = open_session(job["file"])
    except InputError as error:
        raise Refused(str(error)) from None
    if len(session.get_inputs()) != 1:
        raise Refused(f"it takes {len(session.get_inputs())} inputs, not images alone")
    (given,) = session.get_inputs()
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
    if given.type not in kinds:
        raise Refused(f"it takes {given.type}, not images of floating-point numbers")
    sizes, shape = given.shape, job["task"]["shape"]
    if len(sizes) != 4 or any(isinstance(own, int) and own != size for own, size in zip(sizes[1:], shape, strict=True)):
        raise Refused(f"it takes images {sizes[1:]}, and they are {shape}: see --image-size for another size")
    # a file that was exported for one size of batch is shown batches of that size, the last one filled up
    batch = sizes[0] if isinstance(sizes[0], int) else None

    def once(images: np.ndarray) -> np.ndarray:
        return session.run(None, {given.name: images.astype(kinds[given.type])})[0]

    def predict(images: np.ndarray) -> np.ndarray:
        if batch is None:
            return once(images)
        full = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), images.dtype)])
        parts = [once(full[first : first + batch]) for first in range(0, len(full), batch)]
        return np.concatenate(parts)[: len(images)]

    return predict, int(sum(np.prod(tensor.dims, dtype=np.int64) for tensor in program.graph.initializer))


if __name__ == "__main__":
    _work(Connection(int(sys.argv[1])))
