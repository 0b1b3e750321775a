"""Costly functions compiled by torch where a compiler is at hand; a terminal is told when that takes long."""

import logging
import os
import shutil
import sys
from functools import lru_cache, partial
from threading import Thread, Timer

import torch
from tqdm import tqdm

# compiling for a processor mentions, at length, that there is no accelerator
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

# torch would prepare its headers for ten seconds first, to save one second at every kernel
_QUICK_START = {"cpp_cache_precompile_headers": False}
# recipes and sizes that one process may draw
MOST_SHAPES = 10_000
# seconds of compiling that a terminal is told of
_LONG = 2.0


def has_compiler(device: str = "cpu") -> bool:
    """Whether torch can compile for this device on this machine, and `TORCHDYNAMO_DISABLE=1` does not forbid it."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return False
    return device.startswith("cuda") or bool(shutil.which("g++") or shutil.which("clang++"))


def compiled(function, device: str = "cpu", dynamic: bool = False, **options):
    """`function` as torch's own compiler makes it, with that compiler's `options`; itself where there is none.

    With `dynamic`, one kernel serves all shapes. What is made is kept on disk by torch.
    """
    if not has_compiler(device):
        return function
    # past the limit, dynamo would quietly stop compiling, and the last digits of an image depend on those drawn before
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_SHAPES
    if not device.startswith("cuda"):
        _learn_vectors()
    return torch.compile(function, dynamic=dynamic, backend=partial(_compile, options=options))


@lru_cache
def _learn_vectors() -> None:
    """Let torch compile, beside other work, its programs that tell which vectors processor and compiler know."""
    import torch._inductor.compile_fx  # all of it, because two threads cannot import it at once
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    # that the compiler knows any: every one that is new enough for torch does
    torch._inductor.config.cpp.vec_isa_ok = True
    Thread(target=pick_vec_isa, daemon=True).start()


def _compile(graph, inputs, options):
    from torch._inductor.compile_fx import compile_fx

    notice = Timer(_LONG, _say_that_it_compiles)
    if sys.stderr.isatty():
        notice.start()
    try:
        return compile_fx(graph, inputs, config_patches=_QUICK_START | options)
    finally:
        notice.cancel()


@lru_cache  # once, however many functions there are
def _say_that_it_compiles() -> None:
    tqdm.write("compile (once on this machine) ...", file=sys.stderr)
