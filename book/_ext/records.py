"""The role `rec`: a number in the text, taken from the record of the run that measured it.

    {rec}`classification.deeplense_1.best.macro_auc:.4f`     0.9871
    {rec}`classification.deeplense_1.best.macro_auc:ci.4f`   0.9871 (95 % interval 0.9850 to 0.9890)
    {rec}`1e6 / bench.deeplense_1.simulate.images_per_second / 3600:.1f`   hours for a million, at the rate measured

The key is that of `lenslib.records.Records.lookup`, the rest a Python format. A key without a record is a warning,
which fails the build. Records are read from the folder named in LENSLIB_RESULTS (default `results`). Every number is a
link to its record, which the extension `origins` lays into the book.
"""

import html
import os
import re
from functools import cache

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from lenslib.errors import InputError
from lenslib.records import Found, Records, Run

# a key in a sum: a number and a sign before it, signs and numbers behind it
_SUM = re.compile(r"(?:(?P<before>[\d.]+(?:e\d+)? [*/]) )?(?P<key>[^\s*/]+)(?P<behind>(?: [*/] [\d.]+(?:e\d+)?)*)")

logger = logging.getLogger(__name__)


@cache
def records() -> Records:
    return Records(os.environ.get("LENSLIB_RESULTS", "results"))


class recorded(nodes.inline):  # noqa: N801 (docutils names its nodes so)
    """A number with its record, whose place HTML shows when a reader points at it, and opens when it is clicked."""


def render(key: str, spec: str) -> tuple[str, Found]:
    """The text for one key and format, and what it was made from."""
    found = _after(*_parts(key))
    if not spec.startswith("ci"):
        plain = isinstance(found.value, str) or (isinstance(found.value, int) and not spec)
        return str(found.value) if plain else format(found.value, spec or ".4g"), found
    value, low, high = (format(records().lookup(f"{key}.{part}"), spec[2:]) for part in ("value", "low", "high"))
    return f"{value} (95 % interval {low} to {high})", found


def _parts(text: str) -> tuple[str, str, str]:
    """What stands before a key, the key, and what stands behind it; InputError for more than `*`, `/` and numbers."""
    if not (match := _SUM.fullmatch(text)):
        raise InputError(f"record key '{text}': beside a key stand numbers, * and / alone")
    return match["before"] or "", match["key"], match["behind"]


def _after(before: str, key: str, behind: str) -> Found:
    """What a key gives, after the sum that it is in."""
    found = records().find(key)
    if not before + behind:
        return found
    if not isinstance(found.value, int | float):
        raise InputError(f"record key '{key}': {found.value!r} is no number to reckon with")
    value = found.value
    if before:
        number, sign = before.split()
        value = float(number) / value if sign == "/" else float(number) * value
    for sign, number in re.findall(r"([*/]) (\S+)", behind):
        value = value / float(number) if sign == "/" else value * float(number)
    return Found(float(value), found.runs)


def origin(found: Found) -> str:
    """Where a number comes from, for the reader: profile, run folder, seeds."""
    run, seeds = found.runs[0], len(found.runs)
    place = f"{run.task}/{run.recipe}/{run.model}"
    return f"profile {run.profile}, {place}, " + (f"mean of {seeds} seeds" if seeds > 1 else f"seed {run.seed}")


def place_in_book(run: Run, docname: str) -> str:
    """The address of a record in the rendered book, as seen from a page."""
    return "../" * docname.count("/") + f"records/{run.profile}/{run.task}/{run.recipe}/{run.model}/seed{run.seed}.json"


class RecRole(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        key, _, spec = self.text.partition(":")
        try:
            text, found = render(key.strip(), spec.strip())
        except (InputError, ValueError) as error:
            logger.warning("rec '%s': %s", self.text, error, location=self.get_location(), type="rec")
            return [nodes.problematic(self.rawtext, self.rawtext)], []
        for run in found.runs:
            self.env.note_dependency(str(run.folder / "record.json"))
            self.env.metadata[self.env.docname].setdefault("records", {})[str(run.folder)] = run
        link = place_in_book(found.runs[0], self.env.docname)
        return [recorded(self.rawtext, text, title=origin(found), link=link)], []


def visit_html(writer, node: recorded) -> None:
    writer.body.append(f'<a class="rec" href="{html.escape(node["link"])}" title="{html.escape(node["title"])}">')


def depart_html(writer, node: recorded) -> None:
    writer.body.append("</a>")


def pass_through(writer, node: recorded) -> None:
    """Other formats show the text alone."""


def setup(app) -> dict:
    others = {name: (pass_through, pass_through) for name in ("latex", "text", "man", "texinfo")}
    app.add_node(recorded, html=(visit_html, depart_html), **others)
    app.add_role("rec", RecRole())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
