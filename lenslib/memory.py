"""What to say when a batch does not fit into the memory of the device."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from lenslib.allocation import nothing_kept


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate, on an accelerator or on the processor, which has no error of its own for it."""
    # the last is said by oneDNN, which computes torch's convolutions on a processor
    said = ("out of memory", "not enough memory", "can't allocate memory", "could not create a primitive")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def largest_batch(work: Callable[[int], object], size: int, device: torch.device) -> str:
    """One line that says the largest of size / 2, size / 4, ... 2 for which `work` finds memory."""
    smaller = size // 2
    while smaller >= 2 and not _fits(work, smaller, device):
        smaller //= 2
    if smaller < 2:
        return f"a batch of {size} images does not fit into memory, nor do two: choose a smaller model or image size"
    return f"a batch of {size} images does not fit into memory, one of {smaller} does: lower batch_size to that"


def _fits(work: Callable[[int], object], size: int, device: torch.device) -> bool:
    # what was tried before may have left cycles of objects behind it, and holes in memory that count as taken
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        # in a thread of its own, because in one that oneDNN's compiler failed in once it always fails
        with nothing_kept(), held_to_free_memory(device, anew=True), ThreadPoolExecutor(1) as other:
            other.submit(work, size).result()
    except FloatingPointError:  # a number that is not finite has found its place
        return True
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


@contextmanager
def held_to_free_memory(device: torch.device, anew: bool = False) -> Iterator[None]:
    """On a processor under Linux, let an allocation fail that goes beyond nine tenths of what is free now, which torch
    then says; the system would grant it, and kill the program without a word when it is used.

    Within another such bound the lower one counts, unless it is to be drawn `anew`."""
    if device.type != "cpu" or not Path("/proc/meminfo").exists():
        yield
        return
    import resource  # which other systems lack

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = 1024 * (_kilobytes("/proc/self/status", "VmData") + _kilobytes("/proc/meminfo", "MemAvailable") * 9 // 10)
    bounds = [bound for bound in (limit, hard if anew else soft) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _kilobytes(file: str, name: str) -> int:
    lines = (line.split(":") for line in Path(file).read_text().splitlines())
    return next(int(value.split()[0]) for key, value in lines if key == name)
