"""The demo's page (`lenslib demo`): drop a frame, and see what a network and a fit say of it; or a folder to host it.

It asks no other computer for anything, and by default this computer alone can reach it.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from lenslib.demo import Answer, Measured, Subject, load_subject, photons_of, recipe_of
from lenslib.errors import InputError
from lenslib.export import export_calibrated
from lenslib.image_files import SUFFIXES, read_images
from lenslib.inference import judges_fits, metadata_of
from lenslib.records import load_run, run_folder
from lenslib.validation import validation_folder
from lenslib.weights import check_named, list_weights

# what may be dropped, and how many examples there are of each recipe
MOST_BYTES, EXAMPLES = 20 << 20, 3
_WORDS = """\
# Substructure in a strong lens

Choose a network and drop a frame: one square image of a lens, as many pixels a side as the network was trained on
(`.npy`, FITS, HDF5 or PNG). Probabilities are calibrated on simulated images and hold for images of that kind alone.
"""
_EXPOSURE = "exposure in seconds, of an image in electrons a second; 1 of one in electrons; 0 where unknown"
_README = """\
---
title: Substructure in strong lenses
sdk: gradio
app_file: app.py
license: mit
---

Drop a frame of a strong lens, and see what trained networks and a smooth fit say of it.
"""


def build(weights: Sequence[str] = ()):
    """The page, as Gradio's blocks, for weights by path or name; all that have a name if none are given."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError:
        raise InputError("the demo needs gradio: pip install 'lenslib[demo]'") from None
    names = list(weights) or [name for name, run in list_weights().items() if _shown(run)]
    for name in names:
        check_named(name)
    if not names:
        raise InputError("no weights have a name here: give the path of a weights.safetensors")
    subject = cache(load_subject)
    subject(names[0])
    with gr.Blocks(title="Substructure in strong lenses", analytics_enabled=False) as page:
        gr.Markdown(_WORDS)
        with gr.Row():
            with gr.Column():
                name = gr.Dropdown(names, value=names[0], label="network")
                file = gr.File(label="frame", file_types=list(SUFFIXES), elem_id="frame")
                exposure = gr.Number(0, label=_EXPOSURE, elem_id="exposure")
                gr.Examples(_examples(names), [name, file, exposure], label="simulated frames")
                fit = gr.Button("Fit a smooth lens", elem_id="fit")
            with gr.Column():
                classes = gr.Label(label="probabilities", elem_id="classes")
                words = gr.Markdown(elem_id="words")
                seen = gr.Plot(show_label=False)
        fitted = gr.Markdown(elem_id="fitted")
        panels = gr.Plot(show_label=False)
        given = [name, file, exposure]
        for what in (file.change, name.change):
            what(partial(judged, subject), given, [classes, words, seen], api_name=False)
        fit.click(partial(measured, subject), given, [fitted, panels], api_name=False)
    return page


def _shown(run) -> bool:
    """Whether a run's network is one to choose of: it measures a lens, or tells classes apart better than by chance."""
    return run.task == "regression" or (run.task == "classification" and run.metrics["macro_auc"]["low"] > 0.5)


def judged(subject: Callable[[str], Subject], name: str, file: str | None, exposure: float | None):
    """Of a dropped file: probabilities by class, words, and a figure of what they hang on; or why there are none."""
    if file is None:
        return None, "", None
    try:
        one = subject(name)
        image = _read(one, file)
        answer = one.judge(image, exposure or 0.0)
    except InputError as error:
        return None, f"**{error}**", None
    return answer.classes or None, _said(answer), _attribution(one, image, answer)


def measured(subject: Callable[[str], Subject], name: str, file: str | None, exposure: float | None):
    """Of a dropped file: the Einstein radius in words, and a figure of the fit; or words that say why not."""
    if file is None:
        return "Drop a frame first.", None
    try:
        one = subject(name)
        image = _read(one, file)
        found = one.measure(image, exposure or 0.0)
    except InputError as error:
        return f"**{error}**", None
    return _radius(found), _panels(image, found)


def _read(subject: Subject, path: str) -> np.ndarray:
    if os.path.getsize(path) > MOST_BYTES:
        raise InputError(f"the file is larger than {MOST_BYTES >> 20} MB: cut the lens out")
    try:
        images = read_images(path, subject.size, getattr(subject.network, "in_chans", 1))
    except InputError as error:
        raise InputError(str(error).replace(str(path), Path(path).name)) from None
    if len(images) != 1:
        raise InputError(f"the file holds {len(images)} images: give one")
    return images


