"""The explorer: a slider for every dial of a recipe (see `lenslib.scene`), and the pictures that follow them.

explore("matched_hst")      # named last in a cell; of a roulette recipe another one, see `lenslib.explorer_roulette`
"""

import asyncio
from html import escape

import numpy as np

from lenslib.errors import InputError
from lenslib.explorer_canvas import Canvas, maps_of
from lenslib.explorer_judge import judge_for
from lenslib.recipe import load_recipe
from lenslib.scene import Dial, default_scene, dials, draw_scene, residual
from lenslib.scene_files import Scene, load_scene, save_scene
from lenslib.scene_information import tell

# seconds for which sliders must stand still before it is worked out what the image tells
_STILL = 0.3


def explore(recipe_name: str = "matched_hst", seed: int = 0):
    """The explorer of a recipe of either kind. InputError for an unknown recipe."""
    if load_recipe(recipe_name).kind == "roulette":
        from lenslib.explorer_roulette import RouletteExplorer

        return RouletteExplorer(recipe_name, seed)
    return Explorer(recipe_name, seed)


class Shown:
    """Something that a notebook shows by its `widget`."""

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)


class Explorer(Shown):
    """Sliders, the pictures that follow them, and, once they stand still, what the image tells.

    `sliders` maps a dial to its widget; `label` (class), `redraw` (seed), `hold`, `image` (PNG), `words`, `answer` (a
    network's) and `path` are widgets too. It starts at an image of the data set `seed`.
    """

    def __init__(self, recipe_name: str = "matched_hst", seed: int = 0):
        import ipywidgets as w

        self.recipe = load_recipe(recipe_name)
        if self.recipe.kind == "roulette":
            raise InputError(f"{recipe_name} is a recipe of roulettes: show it with explore('{recipe_name}')")
        self.dials, self.canvas, self.judge = dials(self.recipe), Canvas(self.recipe), judge_for(self.recipe)
        self.held = self.told = self._later = None
        first = next(iter(self.recipe.substructure.populations), self.recipe.classes[0])
        values = default_scene(self.recipe, first, seed)
        self.sliders = {name: slider(w, dial, values[name]) for name, dial in self.dials.items()}
        self.label = w.ToggleButtons(options=self.recipe.classes, value=first, style={"button_width": "80px"})
        self.redraw = w.IntSlider(seed, 0, max(99, seed), description="redraw (seed)", **look(w))
        self.hold = w.ToggleButton(False, description="hold this image", tooltip="show the change since this image")
        self.image, self.words = w.Image(format="png", layout=w.Layout(max_width="100%")), w.HTML()
        self.path = w.Text("scene.yaml", description="file", tooltip=".yaml, .png, .fits or .py")
        self.said = w.HTML()
        self.answer = w.HTML()
        self.widget = self._arranged(w)
        for control in (*self.sliders.values(), self.label, self.redraw):
            control.observe(self.update, "value")
        self.hold.observe(self._hold, "value")
        self.update()

    def _arranged(self, w):
        """All widgets, in their places."""
        groups = {
            name: [w.HTML(f"<b>{name}</b>")] for name in dict.fromkeys(dial.group for dial in self.dials.values())
        }
        for name, one in self.sliders.items():
            groups[self.dials[name].group].append(one)
        groups.setdefault("substructure", []).append(self.redraw)
        left, right = groups.pop("substructure"), groups.pop("instrument")
        columns = [sum(groups.values(), []), left + right]
        controls = w.HBox([w.VBox(column) for column in columns], layout=w.Layout(flex_flow="row wrap"))
        buttons = {"◀ walk": -1, "walk ▶": 1}
        walks = [button(w, name, lambda sign=sign: self.walk(sign)) for name, sign in buttons.items()]
        for one in walks:
            one.tooltip = "one standard deviation, or a twentieth of a range, along what the image shows least"
        files = [self.path, button(w, "save", self.save), button(w, "load", self.load), self.said]
        asked = [] if self.judge is None else [button(w, "ask", self.ask), self.answer]
        top, files = w.HBox([self.label, self.hold, *walks]), w.HBox(files)
        return w.VBox([top, self.image, w.HBox(asked), self.words, controls, files])

    @property
    def values(self) -> dict[str, float]:
        """The value of every dial."""
        return {name: one.value for name, one in self.sliders.items()}

    @property
    def scene(self) -> Scene:
        """What is shown, as it is saved."""
        return Scene(self.recipe, self.values, self.label.value, self.redraw.value, self.picture, self.image.value)

    def _hold(self, change) -> None:
        self.held = self.picture.clean if self.hold.value else None
        self.update()

    def update(self, change=None) -> None:
        """Draw the scene that the widgets stand at; what it tells follows when they are left alone."""
        for name, one in self.sliders.items():
            one.disabled = bool(self.dials[name].classes) and self.label.value not in self.dials[name].classes
        self.picture = draw_scene(self.recipe, self.values, self.label.value, self.redraw.value)
        self.maps, self.told = maps_of(self.recipe, self.picture), None
        self.answer.value = ""
        self._draw()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel that could come back to it
            return
        if self._later is not None:
            self._later.cancel()
        self._later = loop.call_later(_STILL, self.tell)

    def _draw(self) -> None:
        steps = self.told.weakest if self.told is not None else {}
        widths = {name: self.sliders[name].max - self.sliders[name].min for name in steps}
        shares = {self._named(name).partition(" [")[0]: step / widths[name] for name, step in steps.items()}
        self.canvas.weakest(shares)
        self.image.value = self.canvas.draw(self.picture, self.maps, self.title, self.held)

    def tell(self) -> None:
        """Work out what this image tells: bounds, the least constrained direction, the ceiling; and have a quick
        network judge it."""
        try:
            self.told = tell(self.recipe, self.values, self.picture)
        except InputError as error:
            self.words.value = plain(str(error))
            return
        self.words.value = paragraph(self._told())
        self._draw()
        if self.judge is not None and self.judge.quick:
            self.ask()

    def ask(self) -> None:
        """Have the network judge the image with noise; one that judges fits takes seconds, the first time a minute."""
        self.answer.value = paragraph("…")
        self.answer.value = paragraph(self.judge.words(self.picture))

    def _told(self) -> str:
        told = self.told
        found = "No substructure here."
        if self.picture.substructure:
            found = (
                f"Substructure has a signal-to-noise of {told.unfitted:.1f} in all, of {told.signal:.1f} after a "
                "smooth lens and source took up what they can, to first order. The ceiling for this very lens, for one "
                f"who knows the substructure but nothing of the lens beforehand: AUC {told.ceiling:.3f}."
            )
        if self.held is not None:
            found += f" The image is {told.change(self.picture.clean, self.held):.1f} deviations from the held one."
        bounds = ", ".join(
            f"{self._named(name)} ±{bound:.2g}" for name, bound in told.bounds.items() if name in self.dials
        )
        return f"{found}<br>The best that any unbiased measurement could do, were the lens smooth: {bounds}."

    def _named(self, name: str) -> str:
        """A dial's label, of the source said so."""
        dial = self.dials[name]
        return f"source {dial.label}" if dial.group == "source" else dial.label

    def walk(self, sign: int = 1) -> None:
        """Move all sliders by one standard deviation along the direction that the image shows least."""
        if self.told is None:
            self.tell()
        if self.told is not None:
            self.move({name: self.values[name] + sign * step for name, step in self.told.weakest.items()})
            self.tell()

    def move(self, values: dict[str, float], label: str | None = None, seed: int | None = None) -> None:
        """Set dials by name, then draw once."""
        controls = {**self.sliders, "class": self.label, "seed": self.redraw}
        for control in controls.values():
            control.unobserve(self.update, "value")
        try:
            for name, value in values.items():
                low, high = ends(self.sliders[name])
                if not low <= value <= high:
                    raise InputError(
                        f"{name} = {value:.4g} is beyond its slider, which goes from {low:.4g} to {high:.4g}"
                    )
            for name, value in values.items():
                self.sliders[name].value = value
            self.label.value = self.label.value if label is None else label
            if seed is not None:
                self.redraw.max = max(self.redraw.max, seed)
                self.redraw.value = seed
        except InputError as error:
            self.said.value = plain(str(error))
        finally:
            for control in controls.values():
                control.observe(self.update, "value")
        self.update()

    def save(self) -> None:
        """Write the scene to the file that is named; its ending says how."""
        try:
            self.said.value = plain(f"saved {save_scene(self.path.value, self.scene)}")
        except InputError as error:
            self.said.value = plain(str(error))

    def load(self) -> None:
        """Return to a scene that was saved as `.yaml`."""
        try:
            values, label, seed = load_scene(self.path.value, self.recipe)
        except InputError as error:
            self.said.value = plain(str(error))
            return
        self.said.value = plain(f"loaded {self.path.value}")
        self.move(values, label, seed)

    @property
    def title(self) -> str:
        """What is drawn, in words."""
        params, reference = self.picture.params, self.picture.smooth if self.held is None else self.held
        return (
            f"{self.label.value}: θ_E {params['theta_E']:.3f} arcsec, of the smooth part {params['lens_theta_E']:.3f}; "
            f"substructure {params['mass_fraction']:.1%} of θ_E²; "
            f"rms change {residual(self.picture.clean, reference).std():.2%} of the peak"
        )


def paragraph(text: str) -> str:
    return f'<p style="line-height: 1.4; margin: 0.3em 0">{text}</p>'


def plain(text: str) -> str:
    """A paragraph of words that may come from a file: nothing in them is a tag."""
    return paragraph(escape(text))


def button(w, name: str, pressed):
    one = w.Button(description=name, layout=w.Layout(width="80px"))
    one.on_click(lambda _: pressed())
    return one


def look(w) -> dict:
    return {"style": {"description_width": "160px"}, "layout": w.Layout(width="340px")}


def ends(one) -> tuple[float, float]:
    """Of a slider, in its own unit."""
    return (one.base**one.min, one.base**one.max) if hasattr(one, "base") else (one.min, one.max)


def slider(w, dial: Dial, value: float):
    low, high = min(dial.low, value), max(dial.high, value)
    kind, digits = (w.FloatLogSlider, ".3g") if dial.log else (w.FloatSlider, ".3f")
    if dial.log:  # a hair wider, so that rounding does not move a value at the edge
        low, high = np.log10(low) - 1e-9, np.log10(high) + 1e-9
    step = (high - low) / 200
    return kind(value, min=low, max=high, step=step, description=dial.label, readout_format=digits, **look(w))
