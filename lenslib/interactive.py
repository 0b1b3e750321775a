"""Figures that a reader can turn without a kernel: Plotly's, kept in a notebook as data, which the book draws.

show(slider_of_pictures({"noise": images}, values, "mass fraction", half=2.5), alt="...")
"""

import json
from collections.abc import Sequence

import numpy as np

MIME = "application/vnd.plotly.v1+json"


def show(figure, alt: str) -> None:
    """Show a figure of plotly.graph_objects as data alone, with words for those who cannot see it."""
    from IPython.display import display

    display({MIME: json.loads(figure.to_json()), "text/plain": alt}, raw=True)


def slider_of_pictures(
    pictures: dict[str, np.ndarray], values: Sequence[float], name: str, half: float, signed: Sequence[str] = ()
):
    """A figure with a slider: of each picture [n, h, w], by title, the one that belongs to each of n `values` of the
    quantity `name`. Axes run from -half to half, in arcsec; those that are `signed` have white at zero."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(pictures), subplot_titles=list(pictures), horizontal_spacing=0.06)
    side = next(iter(pictures.values())).shape[1]
    axis = {"x0": -half, "dx": 2 * half / (side - 1), "y0": -half, "dy": 2 * half / (side - 1), "showscale": False}
    shades = {title: _shades(images, title in signed) for title, images in pictures.items()}
    for k, title in enumerate(pictures, start=1):
        colours = "RdBu_r" if title in signed else "Magma"
        first = shades[title][len(values) // 2]
        look = {"colorscale": colours, "zmin": 0, "zmax": 255, "hoverinfo": "skip"}
        figure.add_trace(go.Heatmap(z=first, **look, **axis), row=1, col=k)
        figure.update_xaxes(title_text="x [arcsec]", constrain="domain", row=1, col=k)
        figure.update_yaxes(scaleanchor=f"x{k if k > 1 else ''}", constrain="domain", row=1, col=k)
    labels = [f"{value:.3g}" for value in values]
    every = list(range(len(pictures)))
    figure.frames = [
        go.Frame(name=label, data=[go.Heatmap(z=shades[title][k]) for title in pictures], traces=every)
        for k, label in enumerate(labels)
    ]
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    steps = [{"method": "animate", "args": [[label], still], "label": label} for label in labels]
    slider = {"active": len(values) // 2, "currentvalue": {"prefix": f"{name}: "}, "steps": steps}
    return figure.update_layout(sliders=[slider], height=380, margin={"l": 50, "r": 20, "t": 40, "b": 40})


def _shades(images: np.ndarray, signed: bool) -> np.ndarray:
    """Bytes, which a page can hold by the dozen: from the darkest to the brightest, or with zero in the middle."""
    low, high = (-np.abs(images).max(), np.abs(images).max()) if signed else (images.min(), images.max())
    return np.round(255 * (images - low) / max(high - low, 1e-30)).astype(np.uint8)
