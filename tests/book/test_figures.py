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


# name of a page: cells with a picture each, their metadata, and the text below them
PAGES = {
    "captioned": (1, {}, "*Two `arcs`. Left: before; right: after.* And then *more*."),
    "shared": (2, {}, "*Above: before. Below: after.*"),
    "own": (1, {"mystnb": {"image": {"alt": "A ring"}}}, "No caption."),
    "wordless": (1, {}, "No caption, *only emphasis*."),
}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """All pages in one book: the exit code, a function from the name of a page to its text, and the warnings."""
    folder = tmp_path_factory.mktemp("book")
    source, out = folder / "source", folder / "html"
    source.mkdir()
    for name, page in PAGES.items():
        nbformat.write(notebook(*page), source / f"{name}.ipynb")
    (source / "index.md").write_text("# Book\n\n```{toctree}\n" + "\n".join(PAGES) + "\n```\n")
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\n"
        "extensions = ['myst_nb', 'figures']\nnb_execution_mode = 'off'\n"
    )
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-a", "-E", str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, lambda name: (out / f"{name}.html").read_text(), done.stderr


def notebook(cells: int, metadata: dict, text: str):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Page")])
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    for shade in range(cells):
        png = BytesIO()
        Image.new("L", (4, 4), shade).save(png, "png")
        output = nbformat.v4.new_output("display_data", {"image/png": b64encode(png.getvalue()).decode()})
        notebook.cells.append(nbformat.v4.new_code_cell("draw()", outputs=[output], metadata=metadata))
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    return notebook


def test_the_emphasised_start_below_a_cell_is_its_caption(book):
    figure, rest = book[1]("captioned").split("<figure", 1)[1].split("</figure>", 1)
    assert 'alt="Two arcs"' in figure
    assert "Left: before; right: after." in figure
    assert "<p>And then <em>more</em>.</p>" in rest
    assert "Left: before" not in rest


def test_cells_that_follow_one_another_share_a_caption(book):
    page = book[1]("shared")
    assert page.count('alt="Above: before"') == 2
    assert page.count("<figcaption>") == 1


def test_a_cell_may_bring_its_own_words(book):
    page = book[1]("own")
    assert 'alt="A ring"' in page
    assert "<figcaption>" not in page


def test_a_picture_without_words_fails_the_build(book):
    """And no other picture does: of each there would be a line."""
    code, _, messages = book
    assert code == 1
    (warning,) = (line for line in messages.splitlines() if "WARNING" in line)
    assert "wordless.ipynb" in warning
    assert "a picture (cell 1) has neither a caption nor alternative text" in warning
