"""Figures that turn without a kernel."""

import numpy as np
import pytest

pytest.importorskip("plotly", reason="needs the extra `notebooks`")
from lenslib.interactive import MIME, show, slider_of_pictures  # noqa: E402


def test_a_slider_has_each_picture_as_it_is_to_a_byte():
    images = np.random.default_rng(0).normal(size=(5, 8, 8)) ** 2
    change = np.random.default_rng(1).normal(size=(5, 8, 8))
    figure = slider_of_pictures({"image": images, "change": change}, range(5), "mass", 2.0, signed=["change"])
    assert [step.label for step in figure.layout.sliders[0].steps] == [frame.name for frame in figure.frames]
    for k, frame in enumerate(figure.frames):
        shown, signed = (np.asarray(trace.z, float) for trace in frame.data)
        span = images.max() - images.min()
        np.testing.assert_allclose(shown / 255 * span + images.min(), images[k], atol=0.51 * span / 255)
        most = np.abs(change).max()
        np.testing.assert_allclose(signed / 255 * 2 * most - most, change[k], atol=0.51 * 2 * most / 255)
    assert figure.data[0].x0 == -2
    assert figure.data[0].x0 + 7 * figure.data[0].dx == pytest.approx(2)


def test_a_figure_is_shown_as_data_with_words(monkeypatch):
    from plotly import graph_objects as go

    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append((data, raw)))
    show(go.Figure(go.Scatter(y=[1, 2])), "two points")
    ((data, raw),) = shown
    assert raw
    assert data["text/plain"] == "two points"
    assert data[MIME]["data"][0]["type"] == "scatter"
