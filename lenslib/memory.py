"""What to say when a batch does not fit into the memory of the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate, on an accelerator or on the processor, which has no error of its own for it."""
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def largest_batch(work: Callable[[int], object], size: int) -> str:
    """One line that says the largest of size / 2, size / 4, ... 2 for which `work` finds memory."""
    smaller = size // 2
    while smaller >= 2 and not _fits(work, smaller):
        smaller //= 2
    if smaller < 2:
        return f"a batch of {size} images does not fit into memory, nor do two: choose a smaller model or image size"
    return f"a batch of {size} images does not fit into memory, one of {smaller} does: lower batch_size to that"


def _fits(work: Callable[[int], object], size: int) -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        work(size)
    except FloatingPointError:  # a number that is not finite has found its place
        return True
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


@contextmanager
def held_to_free_memory(device: torch.device) -> Iterator[None]:
    """On a processor under Linux, let an allocation fail that goes beyond nine tenths of what is free now, which torch
    then says; the system would grant it, and kill the program without a word when it is used."""
    if device.type != "cpu" or not Path("/proc/meminfo").exists():
        yield
        return
    import resource  # which other systems lack

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _kilobytes("/proc/self/status", "VmData") + _kilobytes("/proc/meminfo", "MemAvailable") * 9 // 10
    bounds = [bound for bound in (1024 * limit, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _kilobytes(file: str, name: str) -> int:
    lines = (line.split(":") for line in Path(file).read_text().splitlines())
    return next(int(value.split()[0]) for key, value in lines if key == name)
