"""Seals: what a file said when it was written, so that a byte that changed since is seen.

The record of a run holds the SHA-256 of its other files and one over itself; an executed notebook holds one over its
cells. A file without a seal, of an earlier version or of someone else, is taken as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lenslib.errors import InputError
from lenslib.untrusted import parse_json

SEAL = "seal"


def seal(content: Mapping[str, Any]) -> str:
    """SHA-256 over a JSON object, but for the seal in it."""
    said = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def check_seal(content: Mapping[str, Any], path: str | Path) -> None:
    """InputError, which names the file, where the content is not what was sealed."""
    if SEAL in content and content[SEAL] != seal(content):
        raise InputError(f"{path}: altered since it was written; run again what wrote it")


def check_beside(path: str | Path) -> None:
    """InputError for a file that is not as the `record.json` in its folder says. Without a record there is no word."""
    path = Path(path)
    try:
        record = parse_json((path.parent / "record.json").read_text(encoding="utf-8"))
        expected = record["files"][path.name]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: the record.json beside it says nothing of it, or is torn; run it again, or move the file away"
        ) from None
    if expected != hashlib.sha256(path.read_bytes()).hexdigest():
        raise InputError(f"{path}: altered since its record was written; run it again")
