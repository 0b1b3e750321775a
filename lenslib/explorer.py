"""The explorer: a slider for every dial of a recipe (see `lenslib.scene`), and the picture that follows them."""

import io

import numpy as np

from lenslib.recipe import Recipe, load_recipe
from lenslib.scene import Dial, Picture, default_scene, dials, draw_scene, residual


class Canvas:
    """Three panels, drawn again and again: the image without noise, with noise, and its residual; axes in arcsec."""

    def __init__(self, recipe: Recipe):
        from matplotlib.figure import Figure

        half = recipe.instrument.pixels * recipe.instrument.pixel_scale / 2
        self.figure, self.area = Figure(figsize=(11, 4.1), dpi=80), 3e4 / half**2
        self.axes = self.figure.subplots(1, 3, sharex=True, sharey=True)
        self.figure.subplots_adjust(left=0.05, right=0.99, bottom=0.11, top=0.84, wspace=0.04)
        look, blank = {"origin": "lower", "extent": (-half, half, -half, half)}, np.zeros((2, 2))
        colours = ("magma", "magma", "RdBu_r")
        self.shown = [axis.imshow(blank, cmap=name, **look) for axis, name in zip(self.axes, colours, strict=True)]
        self.masses = self.axes[2].scatter([], [], facecolors="none", edgecolors="k", linewidths=0.5)
        self.axes[0].set(title="without noise", xlabel="x [arcsec]", ylabel="y [arcsec]", xlim=(-half, half))
        self.axes[1].set(title="with noise", xlabel="x [arcsec]", ylim=(-half, half))
        self.axes[2].set(xlabel="x [arcsec]")

    def draw(self, picture: Picture, title: str = "", held: np.ndarray | None = None) -> bytes:
        """PNG of a picture, with its residual against the smooth lens (or the image `held`). Circles are point masses,
        their area in proportion to mass."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        change = 100 * residual(picture.clean, picture.smooth if held is None else held)
        limit = next((x for x in (1, 2, 5, 10, 20, 50) if np.abs(change).max() <= x), 100)
        stretched = [np.arcsinh(8 * image / image.max()) for image in (picture.clean, picture.noisy)]
        ranges = [(image.min(), image.max()) for image in stretched] + [(-limit, limit)]
        for shown, image, colours in zip(self.shown, [*stretched, change], ranges, strict=True):
            shown.set_data(image)
            shown.set_clim(*colours)
        against = "the smooth lens" if held is None else "the held image"
        self.axes[2].set_title(f"minus {against}; ±{limit} % of peak")
        points = picture.substructure or {"x": [], "y": [], "theta_E": np.zeros(0)}
        self.masses.set_offsets(np.column_stack([points["x"], points["y"]]))
        self.masses.set_sizes(self.area * points["theta_E"] ** 2)
        self.figure.suptitle(title, fontsize=11)
        with io.BytesIO() as file:
            FigureCanvasAgg(self.figure).print_png(file, pil_kwargs={"compress_level": 1})
            return file.getvalue()


class Explorer:
    """Sliders and the picture that follows them; show it by naming it last in a cell.

    `sliders` maps a dial to its widget; `label` (class), `redraw` (seed), `hold` and `image` (PNG) are widgets too. It
    starts at an image of the data set `seed`. Raises InputError for an unknown recipe.
    """

    def __init__(self, recipe_name: str = "matched_hst", seed: int = 0):
        import ipywidgets as w

        self.recipe = load_recipe(recipe_name)
        self.dials, self.canvas = dials(self.recipe), Canvas(self.recipe)
        first = next(iter(self.recipe.substructure.populations), self.recipe.classes[0])
        values = default_scene(self.recipe, first, seed)
        self.sliders = {name: _slider(w, dial, values[name]) for name, dial in self.dials.items()}
        self.label = w.ToggleButtons(options=self.recipe.classes, value=first, style={"button_width": "80px"})
        self.redraw = w.IntSlider(seed, 0, max(99, seed), description="redraw (seed)", **_look(w))
        self.hold = w.ToggleButton(False, description="hold this image", tooltip="show the change since this image")
        self.image, self.held = w.Image(format="png", layout=w.Layout(max_width="100%")), None
        groups = {
            name: [w.HTML(f"<b>{name}</b>")] for name in ("lens", "shear", "source", "substructure", "instrument")
        }
        for name, slider in self.sliders.items():
            groups[self.dials[name].group].append(slider)
        groups["substructure"].append(self.redraw)
        columns = [groups["lens"] + groups["shear"], groups["source"], groups["substructure"] + groups["instrument"]]
        controls = w.HBox([w.VBox(column) for column in columns], layout=w.Layout(flex_flow="row wrap"))
        self.widget = w.VBox([w.HBox([self.label, self.hold]), self.image, controls])
        for control in (*self.sliders.values(), self.label, self.redraw):
            control.observe(self.update, "value")
        self.hold.observe(self._hold, "value")
        self.update()

    @property
    def values(self) -> dict[str, float]:
        """The value of every dial."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def _hold(self, change) -> None:
        self.held = self.picture.clean if self.hold.value else None
        self.update()

    def update(self, change=None) -> None:
        """Draw the scene that the widgets stand at."""
        for name, slider in self.sliders.items():
            slider.disabled = bool(self.dials[name].classes) and self.label.value not in self.dials[name].classes
        self.picture = draw_scene(self.recipe, self.values, self.label.value, self.redraw.value)
        self.image.value = self.canvas.draw(self.picture, self.title, self.held)

    @property
    def title(self) -> str:
        """What is drawn, in words."""
        params, reference = self.picture.params, self.picture.smooth if self.held is None else self.held
        return (
            f"{self.label.value}: θ_E {params['theta_E']:.3f} arcsec, of the smooth part {params['lens_theta_E']:.3f}; "
            f"substructure {params['mass_fraction']:.1%} of θ_E²; "
            f"rms change {residual(self.picture.clean, reference).std():.2%} of the peak"
        )

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)


def _look(w) -> dict:
    return {"style": {"description_width": "160px"}, "layout": w.Layout(width="340px")}


def _slider(w, dial: Dial, value: float):
    low, high = min(dial.low, value), max(dial.high, value)
    kind, digits = (w.FloatLogSlider, ".3g") if dial.log else (w.FloatSlider, ".3f")
    if dial.log:  # a hair wider, so that rounding does not move a value at the edge
        low, high = np.log10(low) - 1e-9, np.log10(high) + 1e-9
    step = (high - low) / 200
    return kind(value, min=low, max=high, step=step, description=dial.label, readout_format=digits, **_look(w))
