"""Render the book from executed notebooks and run records; nothing is executed here.

The prose, the configuration and the executed chapters are laid together in `BUILD/src`, Jupyter Book renders them with
warnings as errors, and the pages appear in `BUILD/html` only if all of that went well.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bleach
import data_figures
import nbformat
import yaml
from bleach.css_sanitizer import CSSSanitizer

from lenslib.errors import InputError
from lenslib.notebooks import read_whole
from lenslib.records import load_run, load_runs

# of what a cell shows: pictures and words; sliders need a kernel
SHOWN = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg"}
WIDGET = "application/vnd.jupyter.widget-view+json"
# of what a notebook and a cell say of themselves: other words could have the book execute it
METADATA, CELL_METADATA = ("kernelspec", "language_info", "papermill"), ("tags", "mystnb")
# the HTML of tables, as pandas writes it
TAGS = {*bleach.ALLOWED_TAGS, *"table caption thead tbody tr th td style div p br span pre".split()}
ATTRIBUTES = {"a": ["href"], "table": ["border"], "style": ["type"]}
ATTRIBUTES |= dict.fromkeys(("th", "td"), ["colspan", "rowspan", "scope"])


def chapters(toc: Path) -> list[str]:
    """The notebooks that the table of contents lists, by name."""
    names, nodes = [], [yaml.safe_load(toc.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, dict):
            nodes = [*node.values(), *nodes]
        elif isinstance(node, list):
            nodes = [*node, *nodes]
        elif isinstance(node, str) and node.startswith("notebooks/"):
            names.append(node.removeprefix("notebooks/"))
    return names


def check_executed(path: Path) -> None:
    """InputError unless the notebook ran to its end without an error."""
    if not path.is_file():
        raise InputError(f"{path}: missing; the workflow writes it")
    notebook = read_whole(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    run = notebook.metadata.get("papermill", {})
    if any("Warning" in output.get("text", "") for output in outputs if output.get("name") == "stderr"):
        raise InputError(f"{path}: shows a warning; mend the notebook and run it again")
    if run.get("exception") or any(output.output_type == "error" for output in outputs):
        raise InputError(f"{path}: holds a traceback; mend the notebook and run it again")
    if not run.get("end_time"):
        raise InputError(f"{path}: was not run by the workflow")


def without_script(outputs: list) -> list:
    """What cells show, with nothing in it that a browser would run or fetch: of HTML the harmless part, as text the
    rest. Of interactive figures, their data."""
    for output in outputs:
        if data_figures.MIME in (data := output.get("data", {})):
            output["data"], output["metadata"] = data_figures.replaced(data), {}
            continue
        unseen = set(data) if WIDGET in data else {kind for kind in data if kind not in SHOWN}
        for kind in unseen | {kind for kind, shown in data.items() if not isinstance(shown, str)}:
            del data[kind]
        if "metadata" in output:
            output["metadata"] = {}
        if "text/html" in data:
            data["text/html"] = _harmless(data["text/html"])
        if "text/markdown" in data:
            data["text/markdown"] = data["text/markdown"].replace("<", "&lt;")
    return outputs


def _harmless(html: str) -> str:
    def allowed(tag: str, name: str, value: str) -> bool:
        # a class can have formulas, and the links in them, made of plain text
        plain = name in ("id", "style", "title") or (name == "class" and "process" not in value)
        return plain or name in ATTRIBUTES.get(tag, ())

    clean = bleach.clean(html, TAGS, allowed, css_sanitizer=CSSSanitizer())
    # pandas colours tables by rules, which need no such signs; those that fetch something do
    return re.sub(r"(?is)<style[^>]*>(?:(?!</style).)*[@\\(](?:(?!</style).)*</style>", "", clean)


def without_orders(notebook: nbformat.NotebookNode) -> None:
    """Leave of a notebook's metadata what describes it: no word to the book of how to treat it."""
    keep = {name: notebook.metadata[name] for name in METADATA if name in notebook.metadata}
    notebook.metadata = nbformat.from_dict(keep)
    for cell in notebook.cells:
        keep = {name: cell.metadata[name] for name in CELL_METADATA if name in cell.metadata}
        described = keep.get("mystnb")
        for name in ("image", "alt"):
            described = described.get(name) if isinstance(described, dict) else None
        keep["mystnb"] = {"image": {"alt": described}} if isinstance(described, str) else {}
        cell.metadata = nbformat.from_dict({name: value for name, value in keep.items() if value})


def assemble(source: Path, executed: Path) -> None:
    """Lay out the book's sources in the folder `source`, with the executed chapters from `executed`."""
    names = chapters(Path("book/_toc.yml"))
    for name in names:
        check_executed(executed / f"{name}.ipynb")
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree("book", source / "book", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("_config.yml", source)
    (source / "notebooks").mkdir()
    for name in names:
        notebook = read_whole(executed / f"{name}.ipynb")
        without_orders(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = without_script(cell.outputs)
        nbformat.write(notebook, source / "notebooks" / f"{name}.ipynb")


def build(results: Path, profile: str, build: Path, records: list[str]) -> None:
    """Render the book; InputError if a record or a page is not sound, or Jupyter Book warns of anything.

    `records` are the run folders, under the profile's, that must be there even if no page quotes them.
    """
    load_runs(results)  # a torn record is an error even if no page quotes it
    for folder in records:
        load_run(results / profile / folder)
    source, work, html = build / "src", build / "work", build / "html"
    shutil.rmtree(html, ignore_errors=True)
    assemble(source, results / profile / "chapters")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "--toc", "book/_toc.yml"]
    command += ["--path-output", str(work.resolve()), "-W", "--keep-going", "--all", "-q"]
    environment = os.environ | {"LENSLIB_RESULTS": str(results.resolve())}
    if subprocess.run(command, cwd=source, env=environment).returncode:
        raise InputError("the book was not built: each warning above is an error to mend")
    (work / "_build" / "html").rename(html)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, help="the profile whose executed chapters are shown")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--build", type=Path, default=Path("_build"))
    parser.add_argument("--records", nargs="*", default=[], metavar="FOLDER", help="run folders to insist on")
    arguments = parser.parse_args()
    try:
        build(arguments.results, arguments.profile, arguments.build, arguments.records)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
