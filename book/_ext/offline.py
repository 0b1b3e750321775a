"""Pages that ask no other computer for anything: MathJax is laid beside them, from the package that carries it.

Formulas are drawn as SVG, which needs no font files: browsers refuse to load those for a page opened from disk.
"""

PACKAGE = "sphinx-mathjax-offline"


def setup(app) -> dict:
    app.setup_extension("sphinx.ext.mathjax")
    app.setup_extension(PACKAGE)  # copies its files to `_static/mathjax` when the pages are written
    app.config.mathjax_path = "mathjax/tex-svg.js"
    app.config.nb_ipywidgets_js = {}  # sliders need a kernel, and their scripts would come from elsewhere
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
