"""Pages that ask no other computer for anything, and say what their parts are.

MathJax and Plotly are laid beside the pages, from the packages that carry them. Formulas are drawn as SVG, which needs
no font files: browsers refuse to load those for a page opened from disk.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

from sphinx.errors import ExtensionError

MATHJAX = "sphinx-mathjax-offline"
LIVE_CODE = "sphinx_thebe"  # cells that run on somebody's server, which Jupyter Book prepares even where it is off


def without_live_code(app, config) -> None:
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if one.handler.__module__ != LIVE_CODE]
    app.registry.css_files[:] = [file for file in app.registry.css_files if file[0] != "sphinx-thebe.css"]


def lay_plotly(app, failure) -> None:
    if failure is None:
        source = Path(find_spec("plotly").origin).parent / "package_data/plotly.min.js"
        shutil.copy(source, Path(app.outdir) / "_static")


def mend_roles(app, page, template, context, doctree) -> None:
    """Entries of the bibliography are items of its list (their own role is deprecated, and no item of any list), and
    tables that are wider than the screen can be moved with the keyboard."""
    body = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')
    context["body"] = body.replace('class="output text_html"', 'class="output text_html" tabindex="0"')


def setup(app) -> dict:
    if not find_spec(MATHJAX):
        raise ExtensionError(f"{MATHJAX} is not installed, and formulas need it: run `make setup`")
    app.setup_extension("sphinx.ext.mathjax")
    app.setup_extension(MATHJAX)  # copies its files to `_static/mathjax` when the pages are written
    app.config.mathjax_path = "mathjax/tex-svg.js"
    app.config.mathjax3_config = {"loader": {"load": ["ui/safe"]}}  # no formula is a link that runs
    app.config.nb_ipywidgets_js = {}  # sliders need a kernel, and their scripts would come from elsewhere
    app.config.html_context |= {"default_mode": "auto"}  # light or dark, as the reader's system is
    app.connect("config-inited", without_live_code, priority=900)
    app.add_js_file("interactive.js")
    app.connect("html-page-context", mend_roles)
    app.connect("build-finished", lay_plotly)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
