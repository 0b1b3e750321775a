"""What the system would grant and not have is refused where torch can say so."""

import re
import resource
import subprocess
import sys
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


# a machine on which so many kilobytes are free when training begins
SMALL = """
import torch
from lenslib import memory
from lenslib.errors import InputError
from lenslib.models import create_model
from lenslib.settings import Settings
from lenslib.training import train

seen = memory._kilobytes
kilobytes = lambda kind: seen("/proc/self/status", kind)
left = lambda: {free} + start - kilobytes("VmRSS")
images, labels = torch.randn(300, 1, {size}, {size}), torch.arange(300) % 3
network = create_model("{model}", 3, {size})
torch.nn.functional.conv2d(images[:2], torch.ones(1, 1, 3, 3))
start = kilobytes("VmRSS")
memory._kilobytes = lambda file, name: left() if name == "MemAvailable" else seen(file, name)
try:
    train(network, (images, labels), (images[:3], labels[:3]), Settings(1, 300), lambda *_: 0.0, "cpu")
except InputError as error:
    print(error)
print(kilobytes("VmHWM") - start)
"""


@pytest.mark.parametrize(("model", "size", "free"), [("small_cnn", 96, 400_000), ("densenet121", 64, 500_000)])
def test_on_a_machine_of_little_memory_a_batch_that_fits_is_found(model, size, free):
    """In a program of its own: oneDNN's compiler, once it had no memory, fails in that thread ever after. Once
    in many runs a library below torch uses memory that it did not get, and the program dies; a second one is given."""
    command = [sys.executable, "-c", SMALL.format(model=model, size=size, free=free)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, peak = done.stdout.splitlines()
    found = re.fullmatch(
        r"a batch of 300 images does not fit into memory, one of (\d+) does: lower batch_size .*", said
    )
    assert found
    assert int(found[1]) < 300
    assert int(peak) < 1.1 * free
