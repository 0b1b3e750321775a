"""Grey levels from PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from lenslib.errors import InputError

_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def read_png(path: Path) -> np.ndarray:
    """Grey levels [1, 1, h, w], float32, with row = +y. InputError for a damaged file and one in colour."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            levels = np.asarray(image.convert("RGB") if image.mode in ("P", "RGBA", "LA") else image)
    except _DAMAGE:
        raise InputError(f"'{path}': it is not a whole PNG file: simulate it again") from None
    if levels.ndim == 3:
        if (levels != levels[..., :1]).any():
            raise InputError(f"'{path}': is in colour: write it without axes, curves or other marks")
        levels = levels[..., 0]
    return levels[None, None, ::-1].astype(np.float32)
