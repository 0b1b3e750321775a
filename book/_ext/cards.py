"""The directive `model-cards`: a card for each set of weights that has a name, from the record of its run."""

import re

from docutils import nodes
from markdown_it import MarkdownIt
from origins import raw
from sphinx.util.docutils import SphinxDirective

from lenslib.weights import list_weights, model_card


class ModelCards(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        markdown, found = MarkdownIt("commonmark", {"html": False}).enable("table"), []
        for name, run in list_weights().items():
            self.env.note_dependency(str(run.folder / "record.json"))
            # below the title of the page
            found.append(markdown.render(re.sub("^#", "##", model_card(name), flags=re.MULTILINE)))
        text = "".join(found).replace("<th>", '<th scope="col">').replace("</table>", "</table></div>")
        return [raw(text.replace("<table>", '<div class="records" tabindex="0"><table class="table">'))]


def setup(app) -> dict:
    app.setup_extension("origins")
    app.add_directive("model-cards", ModelCards)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
