"""The way from a page back to what it was made of.

Below its title a chapter says how it was run, with a link to the notebook as it ran; at its end it lists the records
that it quotes. The directive `records` is a table of all records. The files themselves lie in the folder `records` of
the rendered book.
"""

import html
import shutil
from datetime import datetime
from pathlib import Path

from docutils import nodes
from records import place_in_book, records
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

from lenslib.notebooks import read
from lenslib.records import Run

PLACES = ("results", "data", "train_data", "test_data")  # parameters that say where, not what


class Origin(SphinxTransform):
    default_priority = 400  # before Sphinx collects titles for the table of contents

    def apply(self, **kwargs) -> None:
        docname = self.env.docname
        source = Path(self.env.doc2path(docname))
        if source.suffix != ".ipynb":
            return
        chapter, quoted = next(self.document.findall(nodes.section)), self.env.metadata[docname].pop("records", {})
        chapter.insert(1, raw(f'<p class="origin">{how_it_was_run(source, docname, bool(quoted))}</p>'))
        if quoted:
            title, lines = "Records of this chapter", [f"<li>{link(run, docname)}</li>" for run in quoted.values()]
            section = nodes.section("", nodes.title("", title), ids=["records-of-this-chapter"], names=[title.lower()])
            chapter += section
            section += raw(f'<ul class="records">{"".join(sorted(lines))}</ul>')


def how_it_was_run(source: Path, docname: str, quotes: bool) -> str:
    """Profile, parameters and date of a chapter, and links to its notebook and its records."""
    run = read(source).metadata["papermill"]
    settings = {name: value for name, value in run["parameters"].items() if name not in PLACES}
    settings = {name: settings[name] for name in ("profile", "seed") if name in settings} | settings
    date = datetime.fromisoformat(run["end_time"])
    words = ", ".join(f"{html.escape(f'{name} {value}')}" for name, value in settings.items())
    notebook = f'<a href="{"../" * docname.count("/")}_sources/{docname}.ipynb" download>notebook as it ran</a>'
    here = ' · <a href="#records-of-this-chapter">records quoted here</a>' if quotes else ""
    return f"Run on {date.day} {date:%B %Y} with {words} · {notebook}{here}"


def link(run: Run, docname: str) -> str:
    name = f"{run.task} / {run.recipe} / {run.model} / seed {run.seed} ({run.profile})"
    return f'<a href="{html.escape(place_in_book(run, docname))}">{html.escape(name)}</a>'


class RecordTable(SphinxDirective):
    """Every record under the results: what it is of, when and on what it was made, and from which sources."""

    def run(self) -> list[nodes.Node]:
        head = ("record", "date", "device", "git commit", "digest of the library")
        rows = []
        for run in records().runs:
            self.env.note_dependency(str(run.folder / "record.json"))
            cells = [link(run, self.env.docname), html.escape(run.started[:10]), html.escape(run.device)]
            cells += [f"<code>{html.escape(str(text)[:8])}</code>" for text in (run.git_commit, run.source_digest)]
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))
        above = "".join(f'<th scope="col">{name}</th>' for name in head)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        table = f'<table class="table"><thead><tr>{above}</tr></thead><tbody>{body}</tbody></table>'
        return [raw(f'<div class="records" tabindex="0">{table}</div>')]


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def copy_records(app, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for run in records().runs:
            copy = Path(app.outdir, place_in_book(run, ""))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.folder / "record.json", copy)


def setup(app) -> dict:
    app.setup_extension("records")
    app.add_directive("records", RecordTable)
    app.add_transform(Origin)
    app.connect("build-finished", copy_records)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
