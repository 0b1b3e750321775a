"""What is kept of a training while it runs: its history, epoch by epoch, and what it takes to go on after a crash.

Both lie in the run's folder. A checkpoint is replaced whole, and `lenslib.records.write_run` takes it away when the run
is over. It holds tensors, numbers and texts, and nothing in it is run when it is read.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from lenslib.errors import InputError
from lenslib.provenance import source_digest
from lenslib.records import CHECKPOINT, UNFINISHED, history_csv, write_whole

_TORN = "is torn, or no checkpoint: training starts anew"


def start_digest(facts: dict, tensors: Iterable[Tensor]) -> str:
    """SHA-256 over all that a training follows from: facts as JSON, tensors as bytes, this library and its torch."""
    digest = hashlib.sha256(json.dumps([facts, source_digest(), torch.__version__], sort_keys=True).encode())
    for tensor in tensors:
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


class Keeper:
    """Keeps the history and the checkpoint of one training in `folder` (none: nothing is kept).

    `start` says which training it is, see `start_digest`: a checkpoint of another one is not gone on with.
    Raises InputError for a folder that cannot be written to.
    """

    def __init__(self, folder: str | Path | None, start: str = ""):
        self.folder, self.start = folder and Path(folder), start
        if self.folder:
            place = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
            if not place.is_dir() or not os.access(place, os.W_OK):
                raise InputError(f"'{self.folder}' cannot be written to: choose another folder for results")

    def load(self) -> dict | None:
        """The state in the checkpoint; None, after a word on standard error, for one that is torn or of another run."""
        if not self.folder or not (self.folder / CHECKPOINT).is_file():
            return None
        path = self.folder / CHECKPOINT
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise EOFError
            kept = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            start, state = kept["start"], kept["state"]
        except Exception:  # torch raises whatever damage leads it to
            return _say(f"'{path}' {_TORN}")
        if start != self.start:
            return _say(f"'{path}' is of another run (settings, data, model or code): training starts anew")
        return state

    def tell(self, taken: bool) -> None:
        """Say whether training goes on from what `load` gave, or could not take it up."""
        if self.folder:
            _say(f"'{self.folder / CHECKPOINT}'{': training goes on where it stopped' if taken else f' {_TORN}'}")

    def save(self, state: dict) -> None:
        """Replace the checkpoint by `state`: tensors, numbers and texts in dicts, lists and tuples."""
        if self.folder:
            content = io.BytesIO()
            torch.save({"start": self.start, "state": state}, content)
            sealed = hashlib.sha256(content.getbuffer()).digest() + content.getbuffer()
            self._write(CHECKPOINT, sealed)

    def show(self, history: list[dict[str, float]]) -> None:
        """Write the epochs so far to history.csv, or beside it where a finished run lies, whose file that is."""
        if self.folder:
            over = (self.folder / "record.json").exists()
            self._write(UNFINISHED if over else "history.csv", history_csv(history))

    def _write(self, name: str, content: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, content)
        except OSError as error:
            raise InputError(f"'{self.folder}' cannot be written to ({error.strerror}): make room there") from None


def _say(what: str) -> None:
    print(f"lenslib: {what}", file=sys.stderr)
