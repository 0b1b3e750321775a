"""Nothing that a notebook or a record says becomes a script in the book."""

import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lenslib.records import run_folder, write_run
from lenslib.seals import seal

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "workflow"))
import book  # noqa: E402

ATTACKS = [
    "<script>attack()</script>",
    "<img src=x onerror=attack()>",
    "<svg onload=attack()></svg>",
    "<svg><script>attack()</script></svg>",
    "<a href='javascript:attack()'>x</a>",
    "<a href='java&#x0A;script:attack()'>x</a>",
    "<iframe srcdoc='<script>attack()</script>'></iframe>",
    "<style></style><script>attack()</script><style><img src=x onerror=attack()></style>",
    "<math><mtext><table><mglyph><style><img src=x onerror=attack()>",
    "<table><td style='background: url(javascript:attack())' onclick=attack()>x</table>",
    "<p>` <b title='`<img src=x onerror=attack()>'>",
    "<form action='javascript:attack()'><button>x</button></form>",
    "<object data='javascript:attack()'></object><embed src='javascript:attack()'>",
    "<meta http-equiv='refresh' content='0;url=javascript:attack()'>",
]


class Live(HTMLParser):
    """Collects what a browser would run on a page."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.open = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open = tag
        plain = [(name, "".join((value or "").split()).lower()) for name, value in attributes]
        if any(
            "attack" in value and (name.startswith("on") or "script:" in value or name == "srcdoc")
            for name, value in plain
        ):
            self.found.append((tag, attributes))

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "script" and "attack" in data and "application/" not in (self.get_starttag_text() or ""):
            self.found.append((self.open, data))


def test_the_parser_sees_each_attack():
    live = {text: Live(text).found for text in ATTACKS}
    seen = [text for text, found in live.items() if found]
    # two are text until another parser has been at them
    assert len(seen) >= len(ATTACKS) - 4


@pytest.mark.parametrize("attack", ATTACKS)
def test_html_is_cleaned(attack):
    (output,) = book.without_script([new_output("display_data", {"text/html": attack})])
    assert Live(output.data["text/html"]).found == []
    again = book.without_script([new_output("display_data", dict(output.data))])[0]
    assert again.data["text/html"] == output.data["text/html"]


@pytest.mark.parametrize("kind", ["application/javascript", "image/svg+xml", "text/latex", "application/x-anything"])
def test_other_kinds_are_left_out(kind):
    (output,) = book.without_script([new_output("display_data", {kind: "attack()", "text/plain": "words"})])
    assert output.data == {"text/plain": "words"}


def test_tables_stay_as_they_are():
    table = pd.DataFrame({"model": ["vit", "a & b"], "auc": [0.5, 0.75]})
    # pandas escapes names in the first form alone
    for shown in (table._repr_html_(), table.style.background_gradient(subset=["auc"])._repr_html_()):
        (output,) = book.without_script([new_output("display_data", {"text/html": shown})])
        cleaned = output.data["text/html"]
        before, after = (re.findall(r">\s*([^<>]*[^<>\s])\s*<", html.unescape(text)) for text in (shown, cleaned))
        assert before == after
        assert "a & b" in after
        assert shown.count("background-color") == cleaned.count("background-color")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A chapter whose outputs, parameters and records are attacks, as the book renders it, and the table of records."""
    root = tmp_path_factory.mktemp("book")
    (root / "book").mkdir()
    (root / "book/_toc.yml").write_text("root: book/records\nchapters:\n  - file: notebooks/chapter\n")
    (root / "book/records.md").write_text("# Records\n\n```{records}\n```\n")
    (root / "_config.yml").write_text("")
    place = {"profile": "laptop", "task": "t", "recipe": "r", "model": "m", "seed": 0}
    run = write_run(run_folder(root / "results", **place), **place, parameters={}, metrics={"said": ATTACKS[0]})
    marked = run.record | dict.fromkeys(("device", "started", "git_commit", "source_digest"), ATTACKS[1])
    marked["seal"] = seal(marked)  # as anyone can
    (run.folder / "record.json").write_text(json.dumps(marked))
    kinds = ("text/html", "text/markdown", "application/javascript", "image/svg+xml", "text/plain")
    outputs = [new_output("display_data", {kind: attack}) for attack in ATTACKS for kind in kinds]
    outputs += [new_output("stream", text=attack, name="stdout") for attack in ATTACKS]
    cells = [new_markdown_cell("# Chapter\n\n{rec}`t.r.m.said`"), new_code_cell("1", outputs=outputs)]
    ran = {"parameters": {f"a{ATTACKS[0]}": ATTACKS[1]}, "end_time": "2026-01-01T00:00:00"}
    notebook = new_notebook(cells=cells, metadata={"papermill": ran})
    (root / "executed").mkdir()
    nbformat.write(notebook, root / "executed/chapter.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        book.assemble(root / "source", root / "executed")
    extensions = ["myst_nb", "records", "origins"]
    (root / "source/conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY / 'book/_ext')!r})\nextensions = {extensions}\n"
        "nb_execution_mode = 'off'\nroot_doc = 'book/records'\nsuppress_warnings = ['toc']\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-a", "-E", str(root / "source"), str(root / "html")]
    environment = os.environ | {"LENSLIB_RESULTS": str(root / "results")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(root / "html" / name).read_text() for name in ("notebooks/chapter.html", "book/records.html")]


def test_a_page_of_attacks_runs_none(page):
    for text in page:
        assert "attack" in text
        assert Live(text).found == []


def test_a_browser_runs_none_either(page, chromium):
    tab = chromium.new_page()
    for text in page:
        tab.set_content(text.replace("<head>", "<head><script>window.ran = 0; attack = () => window.ran++</script>", 1))
        tab.wait_for_timeout(300)
        assert tab.evaluate("window.ran") == 0
    tab.set_content("<script>window.ran = 0; attack = () => window.ran++</script>" + ATTACKS[1])
    tab.wait_for_function("window.ran === 1")
    tab.close()
