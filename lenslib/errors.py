"""Errors a user can mend: one line each, naming the thing and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input. The command line prints its message as one line and exits with code 2."""

    def __init__(self, message: str):
        # names that it quotes, from files of others, may hold anything
        super().__init__(" ".join(str(message).splitlines()))


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that is not among `choices`, offering the closest ones first."""
    choices = sorted(choices)
    close = get_close_matches(str(name), choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return InputError(f"unknown {kind} '{name}': {hint}valid choices: {', '.join(choices)}")
