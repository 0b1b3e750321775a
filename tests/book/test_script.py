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
FORMULA = r"$$\href{javascript:attack()}{x}$$"
WIDGETS = "</SCRIPT><img src=x onerror=attack()>"
ELSEWHERE = {"source": "http://elsewhere.invalid/a.png", "x": 0, "y": 1, "sizex": 1, "sizey": 1}
FIGURE = {
    "data": [
        {
            "type": "scatter",
            "x": [0, 1],
            "y": [0, 1],
            "mode": "markers+text",
            "text": [*ATTACKS, FORMULA],
            "hovertext": ATTACKS,
        },
        {"type": "scattermapbox", "lat": [0], "lon": [0]},
        {"type": "scattergeo", "lat": [0], "lon": [0]},
    ],
    "layout": {
        "title": {"text": "</script><script>attack()</script><a href='javascript:attack()'>x</a>"},
        "images": [ELSEWHERE],
        "template": {"layout": {"images": [ELSEWHERE]}},
        "sliders": [
            {"active": 0, "steps": [{"method": "relayout", "args": [{"images": [ELSEWHERE]}], "label": "a"}]},
            {"active": 0, "steps": [{"method": "animate", "args": [{"layout": {"images": [ELSEWHERE]}}]}]},
        ],
    },
    "frames": [{"name": "a", "data": [{"y": [1, 0]}], "layout": {"images": [ELSEWHERE]}}],
}
# asked of another computer, where a page is to ask nobody
FETCHES = [
    "<style>@import url(http://elsewhere.invalid/a.css);</style>",
    "<style>td {background: u\\72l(http://elsewhere.invalid/a.png)}</style>",
    "<style>td {color: red} p {background: image-set('http://elsewhere.invalid/a.png' 1x)}</style>",
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


@pytest.mark.parametrize("shown", FETCHES)
def test_styles_fetch_nothing(shown):
    (output,) = book.without_script([new_output("display_data", {"text/html": shown + "<p>words</p>"})])
    assert output.data["text/html"] == "<p>words</p>"


def test_no_class_makes_formulas_of_text():
    (output,) = book.without_script([new_output("display_data", {"text/html": "<p class='mathjax_process'>$x$</p>"})])
    assert output.data["text/html"] == "<p>$x$</p>"


@pytest.mark.parametrize("shown", [["a"], {"a": "b"}, 1])
def test_html_that_is_no_text_is_left_out(shown):
    output = new_output("display_data", {"text/plain": "words"})
    output.data["text/html"] = shown
    assert book.without_script([output])[0].data == {"text/plain": "words"}


@pytest.mark.parametrize("kind", ["application/javascript", "image/svg+xml", "text/latex", "application/x-anything"])
def test_other_kinds_are_left_out(kind):
    (output,) = book.without_script([new_output("display_data", {kind: "attack()", "text/plain": "words"})])
    assert output.data == {"text/plain": "words"}


@pytest.mark.parametrize("figure", [[], "a", 1, {}, {"data": 1, "layout": [], "frames": "a"}, {"data": [1, None]},
                                    {"data": [{"type": ["heatmap"]}, {"y": [float("nan")]}]}])  # fmt: skip
def test_a_figure_of_odd_parts_draws_nothing(figure):
    output = new_output("display_data", {"text/plain": ATTACKS[1]})
    output.data[book.data_figures.MIME] = figure
    (shown,) = book.without_script([output])
    assert Live(shown.data["text/html"]).found == []
    assert "NaN" not in shown.data["text/html"]


def test_a_figure_is_kept_but_for_what_it_would_fetch():
    (output,) = book.without_script([new_output("display_data", {book.data_figures.MIME: FIGURE})])
    text = output.data["text/html"]
    assert Live(text).found == []
    assert "elsewhere" not in text
    assert "</script><script>" not in text
    kept = json.loads(re.search('json">(.*)</script>', text)[1])
    assert [one["type"] for one in kept["data"]] == ["scatter"]
    assert kept["data"][0]["x"] == [0, 1]
    assert kept["frames"] == [{"name": "a", "data": [{"y": [1, 0]}], "traces": None}]


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
def pages(tmp_path_factory):
    """A chapter whose outputs, metadata and records are attacks, as the book renders it, and the table of records."""
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
    (root / "executed").mkdir()
    nbformat.write(attacking_notebook(root), root / "executed/chapter.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        book.assemble(root / "source", root / "executed")
    extensions = ["myst_nb", "records", "origins", "pages"]
    (root / "source/conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY / 'book/_ext')!r})\nextensions = {extensions}\n"
        "nb_execution_mode = 'off'\nroot_doc = 'book/records'\nsuppress_warnings = ['toc']\n"
        f"myst_enable_extensions = ['dollarmath']\nhtml_static_path = [{str(REPOSITORY / 'book/_static')!r}]\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-a", "-E", str(root / "source"), str(root / "html")]
    environment = os.environ | {"LENSLIB_RESULTS": str(root / "results")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [root / "html" / name for name in ("notebooks/chapter.html", "book/records.html")]


def attacking_notebook(root: Path) -> nbformat.NotebookNode:
    kinds = ("text/html", "text/markdown", "application/javascript", "image/svg+xml", "text/plain")
    outputs = [new_output("display_data", {kind: attack}) for attack in ATTACKS for kind in kinds]
    outputs += [new_output("stream", text=attack, name="stdout") for attack in ATTACKS]
    outputs += [new_output("display_data", {"text/html": f"<p class='mathjax_process'>{FORMULA}</p>"})]
    outputs += [new_output("display_data", {book.data_figures.MIME: FIGURE, "text/plain": ATTACKS[1]})]
    outputs += [new_output("display_data", {book.WIDGET: {"model_id": WIDGETS, "version_major": WIDGETS}})]
    words = new_markdown_cell("# Chapter\n\n{rec}`t.r.m.said`\n\n" + FORMULA)
    # of the notebook and of a cell: to be run while the book is made
    touch = new_code_cell(f"open({str(root / 'ran')!r}, 'w')")
    cells = [words, new_code_cell("1", outputs=outputs, metadata={"mystnb": {"execution_mode": "force"}}), touch]
    ran = {"parameters": {f"a{ATTACKS[0]}": ATTACKS[1]}, "end_time": "2026-01-01T00:00:00"}
    state = {"model": WIDGETS.replace("</SCRIPT>", "</script ><p>")}
    orders = {"mystnb": {"execution_mode": "force"}, "widgets": {"application/vnd.jupyter.widget-state+json": state}}
    return new_notebook(cells=cells, metadata={"papermill": ran} | orders)


def test_a_page_of_attacks_runs_none(pages):
    for page in pages:
        text = page.read_text()
        assert "attack" in text
        assert Live(text).found == []
        assert "model_id" not in text


def test_no_word_of_a_notebook_has_the_book_execute_it(pages):
    assert not (pages[0].parents[2] / "ran").exists()


@pytest.mark.parametrize("said", [1, "a", {"image": 2}, {"image": {"alt": 3}}, {"image": None}])
def test_odd_words_of_a_cell_are_left_out(said):
    notebook = new_notebook(cells=[new_code_cell("1", metadata={"mystnb": said})])
    book.without_orders(notebook)
    assert notebook.cells[0].metadata == {}


def test_a_browser_runs_none_either(pages, chromium):
    tab = chromium.new_page()
    tab.add_init_script("window.ran = 0; window.attack = () => window.ran++")
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    for page in pages:
        tab.goto(page.as_uri())
        tab.wait_for_timeout(500)
        assert tab.evaluate("window.ran") == 0
    tab.goto(pages[0].as_uri())
    tab.wait_for_selector("mjx-container")
    tab.wait_for_selector("div.interactive[data-drawn] svg")
    assert tab.evaluate("window.ran") == 0
    assert not any("elsewhere" in url for url in asked)
    found = tab.evaluate("[...document.querySelectorAll('a')].map(a => a.outerHTML)")
    assert found
    assert not any("script:" in link for link in found)
    tab.set_content(ATTACKS[1])
    tab.wait_for_function("window.ran === 1")
    tab.close()
