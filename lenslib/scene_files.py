"""A scene in a file: as a recipe to come back to, a picture, numbers for other programs, or lenstronomy's own words.

save_scene("scene.yaml", scene)      # .yaml, .png, .fits or .py, by the name
load_scene("scene.yaml", recipe)
"""

import re
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat

import numpy as np
import torch

from lenslib.errors import InputError
from lenslib.recipe import Recipe, parse_recipe
from lenslib.records import write_whole
from lenslib.scene import Picture, default_scene, dials, pinned
from lenslib.simulate import Batch

_SAVED = re.compile(r"# A scene of the explorer: class (\w+), redraw (\d+), PSF width (\d+\.?\d*(?:e[+-]\d+)?)\n")
_SNIPPET = '''\
"""{title}: the noise-free image, by lenstronomy {version} or newer."""

import numpy as np
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

lens_model_list = {lens_model_list}
kwargs_lens = {kwargs_lens}
light_model_list = {light_model_list}
kwargs_light = {kwargs_light}
lens_light_model_list = {lens_light_model_list}
kwargs_lens_light = {kwargs_lens_light}
kwargs_pixel = {kwargs_pixel}
kwargs_psf = {kwargs_psf}

kwargs_pixel["transform_pix2angle"] = np.array(kwargs_pixel["transform_pix2angle"])
if "kernel_point_source" in kwargs_psf:
    kwargs_psf["kernel_point_source"] = np.array(kwargs_psf["kernel_point_source"])
model = ImageModel(
    PixelGrid(**kwargs_pixel),
    PSF(**kwargs_psf),
    LensModel(lens_model_list),
    LightModel(light_model_list),
    LightModel(lens_light_model_list),
    kwargs_numerics={{"supersampling_factor": 1}},
)
image = model.image(kwargs_lens, kwargs_light, kwargs_lens_light)  # [h, w], rows of +y
'''


@dataclass(frozen=True)
class Scene:
    """A recipe with the value of every dial, the class, the seed of what has no dial, what was drawn of it, and the PNG
    in which it was shown."""

    recipe: Recipe
    values: dict[str, float]
    label: str
    seed: int
    picture: Picture
    png: bytes = b""


def save_scene(path: str | Path, scene: Scene) -> Path:
    """Write a scene: `.yaml` the recipe with every prior pinned, `.png` what is shown, `.fits` the images, `.py` a
    script for lenstronomy.

    InputError for another ending and for a file that cannot be written.
    """
    path = Path(path)
    writers = {".yaml": _yaml, ".yml": _yaml, ".png": lambda one: one.png, ".fits": _fits, ".py": _snippet}
    if path.suffix.lower() not in writers:
        raise InputError(f"'{path}': a scene is saved as .yaml, .png, .fits or .py")
    content = writers[path.suffix.lower()](scene)
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror}") from None
    return path


def load_scene(path: str | Path, recipe: Recipe) -> tuple[dict[str, float], str, int]:
    """The value of every dial, the class and the seed of a scene that was saved as `.yaml` from the same recipe; of any
    other file with a recipe of the same dials, its own first scene. InputError for what is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"'{path}' cannot be read: give a scene that was saved as .yaml") from None
    saved = parse_recipe(text, str(path))
    if saved.kind != recipe.kind or set(dials(saved)) != set(dials(recipe)) or saved.classes != recipe.classes:
        raise InputError(f"'{path}' is a scene of {saved.name}, which has other dials or classes than {recipe.name}")
    kept = ("pixels", "pixel_scale", "zero_point", "divide_by_peak")
    if any(getattr(saved.instrument, name) != getattr(recipe.instrument, name) for name in kept):
        raise InputError(f"'{path}' is seen by {saved.instrument.name}, which is not the instrument of {recipe.name}")
    known = _SAVED.match(text)
    label, seed, width = known.groups() if known else (recipe.classes[0], "0", "1")
    if label not in recipe.classes:
        raise InputError(f"'{path}': there is no class '{label}'")
    return default_scene(saved, label) | {"psf_factor": float(width)}, label, int(seed)


def _yaml(scene: Scene) -> bytes:
    head = (
        f"# A scene of the explorer: class {scene.label}, redraw {scene.seed}, PSF width {scene.values['psf_factor']}\n"
    )
    return (head + pinned(scene.recipe, scene.values).to_yaml()).encode()


def _fits(scene: Scene) -> bytes:
    import io

    from astropy.io import fits

    header = fits.Header()
    header["RECIPE"], header["CLASS"], header["SEED"] = scene.recipe.name, scene.label, scene.seed
    header["PIXSCALE"] = (scene.recipe.instrument.pixel_scale, "arcsec")
    for name, dial in dials(scene.recipe).items():
        label = "".join(letter for letter in dial.label if letter.isascii())
        header[f"HIERARCH {name}"] = (scene.values[name], label.strip())
    images = scene.picture._asdict()
    hdus = [fits.PrimaryHDU(images["noisy"], header)]
    hdus += [fits.ImageHDU(images[name], name=name.upper()) for name in ("clean", "smooth")]
    with io.BytesIO() as file:
        fits.HDUList(hdus).writeto(file)
        return file.getvalue()


def as_batch(scene: Scene) -> Batch:
    """The scene as a `Batch` of one image, noise-free."""
    picture = scene.picture
    return Batch(
        torch.tensor(picture.clean)[None, None],
        torch.tensor([scene.recipe.classes.index(scene.label)]),
        {name: torch.tensor([value]) for name, value in picture.params.items()},
        {name: torch.tensor(value)[None] for name, value in picture.substructure.items()},
        pinned(scene.recipe, scene.values),
    )


def _snippet(scene: Scene) -> bytes:
    batch = as_batch(scene)
    if not scene.picture.substructure:  # as of a class that has none: there are no pieces to name
        bare = next(name for name in scene.recipe.classes if name not in scene.recipe.substructure.populations)
        batch.labels[:] = scene.recipe.classes.index(bare)
    told = batch.to_lenstronomy(0)._asdict()
    words = {name: pformat(_plain(value), width=110, compact=True) for name, value in told.items()}
    title = f"A {scene.label} lens of {scene.recipe.name}"
    return _SNIPPET.format(title=title, version="1.12", **words).encode()


def _plain(value):
    """Of nested lists and mappings, every array as lists."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
