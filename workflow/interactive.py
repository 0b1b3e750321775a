"""Interactive figures of notebooks as the book shows them: data, of which nothing runs or fetches anything."""

import html
import json
import re

from lenslib.interactive import MIME

# traces that are drawn from what they hold; maps, for one, fetch their tiles
TRACES = {"bar", "heatmap", "histogram", "scatter"}
PARTS = ("data", "layout", "frames")
# of a layout: what shows pictures or maps from elsewhere
FETCHES = re.compile(r"images|geo\d*|map\d*|mapbox\d*|scene\d*|template")
# in texts, what plotly takes for a tag
_TAG = re.compile(r"<(?!/?(?:b|i|br|sub|sup)>)")


def as_html(figure: object, alt: object) -> str:
    """The place of a figure on a page, for `interactive.js` to draw; words in its stead if it is none that is shown."""
    if not isinstance(figure, dict) or not all(isinstance(figure.get(part, []), (list, dict)) for part in PARTS):
        return "<p>A figure that cannot be shown.</p>"
    frames = [frame for frame in figure.get("frames") or [] if isinstance(frame, dict)]
    layout = _without_fetches(figure.get("layout") or {})
    shown = {"data": _drawn(figure.get("data")), "layout": layout, "frames": frames}
    for frame in frames:
        frame["data"] = _drawn(frame.get("data"))
        frame.pop("layout", None)
    text = json.dumps(_plain(shown)).replace("<", "\\u003c")
    words = html.escape(alt if isinstance(alt, str) else "A figure", quote=True)
    data = f'<script type="application/json">{text}</script>'
    noscript = f"<noscript>{words} (This figure needs JavaScript.)</noscript>"
    return f'<div class="interactive" role="figure" aria-label="{words}">{data}{noscript}</div>'


def _drawn(traces: object) -> list:
    traces = traces if isinstance(traces, list) else []
    return [one for one in traces if isinstance(one, dict) and one.get("type", "heatmap") in TRACES]


def _without_fetches(layout: object) -> dict:
    layout = layout if isinstance(layout, dict) else {}
    return {name: value for name, value in layout.items() if not FETCHES.fullmatch(name)}


def _plain(value: object) -> object:
    """The same with texts in which nothing but emphasis is a tag."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return _TAG.sub("‹", value) if isinstance(value, str) else value


def replaced(data: dict) -> dict:
    """The data of an output, an interactive figure in it made HTML."""
    if MIME not in data:
        return data
    return {"text/html": as_html(data[MIME], data.get("text/plain"))}
