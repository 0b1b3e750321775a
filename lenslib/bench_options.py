"""What the commands of `lenslib bench` share: where a record goes, counts of things, and a word on what happens."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from lenslib.errors import InputError


def add_output(parser) -> None:
    """The options that say where the record goes and how the table is printed."""
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--profile", default="laptop", help="first folder under results")
    parser.add_argument("--json", action="store_true")


def check_counts(counts: Mapping[str, Iterable[int] | int], least: int = 1) -> None:
    """InputError, which names it, for a count below `least`."""
    for name, values in counts.items():
        for value in [values] if isinstance(values, int) else values:
            if value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")


def say(what: str) -> None:
    """Tell a terminal what is measured next."""
    if sys.stderr.isatty():
        print(f"bench: {what} ...", file=sys.stderr)