def _said(answer: Answer) -> str:
    rows = [f"- {name.replace('_', ' ')}: {value:.4g}" for name, value in answer.numbers.items()]
    return "\n".join([*([f"**{answer.warning}**\n"] if answer.warning else []), *rows])


def _radius(found: Measured) -> str:
    value, low, high = found.radius
    return f"Einstein radius **{value:.4g} {found.unit}** (95 % interval {low:.4g} to {high:.4g}). {found.words}"


def _figure(columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * columns, 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, columns))
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _attribution(subject: Subject, image: np.ndarray, answer: Answer):
    """The frame, and where darkness would lower the likeliest class's probability."""
    try:
        found = subject.attribution(image) if answer.classes else None
    except InputError:
        found = None
    figure, axes = _figure(1 if found is None else 2)
    axes[0].imshow(image[0, 0], origin="lower", cmap="magma")
    axes[0].set_title("frame")
    if found is not None:
        most = max(float(np.abs(found).max()), 1e-6)
        axes[1].imshow(found, origin="lower", cmap="RdBu_r", vmin=-most, vmax=most)
        axes[1].set_title(f"fall of P({max(answer.classes, key=answer.classes.get)})")
    return figure


def _panels(image: np.ndarray, found: Measured):
    figure, axes = _figure(4)
    top = float(found.model.max())
    shown = [(image[0, 0], "frame", "magma", 0, top), (found.model, "fit", "magma", 0, top)]
    shown.append((found.residual, "residual, ±5 deviations", "RdBu_r", -5, 5))
    shown.append((found.source, "source", "magma", None, None))
    for axis, (array, title, colours, low, high) in zip(axes, shown, strict=True):
        axis.imshow(array, origin="lower", cmap=colours, vmin=low, vmax=high)
        axis.set_title(title)
    return figure


def _examples(names: Sequence[str]) -> list[list]:
    """A few simulated frames of each network's recipe, in files, with their exposures."""
    folder, found, recipes = Path(mkdtemp(prefix="lenslib-demo-")), [], set()
    for name in names:
        recipe = recipe_of(name)
        if recipe.name in recipes:
            continue
        recipes.add(recipe.name)
        batch = recipe.sample(EXAMPLES, seed=2**31)
        photons = photons_of(batch)
        for k, image in enumerate(batch.images.numpy()):
            path = folder / f"{recipe.name}_{k}.npy"
            np.save(path, image)
            found.append([name, str(path), round(photons[k], 1)])
    return found


def serve(weights: Sequence[str], host: str, port: int, block: bool = True):
    """Serve the page until it is stopped."""
    page = build(weights)
    try:
        return page.queue(max_size=20).launch(
            server_name=host, server_port=port, share=False, max_file_size=MOST_BYTES, prevent_thread_lock=not block,
            quiet=True, show_error=True,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"cannot serve on {host}:{port}: {error}") from None


def write_space(weights: Sequence[str], folder: Path) -> Path:
    """A folder ready to be hosted as a Space: the page, the weights, and what they need."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"'{folder}' is there and not an empty folder: give a new one")
    left_out = shutil.ignore_patterns("*.ipynb", "predictions.npz", "history.csv")
    for name in list(weights) or list(list_weights()):
        run = check_named(name).parent
        found = load_run(run)
        place = run_folder(folder / "results", found.profile, found.task, found.recipe, found.model, found.seed)
        shutil.copytree(run, place, ignore=left_out)
        if (validated := validation_folder(found)).is_dir():
            shutil.copytree(validated, run_folder(
                folder / "results", found.profile, validated.parts[-4], found.recipe, found.model, found.seed
            ), ignore=left_out)  # fmt: skip
        if not judges_fits(metadata_of(run / "weights.safetensors")):
            export_calibrated(run / "weights.safetensors", place / "weights.onnx")
    shutil.copytree(Path(__file__).parent, folder / "lenslib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "README.md").write_text(_README)
    (folder / "app.py").write_text("from lenslib.demo_page import serve\n\nserve([], '0.0.0.0', 7860)\n")
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    (folder / "requirements.txt").write_text(_needs(pyproject))
    return folder


def _needs(pyproject: Path) -> str:
    import tomllib

    project = tomllib.loads(pyproject.read_text())["project"]
    return "\n".join([*project["dependencies"], *project["optional-dependencies"]["demo"]]) + "\n"
