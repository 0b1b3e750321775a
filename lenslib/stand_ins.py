"""Galaxies drawn here, for a recipe whose own pictures are gigabytes to download."""

from pathlib import Path

import numpy as np
from PIL import Image


def drawn_galaxies(folder: str | Path, count: int = 4, size: int = 128, seed: int = 0) -> dict[str, object]:
    """Write `count` pictures of clumpy, coloured galaxies, size x size pixels, to `folder`; what to change of a recipe
    with a picture for a source (`load_recipe("deeplense_4", changes)`), so that it takes its source from them."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size] - (size - 1) / 2
    for k in range(count):
        light = np.full((size, size, 3), 4.0)
        for place in rng.normal(0, size / 9, (9, 2)):
            clump = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * rng.uniform(3, 9) ** 2))
            light += clump[..., None] * rng.uniform(20, 70, 3)
        Image.fromarray(light.clip(0, 255).astype(np.uint8)).save(Path(folder) / f"{k}.png")
    return {"source.folder": str(folder), "source.only": None, "source.pixel_scale": 0.005}
