"""`lenslib predict`: what trained weights say of image files."""

import argparse
import sys
from pathlib import Path

import numpy as np

from lenslib.errors import InputError
from lenslib.fits_files import is_fits, read_fits
from lenslib.npy_files import read_npy
from lenslib.tables import print_table

# the options of a frame, which weights that judge fits alone need
_FRAME = ("noise", "background_rms", "exposure_time", "psf", "mask")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", help="weights.safetensors, a name (`lenslib weights`), or an exported .onnx file")
    parser.add_argument("images", type=Path, nargs="+")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true")
    shape.add_argument("--csv", action="store_true")
    parser.add_argument("--turns", action="store_true", help="average over the eight ways to turn and mirror an image")
    frame = parser.add_argument_group("of weights that judge what a smooth fit leaves, needed besides the images")
    frame.add_argument("--noise", type=Path, metavar="FILE", help="the standard deviation of every pixel")
    frame.add_argument("--background-rms", type=float, metavar="X", help="instead: of the sky, electrons a second")
    frame.add_argument("--exposure-time", type=float, metavar="X", help="and seconds")
    frame.add_argument("--psf", metavar="FILE", help="the point-spread function at the image's scale, or `recipe`")
    frame.add_argument("--mask", type=Path, metavar="FILE", help="not zero where a pixel is not to count")


def predict(options) -> int:
    """0, 1 where some files of many failed, 2 where the only one did."""
    from lenslib.image_files import find_images
    from lenslib.inference import predict_files

    judge = _judge(options)
    rows, failed = [], 0
    for path, answer in predict_files(judge, find_images(options.images)):
        if isinstance(answer, InputError):
            print(
                f"lenslib: {path}: {answer}" if str(path) not in str(answer) else f"lenslib: {answer}", file=sys.stderr
            )
            failed += 1
            continue
        made = judge.rows(answer)
        rows += [{"file": str(path) if len(made) == 1 else f"{path}[{k}]"} | row for k, row in enumerate(made)]
    if rows:
        print_table(rows, options.json, options.csv)
    # a single bad file is bad input; one among many is a table with a gap
    return 0 if not failed else 1 if rows else 2


def _judge(options):
    from lenslib.inference import judges_fits, metadata_of
    from lenslib.weights import find_weights

    options.weights = find_weights(options.weights)
    if options.weights.suffix == ".onnx":
        return _OfExported(options)
    return (_OfFits if judges_fits(metadata_of(options.weights)) else _OfImages)(options)


def _refuse_frame(options) -> None:
    for name in _FRAME:
        if getattr(options, name) is not None:
            raise InputError(f"'{options.weights}' looks at images alone: leave out --{name.replace('_', '-')}")


def _named(names: tuple[str, ...], answer: np.ndarray, numbers: bool) -> list[dict]:
    """A row for each image: what is likeliest, of classes, and all values by name."""
    rows = [dict(zip(names, values.tolist(), strict=True)) for values in answer]
    return rows if numbers else [{"class": max(row, key=row.get)} | row for row in rows]


class _OfImages:
    """Weights that look at images alone: a classifier or an estimator."""

    def __init__(self, options):
        from lenslib.inference import estimates_numbers, load_classifier, load_estimator

        _refuse_frame(options)
        self.numbers = estimates_numbers(options.weights)
        self.network = (load_estimator if self.numbers else load_classifier)(options.weights)
        if options.turns and self.numbers:
            raise InputError("--turns is for classes: numbers may change as an image is turned")
        self.more = {"turns": True} if options.turns else {}
        self.native_size, self.in_chans = self.network.native_size, self.network.in_chans

    def answers(self, images: np.ndarray) -> np.ndarray:
        return self.network.answers(images, **self.more)

    def rows(self, answer: np.ndarray) -> list[dict]:
        return _named(self.network.targets.names if self.numbers else self.network.classes, answer, self.numbers)


class _OfExported:
    """A network in an ONNX file."""

    def __init__(self, options):
        from lenslib.export import load_exported

        _refuse_frame(options)
        if options.turns:
            raise InputError("--turns is for weights.safetensors: an exported network looks once")
        self.network = load_exported(options.weights)
        self.native_size, self.in_chans = self.network.native_size, self.network.in_chans

    def answers(self, images: np.ndarray) -> np.ndarray:
        return self.network.answers(images)

    def rows(self, answer: np.ndarray) -> list[dict]:
        return _named(self.network.names, answer, self.network.targets is not None)


class _OfFits:
    """Weights that judge what a smooth fit leaves, with what the frames need for one."""

    in_chans = 1

    def __init__(self, options):
        from lenslib.fit_classify import load_fit_classifier

        self.classifier, self.options = load_fit_classifier(options.weights), options
        self.native_size = self.classifier.native_size
        self.noise = self._noise()
        if options.psf is None:
            own = self.classifier.recipe.instrument.name
            raise InputError(f"a fit needs the point-spread function: --psf FILE, or --psf recipe for that of {own}")
        self.psf = None if options.psf == "recipe" else _map(options.psf)
        self.mask = None if options.mask is None else _map(options.mask) != 0

    def _noise(self):
        photons = {name: getattr(self.options, name) for name in ("background_rms", "exposure_time")}
        given = {name: value for name, value in photons.items() if value is not None}
        if (self.options.noise is None) == (not given) or (given and len(given) < 2):
            raise InputError(
                "a fit needs the noise of every pixel: give --noise FILE, or both --background-rms and --exposure-time "
                "of images in electrons a second"
            )
        return given or _map(self.options.noise)

    def answers(self, images: np.ndarray):
        return self.classifier.answers(images, self.noise, self.psf, self.mask, turns=self.options.turns)

    def rows(self, answer) -> list[dict]:
        classes, blank = self.classifier.classes, None if self.options.json else ""
        rows = []
        for values, reason, highest in zip(answer.probabilities, answer.reasons, answer.highest, strict=True):
            row = {"class": "withheld" if reason else classes[values.argmax()]}
            row |= {name: blank if reason else float(value) for name, value in zip(classes, values, strict=True)}
            rows.append(row | {"highest_significance": blank if reason else float(highest), "reason": reason})
        return rows


def _map(path: str | Path) -> np.ndarray:
    """Numbers of every pixel from a .npy or FITS file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file '{path}'")
    found = read_fits(path)[0] if is_fits(path) else read_npy(path)
    if found.dtype.kind not in "bfiu":
        raise InputError(f"'{path}': holds {found.dtype}, not numbers")
    return found.astype(np.float32)
