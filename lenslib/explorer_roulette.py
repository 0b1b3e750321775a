"""The explorer of roulette recipes: the lens as rays find it, and as so many terms of its series do, side by side."""

import numpy as np
import torch

from lenslib.errors import InputError
from lenslib.explorer import Shown, look, paragraph, plain
from lenslib.explorer_canvas import Panels
from lenslib.recipe import load_recipe
from lenslib.roulette_images import light
from lenslib.roulettes import MAX_ORDER, converges, image_position, ring_radius

_LABELS = {
    "x": "source x [pixel]", "y": "source y [pixel]", "chi": "χ [%]", "einstein_radius": "R_E [pixel]",
    "axis_ratio": "axis ratio", "orientation": "orientation [°]", "sigma1": "σ1 [pixel]", "sigma2": "σ2 [pixel]",
    "theta": "θ [°]",
}  # fmt: skip
# terms that a recipe without a series begins with; pixels a side that are drawn at most, so that sliders are followed
_TERMS, _SIDE = 16, 200


class RouletteExplorer(Shown):
    """Sliders of the lens, the source and the number of terms, and three pictures: by rays, by the series, and the
    difference.

    `sliders` maps a parameter to its widget; `terms`, `masked`, `ring`, `axes`, `places` (where the source is, and
    where it is seen), `image` (PNG) and `words` are widgets too. It starts at image 0 of the data set `seed`.
    """

    def __init__(self, recipe_name: str = "roulette_sis", seed: int = 0):
        import ipywidgets as w

        recipe = load_recipe(recipe_name)
        # about the lens, twice as wide as the camera that follows the image, and the source as its formula says
        wide = min(2 * recipe.instrument.pixels, recipe.instrument.frame)
        plain = {"pixels": wide, "centring": "none", "lookup": "exact", "masked": False, "noise_sd": 0.0}
        self.recipe = recipe.model_copy(update={"instrument": recipe.instrument.model_copy(update=plain)})
        drawn = {name: float(value[0]) for name, value in recipe.draw(seed, 0).items()}
        self.sliders = {name: self._slider(w, name, value) for name, value in drawn.items()}
        first = recipe.lens.terms or _TERMS
        self.terms = w.IntSlider(first, 1, MAX_ORDER, description="terms of the series", **look(w))
        marks = {"masked": recipe.instrument.masked, "ring": True, "axes": False, "places": True}
        words = {"masked": "mask what is outside the ring", "ring": "ring of convergence", "axes": "axes",
                 "places": "actual and apparent position"}  # fmt: skip
        boxes = {name: w.Checkbox(value, description=words[name], indent=False) for name, value in marks.items()}
        self.masked, self.ring, self.axes, self.places = boxes.values()
        self.image, self.words = w.Image(format="png", layout=w.Layout(max_width="100%")), w.HTML()
        self.canvas, self.grid = _Canvas(wide), _grid(wide)
        columns = [w.VBox(list(self.sliders.values())), w.VBox([self.terms, *boxes.values(), self.words])]
        self.widget = w.VBox([self.image, w.HBox(columns, layout=w.Layout(flex_flow="row wrap"))])
        for control in (*self.sliders.values(), self.terms, *boxes.values()):
            control.observe(self.update, "value")
        self.update()

    def _slider(self, w, name: str, value: float):
        draws = self.recipe.sampling
        reach = max(draws.radius[1], draws.radius_again[1])
        most = draws.largest(np.array(draws.einstein_radius), np.array([reach, reach])).max()
        sizes = (draws.smallest_sigma, max(float(most), value))
        ranges = {"x": (-reach, reach), "y": (-reach, reach), "sigma1": sizes, "sigma2": sizes}
        low, high = ranges.get(name) or getattr(draws, name)
        step = (high - low) / 200
        return w.FloatSlider(value, min=low, max=high, step=step, description=_LABELS[name], readout_format=".1f",
                             **look(w))  # fmt: skip

    @property
    def values(self) -> dict[str, float]:
        """The value of every parameter."""
        return {name: one.value for name, one in self.sliders.items()}

    def _params(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value) for name, value in self.values.items()}

    def drawn(self, model: str) -> np.ndarray:
        """The image [k, k] by rays ("raytrace") or by the series ("roulette"), in grey levels that are not rounded, at
        the pixels of `grid`."""
        series = model == "roulette"
        lens = self.recipe.lens.model_copy(update={"model": model, "terms": self.terms.value if series else None})
        frame = self.recipe.instrument.model_copy(update={"masked": series and self.masked.value})
        found = light(self.recipe.model_copy(update={"lens": lens, "instrument": frame}), self._params(), *self.grid)
        found = found.reshape(len(self.grid[1]), -1).numpy()
        return np.where(np.isfinite(found), found, 0.0)

    def update(self, change=None) -> None:
        """Draw the scene that the widgets stand at, or say why there is none."""
        rays = self.recipe.model_copy(update={"lens": self.recipe.lens.model_copy(update={"model": "raytrace"})})
        params = self._params()
        try:
            rays.check({name: value[None] for name, value in params.items()})
        except InputError as error:
            self.words.value = plain(str(error))
            return
        rays, series = self.drawn("raytrace"), self.drawn("roulette")
        seen = image_position(self.recipe.lens.profile, params)
        inside = converges(self.recipe.lens.profile, params, seen, *self.grid).numpy()
        place = float(seen[0]), float(seen[1])
        self.words.value = paragraph(self._said(rays, series, inside, float(ring_radius(params)), place))
        source = self.values["x"], self.values["y"]
        marks = self.ring.value, self.places.value, self.axes.value
        self.image.value = self.canvas.draw((rays, series), source, place, *marks)

    def _said(self, rays, series, inside, radius: float, place) -> str:
        apart = np.abs(rays - series)
        away = f"{apart[inside].max():.1f} grey levels apart at most" if inside.any() else "nowhere to compare"
        return (
            f"The Einstein radius in the image is {radius:.1f} pixels; the source is seen at ({place[0]:.1f}, "
            f"{place[1]:.1f}). Within the ring of convergence rays and {self.terms.value} terms are {away}; outside, "
            f"the series means nothing ({apart[~inside].max():.0f} apart)."
        )


