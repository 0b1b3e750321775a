"""How this process asks its operating system for memory."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# as glibc's malloc.h names them: free memory at the end of the heap to keep, and the size of what is never kept; before
# glibc 2.35 that could be 32 MB at most
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _NEVER_KEPT, _NEVER_KEPT_BEFORE = 2**31 - 1, 2**28, 2**25
_MEGABYTE = 2**20


def keep_freed_memory() -> None:
    """Let glibc keep what was freed for what is asked for next; elsewhere, nothing changes.

    Simulations, fits and trainings free and ask for arrays of megabytes hundreds of times a second. Handed back each
    time, every page is cleared by the kernel before it is used again, which takes up to two thirds of the time.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None or _chosen_by_the_user():
        return
    # the second alone would fix the first where it is by default, at 128 kB
    if mallopt(_M_MMAP_THRESHOLD, _NEVER_KEPT) or mallopt(_M_MMAP_THRESHOLD, _NEVER_KEPT_BEFORE):
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Meanwhile let glibc keep less than a megabyte of what is freed, and begin with what it has kept so far.

    What the system says of this process is then what it uses. A user's own choice stays; what was kept by it, goes.
    """
    mallopt, trim = _of_glibc("mallopt"), _of_glibc("malloc_trim")
    if mallopt is not None and not _chosen_by_the_user():
        mallopt(_M_MMAP_THRESHOLD, _MEGABYTE)
        mallopt(_M_TRIM_THRESHOLD, _MEGABYTE)
    if trim is not None:
        trim(0)
    try:
        yield
    finally:
        keep_freed_memory()


def _chosen_by_the_user() -> bool:
    return any(name.startswith("MALLOC_") for name in os.environ)


def _of_glibc(name: str):
    """A function of the C library, None where it lacks it."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
