"""The directive `faults`: what the record of `lenslib bench faults` says of every fault, as a table.

Where no such record is there yet, it says that.
"""

import html

from docutils import nodes
from origins import link, raw
from records import records
from sphinx.util.docutils import SphinxDirective

from lenslib.bench_faults import FAULTS, PLACE, STAGES
from lenslib.errors import InputError


class FaultTables(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        try:
            (run, *_) = records().select(*PLACE.values())
        except InputError:
            return [
                nodes.paragraph(text="No record of such a campaign is there yet: `lenslib bench faults` writes it.")
            ]
        self.env.note_dependency(str(run.folder / "record.json"))
        return [raw(page(run.metrics) + f"<p>From the record {link(run, self.env.docname)}.</p>")]


def page(metrics: dict) -> str:
    """The tables and sentences, as HTML."""
    names = ("tried", "detected", "harmless", "unnoticed")
    rows = [
        (words, *(metrics[f"{fault}_{name}"] for name in names))
        for fault, words in FAULTS.items()
        if f"{fault}_tried" in metrics
    ]
    text = table(("fault", "made", "detected", "harmless", "unnoticed"), rows)
    killed = [
        (words, metrics[f"kills_{stage}"], metrics[f"kills_{stage}_survived"])
        for stage, words in STAGES.items()
        if f"kills_{stage}" in metrics
    ]
    if killed:
        killed.append(("all", metrics["kills"], metrics["kills_survived"]))
        text += table(("killed while", "times", "survived"), killed)
    if "overhead" in metrics:
        share = f"{metrics['overhead']:.1%} of the time of a sweep of {metrics['sweep_jobs']} jobs"
        text += f"<p>The workflow itself took {share}.</p>"
    if "planning_seconds" in metrics:
        text += f"<p>The dry run of the large plan took {metrics['planning_seconds']:.0f} seconds.</p>"
    return text


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    above = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    inner = f"<thead><tr>{above}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="records" tabindex="0"><table class="table">{inner}</table></div>'


def setup(app) -> dict:
    app.setup_extension("origins")
    app.add_directive("faults", FaultTables)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
