"""What a run must know about itself to be repeated: code, version, start and memory."""

import hashlib
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

STARTED = datetime.now(UTC)  # of this process, as near as the first import can tell


def source_digest() -> str:
    """SHA-256 over the library's modules and recipes: equal digests mean that the same code ran."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def git_commit() -> str | None:
    """The commit of the library's checkout, with `-dirty` if files other than results differ from it; None outside."""
    commit, changed = "rev-parse HEAD", "status --porcelain --untracked-files=no -- :(top) :(top,exclude)results"
    try:
        answers = [
            subprocess.run(
                ["git", *words.split()], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20
            ).stdout.strip()
            for words in (commit, changed)
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answers[0] + ("-dirty" if answers[1] else "") if answers[0] else None


def library_version() -> str:
    """The installed version, `unknown` if the package is not installed."""
    try:
        return version("lenslib")
    except PackageNotFoundError:
        return "unknown"


def peak_memory_mb(device: str) -> float:
    """Peak memory so far in MB (10^6 bytes): of the GPU for a CUDA device, else of this process."""
    if device.startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    try:  # Linux; what getrusage says there may be that of the process which started this one
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except (OSError, ValueError):
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)
