"""JSON and YAML of anyone's making: plain values or one kind of error, in bounded time."""

import json
from typing import Any

import yaml

# what the two parsers raise besides their own errors: at dates and numbers that are none, and at a thousand brackets
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class _NoAliases(yaml.SafeLoader):
    """A few lines of names for names for names would stand for more than any memory holds."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor} stands for what is elsewhere: write it out")
        return super().compose_node(parent, index)


def parse_json(content: str | bytes) -> Any:
    """What JSON says; ValueError, in one line, for what is none or nests too deeply."""
    try:
        return json.loads(content)
    except _DAMAGE as error:
        raise ValueError(_line(error)) from None


def parse_yaml(text: str, aliases: bool = False) -> Any:
    """What YAML says, in plain values alone; ValueError, in one line, for what is none and, without `aliases`, for any
    use of them."""
    try:
        # a subclass of yaml.SafeLoader: it makes no object of a class that a text names
        return yaml.load(text, yaml.SafeLoader if aliases else _NoAliases)
    except (yaml.YAMLError, *_DAMAGE) as error:
        raise ValueError(_line(error)) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
