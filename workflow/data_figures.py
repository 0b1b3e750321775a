"""Interactive figures of notebooks as the book shows them: data, of which nothing runs or fetches anything, for
`book/_static/interactive.js` to draw.
"""

import html
import json
import math
import re

from lenslib.interactive import MIME

# traces that are drawn from what they hold; maps, for one, fetch their tiles
TRACES = {"bar", "heatmap", "histogram", "scatter"}
# of a layout: what shows pictures or maps from elsewhere, at once or when a button is pressed
FETCHES = re.compile(r"images|geo\d*|map\d*|mapbox\d*|scene\d*|template|updatemenus")
# in texts, what plotly takes for a tag
_TAG = re.compile(r"<(?!/?(?:b|i|br|sub|sup)>)")


def as_html(figure: object, alt: object) -> str:
    """The place of a figure on a page, for `interactive.js` to draw; words in its stead if it is none that is shown."""
    if not isinstance(figure, dict):
        return "<p>A figure that cannot be shown.</p>"
    frames = [
        {"name": frame.get("name"), "data": _drawn(frame.get("data")), "traces": frame.get("traces")}
        for frame in _dicts(figure.get("frames"))
    ]
    shown = {"data": _drawn(figure.get("data")), "layout": _without_fetches(figure.get("layout")), "frames": frames}
    text = json.dumps(_plain(shown)).replace("<", "\\u003c")
    words = html.escape(alt if isinstance(alt, str) else "A figure", quote=True)
    data = f'<script type="application/json">{text}</script>'
    noscript = f"<noscript>{words} (This figure needs JavaScript.)</noscript>"
    return f'<div class="interactive" role="figure" aria-label="{words}">{data}{noscript}</div>'


def _drawn(traces: object) -> list:
    return [one for one in _dicts(traces) if str(one.get("type", "scatter")) in TRACES]


def _dicts(found: object) -> list[dict]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _without_fetches(layout: object) -> dict:
    layout = layout if isinstance(layout, dict) else {}
    kept = {name: value for name, value in layout.items() if not FETCHES.fullmatch(name)}
    if "sliders" in kept:
        sliders = [one for one in _dicts(kept["sliders"]) if all(map(_only_animates, one.get("steps") or [{}]))]
        kept["sliders"] = sliders
    return kept


def _only_animates(step: object) -> bool:
    """Whether a step of a slider does no more than show a frame by its name."""
    args = step.get("args") if isinstance(step, dict) else None
    named = isinstance(args, list) and args and isinstance(args[0], list)
    return bool(named) and step.get("method") == "animate" and all(isinstance(name, str) for name in args[0])


def _plain(value: object) -> object:
    """The same with texts in which nothing but emphasis is a tag, and null where numbers are not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _TAG.sub("‹", value) if isinstance(value, str) else value


def replaced(data: dict) -> dict:
    """The data of an output, an interactive figure in it made HTML."""
    if MIME not in data:
        return data
    return {"text/html": as_html(data[MIME], data.get("text/plain"))}
