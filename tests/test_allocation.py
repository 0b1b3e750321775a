"""Memory that was freed is used again."""

import ctypes
import os
import subprocess
import sys

import pytest

from lenslib import allocation

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
FAULTS = """
import resource
import numpy as np
{first}
for _ in range(3):
    np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_an_array_freed_is_an_array_at_hand():
    """Twenty arrays of 64 MB, one after another: pages are asked for twenty times, or hardly ever."""

    def faults(first):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", FAULTS.format(first=first)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=clean).stdout)

    # at least one for each huge page of two megabytes
    assert faults("pass") > 20 * 32 / 2
    assert faults("import lenslib") < 32


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([1, 1], [(-3, 2**28), (-1, 2**31 - 1)]),
        ([0, 1, 1], [(-3, 2**28), (-3, 2**25), (-1, 2**31 - 1)]),
        ([0, 0], [(-3, 2**28), (-3, 2**25)]),
    ],
)
def test_what_the_library_refuses_is_asked_for_smaller_or_left(monkeypatch, answers, asked):
    calls, answers = [], iter(answers)

    class Library:
        def mallopt(self, name, value):
            calls.append((name, value))
            return next(answers)

    monkeypatch.setattr(allocation.sys, "platform", "linux")
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: Library())
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    allocation.keep_freed_memory()
    assert calls == asked

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    allocation.keep_freed_memory()
    assert calls == asked, "the user has chosen"


def test_it_changes_nothing_where_the_library_is_another(monkeypatch):
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    allocation.keep_freed_memory()
