"""CosmoSim data sets (github.com/CosmoAI-AES/CosmoSim): a CSV file of parameters and a PNG for each of its rows."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from lenslib.errors import InputError, unknown
from lenslib.foreign import LazyImages
from lenslib.png_files import read_png

TEXTS = ("index", "filename", "model", "config", "cluster", "lens", "source", "lightprofile")
# every column that versions 2 and 3 read: 2 has chi (percent) and einsteinR, in pixels of the lens plane; 3 has
# einsteinradius, in pixels of the image, which is einsteinR / (chi / 100)
COLUMNS = (
    *("index", "filename", "model", "config", "nterms", "imagesize", "cropsize", "centred", "xireference", "sampled"),
    *("cluster", "lens", "chi", "einsteinR", "einsteinradius", "ellipseratio", "orientation"),
    *("source", "lightprofile", "sigma", "sigma2", "theta", "n_sersic", "luminosity", "R", "phi", "x", "y"),
    *("lensX", "lensY", "centreX", "centreY", "reletaX", "reletaY", "offsetX", "offsetY", "xiX", "xiY"),
)
AMPLITUDE = r"(alpha|beta)\[\d+\]\[\d+\]"
REQUIRED = ("filename", "source", "x", "y", "sigma")


class CosmoSimSet(NamedTuple):
    """images: [n, 1, h, w], float32; params: n rows; see `read_cosmosim`."""

    images: LazyImages
    params: pd.DataFrame


def read_cosmosim(path: str | Path, columns: tuple[str, ...] = (), progress: bool = True) -> CosmoSimSet:
    """A CosmoSim data set from its CSV file, or from the folder that holds it.

    - `images`: grey levels 0 to 255 (65535 in 16-bit files), left in their files, with row = +y as everywhere here:
      CosmoSim has y = h/2 - row, so files are turned upside down, and (x, y) = (0, 0) is column w/2, row h/2 - 1.
    - `params`: the CSV's columns by their own names. Lengths are pixels and angles degrees; `chi` is percent and
      `einsteinR` (versions before 3) is chi/100 times `einsteinradius`.

    Images are looked for beside the CSV file and in `images` beside it. InputError for a missing PNG, one that is
    damaged, in colour, not square or not as large as the first, and for a missing column of `REQUIRED` or `columns`.
    """
    path = _csv(Path(path))
    params = _parameters(path, (*REQUIRED, *columns))
    files = [_png(path, name) for name in params["filename"]]
    shape = None
    for file in tqdm(files, desc="check images", unit="file", delay=1, disable=None if progress else True):
        found = read_png(file).shape[1:]
        shape = shape or found
        if found != shape:
            raise InputError(f"'{file}': has {found[1]} x {found[2]} pixels, those before it {shape[1]} x {shape[2]}")
        if found[1] != found[2]:
            raise InputError(f"'{file}': has {found[1]} x {found[2]} pixels: simulate square images")
    rows = np.arange(len(files))
    return CosmoSimSet(LazyImages(read_png, files, rows, 0 * rows, shape), params)


def _csv(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.csv"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise InputError(f"'{path}' must hold one .csv file, and has {names}: give the path of the file")
    return found[0]


def _parameters(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    try:
        params = pd.read_csv(path, dtype={name: str for name in TEXTS}, index_col=False)
    except FileNotFoundError:
        raise InputError(f"'{path}': no such file") from None
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"'{path}': not a CSV file ({str(error).splitlines()[0]})") from None
    if missing := [name for name in required if name not in params]:
        raise InputError(f"'{path}': lacks the column {', '.join(missing)}; it has {', '.join(params)}")
    if not len(params):
        raise InputError(f"'{path}': has no rows")
    for name in params:
        if _is_number(name) and params[name].dtype.kind not in "fiub":
            bad = pd.to_numeric(params[name], errors="coerce").isna() & params[name].notna()
            row = int(bad.argmax())
            raise InputError(f"'{path}', line {row + 2}: {name} is {params[name][row]!r}, not a number")
    for name in required:
        if params[name].isna().any():
            raise InputError(f"'{path}', line {int(params[name].isna().argmax()) + 2}: {name} is empty")
    return params


def _is_number(name: str) -> bool:
    return name in COLUMNS and name not in TEXTS or re.fullmatch(AMPLITUDE, name) is not None


def _png(path: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"'{path}': the image '{name}' lies outside its folder: give names in it")
    for file in (path.parent / name, path.parent / "images" / name):
        if file.is_file():
            return file
    raise InputError(f"'{path}': no image '{name}' beside it or in its folder 'images'")


def write_cosmosim_csv(path: str | Path, params: pd.DataFrame) -> None:
    """Write parameters for CosmoSim to simulate: `python -m CosmoSim --csvfile PATH --directory images`.

    `params` has CosmoSim's own columns (see `COLUMNS`, and amplitudes such as `alpha[1][0]`; lengths in pixels, angles
    in degrees): `source`, `x`, `y`, `sigma`, and either `cluster` or `lens` with `einsteinradius` (version 3) or
    `einsteinR` (version 2: in the lens plane) or both. `index` and `filename` are counted from 1 where absent, as
    CosmoSim counts them. Missing numbers are left empty, and columns of nothing else left out.
    InputError for a column that CosmoSim does not know, one that it needs, or no rows; then nothing is written.
    """
    params = params.dropna(axis="columns", how="all")
    if not len(params):
        raise InputError(f"'{path}': there are no rows to write")
    for name in map(str, params):
        if name not in COLUMNS and not re.fullmatch(AMPLITUDE, name):
            raise unknown("CosmoSim column", name, COLUMNS)
    _check_lens(params)
    count = range(1, len(params) + 1)
    defaults = {"index": list(count), "filename": [f"image-{k:06}.png" for k in count]}
    params = params.assign(**{name: value for name, value in defaults.items() if name not in params})
    order = [name for name in COLUMNS if name in params]
    params = params[order + [name for name in params if name not in order]]
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            params.to_csv(partial, index=False)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"could not write '{path}': {error.strerror or error}; nothing was kept") from None


def _check_lens(params: pd.DataFrame) -> None:
    needed = ["source", "x", "y", "sigma"]
    if "cluster" in params:
        needed.append("cluster")
    else:
        # version 2 reads einsteinR and passes over einsteinradius; version 3 does the opposite
        needed += ["lens", "einsteinR" if "einsteinR" in params else "einsteinradius"]
    for name in needed:
        if name not in params:
            raise InputError(f"CosmoSim needs the column {name}: add it to the {', '.join(params)} given")
        if params[name].isna().any():
            raise InputError(f"CosmoSim needs {name} in every row: row {int(params[name].isna().argmax())} has none")
    for name in params:
        if _is_number(name) and (params[name].dtype.kind not in "fiub" or np.isinf(params[name]).any()):
            raise InputError(f"CosmoSim needs finite numbers in {name}, which has others")


def cosmosim_images(recipe, params: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Images of a roulette recipe as the CosmoSim package, version 2.6.8, draws them, one at a time.

    `params` as in `Batch.params` of the recipe; images are uint8 [pixels, pixels] with row = +y, masked, centred and
    cropped as the recipe says, by CosmoSim's own functions. InputError where the package is not installed, is of
    another version (3 has no chi), or has no such lens (roulettes of ellipsoids beyond 5 terms).
    """
    with _silence():
        try:
            from CosmoSim import CosmoSim, Image, __version__
        except ImportError as error:
            raise InputError(f"CosmoSim is not installed ({error}): pip install CosmoSim==2.6.8") from None
    if __version__ != "2.6.8":
        raise InputError(f"CosmoSim {__version__} is installed: this needs 2.6.8, the last that has chi and a ring")
    config = _CONFIGS[recipe.lens.model, recipe.lens.profile]
    if recipe.lens.model == "roulette" and recipe.lens.profile == "sie" and recipe.lens.terms > 5:
        raise InputError("CosmoSim has amplitudes of an ellipsoid up to order 5 only")
    camera = recipe.instrument
    with _silence():
        simulator = CosmoSim()
        simulator.setLensMode(recipe.lens.profile.upper())
        simulator.setModelMode(config)
        simulator.setSampled(0)
    edge = (camera.frame - camera.pixels) // 2
    try:
        for row in range(len(params["x"])):
            with _silence():
                image = _run(simulator, recipe, {name: float(value[row]) for name, value in params.items()})
                if camera.centring == "whole":
                    image = Image.centreImage(image, newbehaviour=False)[0]
            inner = slice(edge, edge + camera.pixels)
            yield image[inner, inner][::-1].astype(np.uint8)
    finally:
        simulator.close()


_CONFIGS = {
    **{("raytrace", profile): "Raytrace" for profile in ("sis", "pm", "sie")},
    **{("roulette", profile): "Roulette" for profile in ("sis", "sie")},
    ("roulette", "pm"): "Point Mass (roulettes)",
}


def _run(simulator, recipe, one: dict[str, float]) -> np.ndarray:
    frame = recipe.instrument.frame
    simulator.setImageSize(frame)
    simulator.setResolution(frame)
    simulator.setXY(one["x"], one["y"])
    simulator.setCHI(one["chi"])
    simulator.setEinsteinR(one["einstein_radius"])
    simulator.setNterms(recipe.lens.terms or 1)
    simulator.setMaskMode(recipe.instrument.masked)
    if recipe.lens.profile == "sie":
        simulator.setRatio(one["axis_ratio"])
        simulator.setOrientation(one["orientation"])
    shape = {"sigma": one["sigma1"], "sigma2": one["sigma2"], "theta": one["theta"]}
    simulator.makeSource({"imagesize": frame, "source": "Ellipsoid"} | shape)
    simulator.runSim()
    return np.array(simulator.getDistortedImage())


@contextlib.contextmanager
def _silence():
    """CosmoSim writes to the terminal, from Python and from C++."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
