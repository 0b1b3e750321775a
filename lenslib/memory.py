"""What to say when a batch does not fit into the memory of the device."""

from collections.abc import Callable

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