def _grid(pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [1, k] and y [k, 1] from the lens: every pixel, or every second or third of a large image."""
    steps = torch.arange(0, pixels, -(-pixels // _SIDE), dtype=torch.float32) - pixels // 2
    return steps[None, :], steps[:, None] + 1


class _Canvas(Panels):
    def __init__(self, pixels: int):
        super().__init__(1, 3, unit="pixel")
        self.half, colours = pixels / 2, ("magma", "magma", "RdBu_r")
        titles = ("by rays", "by the series", "series minus rays")
        shown = [self.image(axis, self.half, *look) for axis, *look in zip(self.axes, colours, titles, strict=True)]
        self.shown = [image for image, _ in shown]
        for image, limits in zip(self.shown, ((0, 255), (0, 255), (-64, 64)), strict=True):
            image.set_clim(*limits)
        self.axes[0].set_ylabel("y [pixel]")
        self.marks = []
        for axis in self.axes:
            rings = axis.plot([], [], "-", color="C0", lw=1)
            actual, apparent = axis.plot([], [], "+", color="C2", ms=9), axis.plot([], [], "x", color="C1", ms=8)
            cross = [axis.axhline(0, color="0.6", lw=0.7), axis.axvline(0, color="0.6", lw=0.7)]
            self.marks.append((*rings, *actual, *apparent, *cross))
            self.artists += self.marks[-1]

    def draw(self, images, actual, apparent, ring: bool, places: bool, axes: bool) -> bytes:
        for shown, image in zip(self.shown, (*images, images[1] - images[0]), strict=True):
            shown.set_data(image)
        turn = np.linspace(0, 2 * np.pi, 200)
        radius = np.hypot(*apparent)
        circle = apparent[0] + radius * np.cos(turn), apparent[1] + radius * np.sin(turn)
        for drawn_ring, at, seen, *cross in self.marks:
            drawn_ring.set_data(*(circle if ring else ([], [])))
            at.set_data(*(([actual[0]], [actual[1]]) if places else ([], [])))
            seen.set_data(*(([apparent[0]], [apparent[1]]) if places else ([], [])))
            for line in cross:
                line.set_visible(axes)
        self.title.set_text("+ where the source is, × where it is seen" if places else "")
        return self.png()
