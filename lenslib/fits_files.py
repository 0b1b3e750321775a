"""Images from FITS files, through astropy."""

import warnings
from math import prod
from pathlib import Path

import numpy as np

from lenslib.errors import InputError

FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")
# a few bytes of a compressed file can claim more than any memory holds
MOST_PIXELS = 2**28


def is_fits(path: str | Path) -> bool:
    """Whether a file is FITS by its name."""
    return str(path).lower().endswith(FITS_SUFFIXES)


def read_fits(path: str | Path) -> tuple[np.ndarray, float | None]:
    """The first two-dimensional image in a FITS file, and its pixel scale.

    Returns the image, float32 [h, w] (row = +y, as FITS has it; NaN where the file leaves pixels blank; units of the
    file), and arcsec a pixel, the root of the pixel's area, from its CD or CDELT keywords, or None where it has none.
    Axes of length one are dropped. InputError for a file that is absent, damaged, or has no such image
    (FITS standard 4.0: Pence et al. 2010, A&A 524, A42).
    """
    from astropy.io import fits

    path = Path(path)
    if not path.is_file():
        raise InputError(f"'{path}': no such file")
    try:
        # astropy warns of every small breach of the standard; an error is what counts here
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("ignore")
            with fits.open(path, memmap=False) as units:
                for unit in units:
                    sides = [length for length in unit.shape if length != 1] if unit.is_image else []
                    if len(sides) == 2 and 0 not in sides:
                        if prod(sides) > MOST_PIXELS:
                            raise InputError(f"'{path}': has {sides[1]} x {sides[0]} pixels: cut the lens out")
                        return np.asarray(unit.data).reshape(sides).astype(np.float32), _pixel_scale(unit.header)
    except InputError:
        raise
    except Exception:  # astropy, gzip and the decompressors raise whatever damage leads them to
        raise InputError(f"'{path}': it is not a whole FITS file: fetch it again") from None
    raise InputError(f"'{path}': no part of this FITS file holds pixels in two dimensions: give an image")


def _pixel_scale(header) -> float | None:
    from astropy import units
    from astropy.wcs import WCS

    if not any(header.get(key) for key in ("CD1_1", "CD1_2", "CDELT1")):
        return None
    try:
        wcs = WCS(header)
        wcs = wcs.celestial if wcs.has_celestial else wcs
        unit = units.Unit(wcs.wcs.cunit[0])
        # FITS has angles in degrees where it does not say
        degrees = 1.0 if unit == units.dimensionless_unscaled else unit.to(units.deg)
        scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix[:2, :2])))) * degrees * 3600
    except Exception:  # coordinates of something else, or damaged in any way: the pixels are good all the same
        return None
    return scale if np.isfinite(scale) and scale > 0 else None
