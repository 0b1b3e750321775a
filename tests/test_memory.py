"""What the system would grant and not have is refused where torch can say so."""

import resource
from pathlib import Path

import pytest
import torch

from lenslib.memory import held_to_free_memory, out_of_memory

pytestmark = pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="a matter of Linux")


def test_what_is_not_free_is_refused_and_the_limit_is_lifted_after():
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with held_to_free_memory(torch.device("cpu")):
        assert len(torch.empty(2**20)) == 2**20
        with pytest.raises(RuntimeError) as error:  # in bytes, what is free
            torch.empty(1024 * int(free.split()[1]), dtype=torch.uint8)
        assert out_of_memory(error.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_an_accelerator_has_its_own_errors():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with held_to_free_memory(torch.device("cuda")):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
