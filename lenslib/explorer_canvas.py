"""What the explorer shows: panels that are drawn again and again, quickly, because only what moves is drawn anew."""

import io
from typing import NamedTuple

import numpy as np
import torch

from lenslib.lens_maps import caustics, convergence, critical_curves, jacobian
from lenslib.recipe import Recipe
from lenslib.scene import Picture, residual
from lenslib.simulate import source_light

# pixels of the source plane, and pixels a side that caustics are sought on
_SOURCE, _FINE = 120, 150


class Maps(NamedTuple):
    """Of one scene: the source [k, k] between -half and half, caustics, critical curves and the convergence [h, w]."""

    source: np.ndarray
    half: float
    caustics: list[np.ndarray]
    critical: list[np.ndarray]
    convergence: np.ndarray


@torch.no_grad()
def maps_of(recipe: Recipe, picture: Picture) -> Maps:
    """Caustics and critical curves are those of the smooth lens, which substructure breaks up too finely to be seen;
    the convergence is that of all the mass."""
    half = recipe.instrument.pixels * recipe.instrument.pixel_scale / 2
    params = {name: torch.tensor([value]) for name, value in picture.params.items()}
    points = {name: torch.tensor(value)[None] for name, value in picture.substructure.items()}
    smooth = params | {"lens_theta_E": params["theta_E"]}
    mass = convergence(jacobian(recipe, params, half, recipe.instrument.pixels, points or None))
    curves = critical_curves(recipe, smooth, half, _FINE)
    axis = torch.linspace(-half / 2, half / 2, _SOURCE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    source = source_light(recipe, params, x, y)[0].mean(0).numpy()
    return Maps(source, half / 2, caustics(recipe, smooth, curves), curves, mass)


class Panels:
    """Square panels in rows, drawn by copying all that stands still; axes in arcsec unless `unit` is another.

    `draw` gives the PNG. Subclasses put what moves into `artists`, and set it in a `draw` of their own.
    """

    def __init__(self, rows: int, columns: int, unit: str = "arcsec"):
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(3.5 * columns, 3.55 * rows + 0.3), dpi=72)
        self.axes = self.figure.subplots(rows, columns, squeeze=False).ravel()
        self.figure.subplots_adjust(0.065, 0.14 / rows, 0.99, 1 - 0.16 / rows, 0.14, 0.26)
        self.unit, self.artists, self._still = unit, [], None
        self.title = self.figure.text(0.5, 0.985, "", ha="center", va="top", fontsize=10)
        self.artists.append(self.title)

    def image(self, axis, half: float, colours: str, title: str, lines: str | None = None):
        """A picture between -half and half, and, if a colour is named, a collection of lines upon it."""
        from matplotlib.collections import LineCollection

        extent = (-half, half, -half, half)
        shown = axis.imshow(np.zeros((2, 2)), colours, origin="lower", extent=extent, interpolation="nearest")
        axis.set(xlim=extent[:2], ylim=extent[2:], xlabel=f"x [{self.unit}]")
        axis.set_title(title, fontsize=10)
        self.artists.append(shown)
        if lines is None:
            return shown, None
        drawn = axis.add_collection(LineCollection([], colors=lines, linewidths=1))
        self.artists.append(drawn)
        return shown, drawn

    def heading(self, axis):
        """A title that changes."""
        self.artists.append(axis.set_title("", fontsize=10))
        return self.artists[-1]

    def png(self) -> bytes:
        """All of it, as it now stands."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        if self._still is None:
            for artist in self.artists:
                artist.set_animated(True)
            self._canvas = FigureCanvasAgg(self.figure)
            self._canvas.draw()
            self._still = self._canvas.copy_from_bbox(self.figure.bbox)
        self._canvas.restore_region(self._still)
        for artist in self.artists:
            (artist.axes or self.figure).draw_artist(artist)
        with io.BytesIO() as file:
            Image.fromarray(np.asarray(self._canvas.buffer_rgba())[..., :3]).save(file, "png", compress_level=1)
            return file.getvalue()


class Canvas(Panels):
    """The image without and with noise, what substructure (or a change) does, the source plane with caustics, the
    convergence, and the direction that the image shows least."""

    def __init__(self, recipe: Recipe):
        super().__init__(2, 3)
        half = recipe.instrument.pixels * recipe.instrument.pixel_scale / 2
        self.area = 3e4 / half**2
        clean, noisy, change, source, mass, weakest = self.axes
        self.clean, _ = self.image(clean, half, "magma", "without noise")
        self.noisy, _ = self.image(noisy, half, "magma", "with noise")
        self.change, _ = self.image(change, half, "RdBu_r", "")
        self.against = self.heading(change)
        self.masses = change.scatter([], [], facecolors="none", edgecolors="k", linewidths=0.5)
        self.artists.append(self.masses)
        self.source, self.caustics = self.image(source, half / 2, "magma", "source plane and caustics", "w")
        self.mass, self.critical = self.image(mass, half, "cividis", "log convergence and critical curves", "w")
        for axis in (clean, source):
            axis.set_ylabel("y [arcsec]")
        self.bars = self._bars(weakest)

    def _bars(self, axis):
        """Of as many dials as there are, filled in later."""
        axis.set(xlim=(-1, 1), ylim=(13.6, -0.6), yticks=[], xticks=[-1, 0, 1], xlabel="share of the largest step")
        axis.set_title("least constrained direction", fontsize=10)
        axis.axvline(0, color="0.6", lw=0.8)
        bars = [(axis.barh(k, 0, color="C0")[0], axis.text(0, k, "", va="center", fontsize=8)) for k in range(14)]
        self.artists += [part for bar in bars for part in bar]
        return bars

    def weakest(self, steps: dict[str, float]) -> None:
        """Show a direction: the step of each dial in shares of its range, by label; none for no dials."""
        most = max(map(abs, steps.values()), default=1.0)
        largest = sorted(steps, key=lambda name: -abs(steps[name]))[: len(self.bars)]
        for k, (bar, text) in enumerate(self.bars):
            name = largest[k] if k < len(largest) else ""
            share = steps[name] / most if name else 0
            bar.set_width(share)
            text.set(text=name, x=0.03 if share < 0 else -0.03, ha="left" if share < 0 else "right")

    def draw(self, picture: Picture, maps: Maps, title: str = "", held: np.ndarray | None = None) -> bytes:
        """PNG of a picture, with its residual against the smooth lens (or the image `held`). Circles are point masses,
        their area in proportion to mass."""
        change = 100 * residual(picture.clean, picture.smooth if held is None else held)
        limit = next((x for x in (1, 2, 5, 10, 20, 50) if np.abs(change).max() <= x), 100)
        for shown, image in ((self.clean, picture.clean), (self.noisy, picture.noisy), (self.source, maps.source)):
            _set(shown, np.arcsinh(8 * image / max(image.max(), 1e-30)))
        _set(self.change, change, (-limit, limit))
        self.against.set_text(f"minus {'the smooth lens' if held is None else 'the held image'}; ±{limit} % of peak")
        _set(self.mass, np.log10(maps.convergence.clip(0.05, 20)))
        self.caustics.set_segments(maps.caustics)
        self.critical.set_segments(maps.critical)
        points = picture.substructure or {"x": [], "y": [], "theta_E": np.zeros(0)}
        self.masses.set_offsets(np.column_stack([points["x"], points["y"]]))
        self.masses.set_sizes(self.area * points["theta_E"] ** 2)
        self.title.set_text(title)
        return self.png()


def _set(shown, image: np.ndarray, limits: tuple[float, float] | None = None) -> None:
    shown.set_data(image)
    shown.set_clim(*(limits or (image.min(), image.max())))
