"""Captions and alternative texts of figures, in a book of one page."""

import subprocess
import sys
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image

EXTENSIONS = Path(__file__).parents[2] / "book/_ext"


@pytest.fixture
def render(tmp_path):
    """Builds a notebook of cells with a picture each and the text below them; returns exit code, page, messages."""

    def build(text: str, metadata: dict | None = None, cells: int = 1):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Page")])
        notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
        for shade in range(cells):
            png = BytesIO()
            Image.new("L", (4, 4), shade).save(png, "png")
            output = nbformat.v4.new_output("display_data", {"image/png": b64encode(png.getvalue()).decode()})
            notebook.cells.append(nbformat.v4.new_code_cell("draw()", outputs=[output], metadata=metadata or {}))
        notebook.cells.append(nbformat.v4.new_markdown_cell(text))
        source, out = tmp_path / "source", tmp_path / "html"
        source.mkdir()
        nbformat.write(notebook, source / "index.ipynb")
        (source / "conf.py").write_text(
            f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\n"
            "extensions = ['myst_nb', 'figures']\nnb_execution_mode = 'off'\n"
        )
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-a", "-E", str(source), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        page = (out / "index.html").read_text() if (out / "index.html").is_file() else ""
        return done.returncode, page, done.stderr

    return build


def test_the_emphasised_start_below_a_cell_is_its_caption(render):
    code, page, messages = render("*Two `arcs`. Left: before; right: after.* And then *more*.")
    assert code == 0, messages
    figure, rest = page.split("<figure", 1)[1].split("</figure>", 1)
    assert 'alt="Two arcs"' in figure
    assert "Left: before; right: after." in figure
    assert "<p>And then <em>more</em>.</p>" in rest
    assert "Left: before" not in rest


def test_cells_that_follow_one_another_share_a_caption(render):
    code, page, messages = render("*Above: before. Below: after.*", cells=2)
    assert code == 0, messages
    assert page.count('alt="Above: before"') == 2
    assert page.count("<figcaption>") == 1


def test_a_cell_may_bring_its_own_words(render):
    code, page, messages = render("No caption.", {"mystnb": {"image": {"alt": "A ring"}}})
    assert code == 0, messages
    assert 'alt="A ring"' in page
    assert "<figcaption>" not in page


def test_a_picture_without_words_fails_the_build(render):
    code, _, messages = render("No caption, *only emphasis*.")
    assert code == 1
    assert "a picture (cell 1) has neither a caption nor alternative text" in messages
