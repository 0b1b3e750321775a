"""A figure and its caption belong together, and every figure has words for those who cannot see it.

The caption of what a cell shows is the emphasised start of the paragraph below the cell; what follows it stays text.
The alternative text is the caption's first sentence, unless the cell's metadata has one, as MyST-NB writes it:
`"mystnb": {"image": {"alt": "..."}}`. A picture without either is a warning, which fails the build.

The directive `chapter-figure` shows a picture of a chapter on another page: its arguments are the chapter and the tag
of the cell that draws it, its option `alt` the alternative text, its content the caption.
"""

import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from lenslib.notebooks import read

logger = logging.getLogger(__name__)

_SENTENCE = re.compile(r"\.(\s|$)")


class Captions(SphinxTransform):
    default_priority = 400  # before Sphinx numbers figures

    def apply(self, **kwargs) -> None:
        for cell in list(self.document.findall(_is_cell)):
            if below := _caption_below(cell):
                for picture in cell.findall(nodes.image):
                    picture["alt"] = picture.get("alt") or first_sentence(below[0].astext())
                if _next(cell) is below:
                    _attach(cell, below)
        for k, figure in enumerate(self.document.findall(_is_cell_figure), start=1):
            figure["ids"] = [f"figure-{k}"]
        for picture in self.document.findall(nodes.image):
            if not picture.get("alt"):
                cell = next((node for node in _above(picture) if _is_cell(node)), {})
                place = f" (cell {cell['cell_index']})" if cell else ""
                words = "a picture%s has neither a caption nor alternative text"
                logger.warning(words, place, location=self.env.docname, type="figures")


def first_sentence(caption: str) -> str:
    """A caption up to the end of its first sentence, on one line."""
    text = " ".join(caption.split())
    end = _SENTENCE.search(text)
    return text[: end.start()] if end else text


def _is_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def _is_cell_figure(node: nodes.Node) -> bool:
    return isinstance(node, nodes.figure) and "cell-figure" in node["classes"]


def _above(node: nodes.Node) -> Iterator[nodes.Node]:
    while node := node.parent:
        yield node


def _next(node: nodes.Node) -> nodes.Node | None:
    return node.next_node(descend=False, siblings=True)


def _caption_below(cell: nodes.Node) -> nodes.paragraph | None:
    """The paragraph that begins with the caption of a cell, which cells that follow at once share with it."""
    node = cell
    while _is_cell(node):
        node = _next(node)
    begins = isinstance(node, nodes.paragraph) and node.children and isinstance(node[0], nodes.emphasis)
    return node if begins else None


def _attach(cell: nodes.Node, below: nodes.paragraph) -> None:
    """Make one figure of a cell's pictures and the caption; below a table, the caption is a paragraph of its own."""
    words = below[0].children
    below.remove(below[0])
    if below.children and isinstance(below[0], nodes.Text):
        below.replace(below[0], nodes.Text(below[0].lstrip()))
    shown = [output for output in cell[-1].children if any(output.findall(nodes.image))]
    if shown:
        figure = nodes.figure("", classes=["cell-figure"])
        cell[-1].replace(shown[-1], figure)
        for output in shown[:-1]:
            cell[-1].remove(output)
        figure += [*shown, nodes.caption("", "", *words)]
    else:
        below.parent.insert(below.parent.index(below), nodes.paragraph("", "", *words, classes=["table-caption"]))
    if not below.children:
        below.parent.remove(below)


class ChapterFigure(SphinxDirective):
    required_arguments, has_content = 2, True
    option_spec = {"alt": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        chapter, tag = self.arguments
        place = Path(self.env.doc2path(chapter))
        self.env.note_dependency(str(place))
        cells = [cell for cell in read(place).cells if tag in cell.metadata.get("tags", [])]
        pictures = [output.data["image/png"] for cell in cells for output in cell.outputs if "image/png" in output.data]
        if len(pictures) != 1:
            raise self.error(f"{chapter}: its cells tagged '{tag}' show {len(pictures)} pictures; one is needed")
        Path(self.env.srcdir, f"{tag}.png").write_bytes(b64decode(pictures[0]))
        picture = nodes.image(uri=f"/{tag}.png", alt=self.options["alt"])
        caption = nodes.caption("", "", *self.parse_content_to_nodes()[0].children)
        return [nodes.figure("", picture, caption, classes=["cell-figure"])]


def setup(app) -> dict:
    app.add_directive("chapter-figure", ChapterFigure)
    app.add_transform(Captions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
