"""Memory that was freed is used again."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
{first}
for _ in range(5):
    np.ones(2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    np.ones(2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_an_array_freed_is_an_array_at_hand():
    """A hundred arrays of eight megabytes, one at a time: their pages are asked for once, or a hundred times."""

    def faults(first):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS.format(first=first)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # without, each array faults at least once for each of its huge pages of two megabytes
    forced = "import ctypes; ctypes.CDLL(None).mallopt(-3, 131072)"
    assert faults(forced) > 300
    assert faults("import lenslib") < 100


def test_it_changes_nothing_where_the_library_is_another(monkeypatch):
    from lenslib import allocation

    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    allocation.keep_freed_memory()
