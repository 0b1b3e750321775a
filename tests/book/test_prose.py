"""No result is typed by hand: numbers in the text come from records, or carry a citation on their line."""

import re
from pathlib import Path

import pytest

from lenslib.notebooks import read

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(set(REPOSITORY.glob("book/**/*.md")) - {REPOSITORY / "book/published/README.md"})
NOTEBOOKS = sorted(REPOSITORY.glob("notebooks/*.ipynb"))

# Not prose: code blocks, mathematics, comments, roles and inline code, targets of links.
_NOT_PROSE = [r"(?ms)^(`{3,}|~{3,}|:{3,}).*?^\1", r"(?s)\$\$.*?\$\$", r"\$[^$\n]+\$", r"(?s)<!--.*?-->"]
_NOT_PROSE += [r"\{[a-z:]+\}`[^`]*`", r"`[^`]+`", r"\]\([^)]*\)", r"<https?://[^>]*>"]
_CITED = re.compile(r"\{cite(:[a-z]+)?\}`")
_NUMBER = re.compile(r"(?<![\w.])\d*\.\d+(?![\w.]*\w)|(?<![\w.])\d+(?:\.\d+)?\s*(?:%|per cent)")
_CONVENTION = re.compile(r"\b9[059]\s*(%|per cent)(?= (confidence |credible )?interval)")


def bare_numbers(text: str) -> list[str]:
    """Decimals and percentages in Markdown prose that are neither from a record nor on a line with a citation."""
    text = re.sub(_CITED, "CITED`", text)
    for pattern in _NOT_PROSE:
        text = re.sub(pattern, lambda match: "\n" * match[0].count("\n"), text)
    lines = [_CONVENTION.sub("", line) for line in text.splitlines() if "CITED" not in line]
    return [match for line in lines for match in _NUMBER.findall(line)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The AUC is 0.985.", ["0.985"]),
        ("It rises by 3 % and then .5", ["3 %", ".5"]),
        ("about 12 per cent", ["12 per cent"]),
        ("The AUC is {rec}`a.b.c.auc:.3f`, a 95 % interval.", []),
        ("The published AUC is 0.985 {cite}`Alexander2020`.", []),
        ("0.985 on one line\nand {cite}`Alexander2020` on another", ["0.985"]),
        ("`0.5` and $x = 0.5$ and [a](b-0.5.html)\n```\n0.5\n```\n$$\n0.5\n$$", []),
        ("Issue 3 of 2024 has 150 pixels; version 1.2.3", []),
    ],
)
def test_the_rule(text, expected):
    assert bare_numbers(text) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_quote_records(page):
    assert bare_numbers(page.read_text()) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_quote_records(notebook):
    text = "\n\n".join(cell.source for cell in read(notebook).cells if cell.cell_type == "markdown")
    assert bare_numbers(text) == []
