"""Real lenses: Hubble frames with their noise, point-spread function and orientation, and the way to a recipe's grid.

The 37 frames are ACS/WFC F814W cut-outs prepared by Project Dinos (Tan et al. 2024, MNRAS 530, 1474; arXiv:2311.09307).
They are never part of this repository: `find_hst_lenses` looks for them and checks every file's SHA-256.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pooch

from lenslib.errors import InputError
from lenslib.hdf5_files import read_hdf5

if TYPE_CHECKING:
    from lenslib.lens_light import LensLight

DATA_VARIABLE = "LENSLIB_DATA"
BASE_URL = "https://raw.githubusercontent.com/Project-Dinos/dinos-i/main/2_dolphin_modelling/data/"
HOW_TO_GET = (
    "get the frames of Tan et al. 2024 (MNRAS 530, 1474) from github.com/Project-Dinos/dinos-i, folder "
    f"2_dolphin_modelling/data, put them beside registry.txt and mass_fits.csv in a folder, name it in {DATA_VARIABLE}"
)
IMAGE_KEYS = ("image_data", "background_rms", "exposure_time", "transform_pix2angle")
# Their files differ from all others: 0.0498 arcsec pixels, a drizzle checkerboard, about a twentieth of the counts,
# "exposure_time" 11200 = 1600 s x 7. That is what WFPC2 gives in DN/s at 7 electrons per DN with exposure times gain
# in place of the exposure, and then variance = image / exposure_time still holds.
_RELATIVE = (
    "counts not in electrons/s (looks like WFPC2, DN/s at gain 7): brightness is relative, signal-to-noise holds"
)
ARC_ZONE = (0.3, 2.2)  # arcsec from the galaxy
NOTES = {"SDSSJ1306+0600": _RELATIVE, "SDSSJ1313+4615": _RELATIVE}


class MissingFrames(InputError):
    """The Hubble frames are not on this computer at all, which a chapter may pass over; altered ones it may not."""


@dataclass(frozen=True)
class Frame:
    """One exposure-averaged image of a lens, in detector orientation (row = +y, column = +x).

    - `image`: float32 [h, w], counts/s. Counts are electrons (gain 1) except where `note` says otherwise.
    - `noise`: float32 [h, w], standard deviation of each pixel in counts/s: sqrt(background_rms^2 + max(image, 0) /
      exposure_time). Drizzling correlates neighbours, so sums over pixels are noisier than this alone gives.
    - `psf`: float64 [k, k], k odd, sums to one, at the image's pixel scale.
    - `pixel_scale`: arcsec. `exposure_time`: float32 [h, w], s. `background_rms`: counts/s.
    - `transform`: [2, 2], takes (x, y) in pixels to (right ascension, declination) in arcsec.
    - `center`: (x, y) in pixels of the point that the file calls the lens, from its `ra_at_xy_0`, `ra_shift` and their
      partners; the middle of the frame where the file has none. It is a first guess; the light knows better.
    """

    name: str
    image: np.ndarray
    noise: np.ndarray
    psf: np.ndarray
    pixel_scale: float
    transform: np.ndarray
    background_rms: float
    exposure_time: np.ndarray
    center: tuple[float, float]
    note: str = field(default="")

    @property
    def north(self) -> float:
        """Direction of north in the frame: radians from +x towards +y."""
        dx, dy = np.linalg.solve(self.transform, [0.0, 1.0])
        return float(np.arctan2(dy, dx))

    @property
    def y_axis_position_angle(self) -> float:
        """Position angle of the frame's +y: radians from north (+dec) towards east (+ra)."""
        return float(np.arctan2(self.transform[0, 1], self.transform[1, 1]))

    @property
    def parity(self) -> int:
        """-1 where the frame shows the sky as we see it (north up means east left), +1 where it is mirrored."""
        return int(np.sign(np.linalg.det(self.transform)))

    def sky_angle(self, angle: float) -> float:
        """An axis at `angle` (radians from +x towards +y) as the published fits give it: radians from +ra towards +dec.

        In (-pi/2, pi/2]. Position angles (north through east) are pi/2 minus this. That mass_fits.csv counts from +ra
        was verified on the frames: with it, and only with it, the light's axis follows the published mass axis
        (median difference 9 degrees over the 37 lenses, against 45 for unrelated angles).
        """
        dra, ddec = self.transform @ [np.cos(angle), np.sin(angle)]
        return float(np.pi / 2 - np.mod(np.pi / 2 - np.arctan2(ddec, dra), np.pi))


def read_frame(image_path: str | Path, psf_path: str | Path | None = None) -> Frame:
    """Read and check one lens from two HDF5 files in the layout of the dolphin pipeline.

    `psf_path` defaults to the image's path with "image_" replaced by "psf_". Every defect raises `InputError`.
    """
    image_path = Path(image_path)
    psf_path = Path(psf_path) if psf_path else image_path.with_name(image_path.name.replace("image_", "psf_", 1))
    stored = read_hdf5(image_path, IMAGE_KEYS, ("ra_at_xy_0", "dec_at_xy_0", "ra_shift", "dec_shift"))
    if psf_path == image_path or not psf_path.is_file():
        raise InputError(
            f"{image_path.name}: no point-spread function at {psf_path}: give the path of its psf_*.h5 file"
        )
    psf = read_hdf5(psf_path, ("kernel_point_source",))["kernel_point_source"]

    image, transform = stored["image_data"], stored["transform_pix2angle"]
    _check_image(image_path, image)
    exposure, background = _check_noise(image_path, stored, image.shape)
    if transform.shape != (2, 2) or not np.isfinite(transform).all() or np.linalg.det(transform) == 0:
        raise InputError(f"{image_path}: transform_pix2angle must be an invertible 2x2 matrix in arcsec per pixel")
    _check_psf(psf_path, psf)

    name = image_path.stem.removeprefix("image_").rsplit("_", 1)[0]
    return Frame(
        name=name,
        image=image.astype(np.float32),
        noise=np.sqrt(background**2 + np.maximum(image, 0) / exposure).astype(np.float32),
        psf=psf / psf.sum(),
        pixel_scale=float(np.sqrt(abs(np.linalg.det(transform)))),
        transform=transform,
        background_rms=background,
        exposure_time=exposure.astype(np.float32),
        center=_center(stored, transform, image.shape),
        note=NOTES.get(name, ""),
    )


def _check_image(path: Path, image: np.ndarray) -> None:
    if image.ndim != 2 or image.shape[0] != image.shape[1] or image.size < 16**2:
        raise InputError(f"{path}: image_data has shape {image.shape}: cut a square of at least 16x16 around one lens")
    if bad := int((~np.isfinite(image)).sum()):
        raise InputError(f"{path}: image_data has {bad} pixels that are NaN or infinite: fill or cut them away")


def _check_noise(path: Path, stored: dict[str, np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    exposure, background = stored["exposure_time"], stored["background_rms"]
    if exposure.size == 1:
        exposure = np.full(shape, exposure.item())
    if exposure.shape != shape:
        raise InputError(f"{path}: exposure_time has shape {exposure.shape}, the image {shape}: give one value a pixel")
    if not (np.isfinite(exposure).all() and (exposure > 0).all()):
        raise InputError(f"{path}: exposure_time must be positive in every pixel (s): cut unexposed pixels away")
    if background.size != 1 or not np.isfinite(background).all() or background.item() <= 0:
        raise InputError(f"{path}: background_rms must be one positive number (counts/s): measure it on empty sky")
    return exposure, float(background.item())


def _check_psf(path: Path, psf: np.ndarray) -> None:
    if psf.ndim != 2 or psf.shape[0] != psf.shape[1] or psf.shape[0] % 2 == 0:
        raise InputError(f"{path}: kernel_point_source has shape {psf.shape}: it must be square with an odd side")
    if not np.isfinite(psf).all() or psf.sum() <= 0:
        raise InputError(f"{path}: kernel_point_source has NaNs or no light: replace the point-spread function")


def _center(stored: dict[str, np.ndarray], transform: np.ndarray, shape: tuple[int, int]) -> tuple[float, float]:
    if "ra_at_xy_0" not in stored or "dec_at_xy_0" not in stored:
        return ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    # the shifts were added to the coordinates so that the galaxy lies at (0, 0); its light agrees to a pixel
    origin = [
        stored[f"{axis}_at_xy_0"].item() + (stored[f"{axis}_shift"].item() if f"{axis}_shift" in stored else 0.0)
        for axis in ("ra", "dec")
    ]
    x, y = np.linalg.solve(transform, np.negative(origin))
    return (float(x), float(y))


def find_hst_lenses(folder: str | Path | None = None, download: bool = False) -> Path:
    """The folder of the 37 Hubble lenses, every file there and unaltered (SHA-256 in its registry.txt).

    Looks at `folder`, else at the environment's LENSLIB_DATA (the folder itself or the one that holds `hst_lenses`),
    else at shared/data/hst_lenses beside the repository. `download=True` fetches missing frames from the authors'
    repository. MissingFrames if there is no such folder, InputError if a file of it is missing or altered.
    """
    path = _locate(folder)
    if not (path / "registry.txt").is_file():
        raise MissingFrames(f"no Hubble lenses (registry.txt) in {path}: {HOW_TO_GET}")
    store = pooch.create(path=path, base_url=BASE_URL)
    try:
        store.load_registry(path / "registry.txt")
    except (OSError, ValueError) as error:
        raise InputError(f"{path / 'registry.txt'}: not a pooch registry ({error}): fetch it again") from None
    # the public repository keeps each lens in a folder of its own
    store.urls = {name: f"{BASE_URL}{name.split('_')[1]}/{name}" for name in store.registry if name.endswith(".h5")}
    for name, known_hash in store.registry.items():
        if not (path / name).is_file():
            if not (download and name in store.urls):
                raise InputError(f"{path} lacks {name}: fetch it with find_hst_lenses({str(path)!r}, download=True)")
            store.fetch(name)
        if not pooch.hashes.hash_matches(path / name, known_hash):
            raise InputError(
                f"{path / name} is altered (SHA-256 differs from registry.txt): delete it and fetch it again"
            )
    return path


def _locate(folder: str | Path | None) -> Path:
    named = folder or os.environ.get(DATA_VARIABLE)
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data" / "hst_lenses"
    if not (path / "registry.txt").is_file() and (path / "hst_lenses").is_dir():
        path = path / "hst_lenses"
    if not path.is_dir():
        raise MissingFrames(f"no folder of Hubble lenses at {path}: {HOW_TO_GET}")
    return path


def open_hst_lenses(folder: str | Path | None = None) -> list[Frame]:
    """All frames of the checked folder, sorted by name."""
    return [read_frame(path) for path in sorted(find_hst_lenses(folder).glob("image_*.h5"))]


def published_fits(folder: str | Path | None = None) -> pd.DataFrame:
    """Published power-law fits indexed by lens: arcsec, degrees from +ra towards +dec (see `Frame.sky_angle`).

    Tan et al. 2024, MNRAS 530, 1474; the Einstein radius is the circularised one, as lenstronomy's `theta_E`.
    """
    return pd.read_csv(find_hst_lenses(folder) / "mass_fits.csv", index_col="lens")


@dataclass(frozen=True)
class GridImage:
    """A lens brought to another grid: `image` and `noise` float32 [size, size] in counts/s per new pixel.

    `covered`: bool [size, size], true where the frame has data; elsewhere the image is noise alone.
    `peak_snr`: largest pixel over noise among covered pixels 0.3 to 2.2 arcsec from the galaxy, where arcs are and its
    core and most neighbours are not, before noise was added; 0 if there is none.
    """

    image: np.ndarray
    noise: np.ndarray
    covered: np.ndarray
    peak_snr: float


def to_recipe_grid(
    frame: Frame,
    light: "LensLight",
    size: int,
    pixel_scale: float,
    peak_snr: float | None = None,
    core: float = 0.0,
    seed: int = 0,
) -> GridImage:
    """The frame without its lens galaxy on `size` x `size` pixels of `pixel_scale` arcsec, centred on that galaxy.

    Pixels are shared out by overlapping area, so surface brightness (counts/s/arcsec^2) is conserved. Where the scales
    agree within 1 % the frame is cut at whole pixels instead: no interpolation, the noise stays as it was, the galaxy
    within half a pixel of the middle. Cosmic rays, uncovered pixels and those within `core` arcsec of the galaxy's
    centre (where what remains is mostly misfit) become noise. If the peak signal-to-noise is above `peak_snr`, white
    noise is added until it is not; a frame below is left alone, since noise cannot be taken away. Orientation stays the
    detector's: nothing is turned, so north is at `frame.north`. Turn by quarter turns with `numpy.rot90` if needed; any
    other angle would smooth the noise.
    """
    if size < 1 or not pixel_scale > 0 or (peak_snr is not None and not peak_snr > 0):
        raise InputError(f"size {size}, pixel_scale {pixel_scale} and peak_snr {peak_snr} must be positive")
    rng = np.random.default_rng(seed)
    ratio = pixel_scale / frame.pixel_scale
    center = light.center
    if abs(ratio - 1) < 0.01:
        ratio = 1.0
        # the output's middle falls on a pixel for odd sizes and between two for even ones
        center = tuple(np.round(c - (size - 1) / 2) + (size - 1) / 2 for c in center)
    columns, rows = (_overlaps(n, size, ratio, c) for n, c in zip(frame.image.shape[::-1], center, strict=True))
    good = light.good.astype(np.float64)
    weight = rows @ good @ columns.T
    offsets = [(np.arange(size) - (size - 1) / 2) * ratio + c - g for c, g in zip(center, light.center, strict=True)]
    radius = np.hypot(*np.meshgrid(*offsets)) * frame.pixel_scale
    covered = (weight > 0.5 * ratio**2) & (radius >= core)
    # a cosmic ray inside a larger pixel is replaced by the rest of that pixel
    scale = np.where(covered, ratio**2 / np.maximum(weight, 1e-9), 0.0)
    image = rows @ (light.residual * good) @ columns.T * scale
    variance = rows**2 @ (frame.noise.astype(np.float64) ** 2 * good) @ (columns**2).T * scale**2
    noise = np.sqrt(np.where(covered, variance, (frame.background_rms * ratio) ** 2))
    image = np.where(covered, image, noise * rng.standard_normal(image.shape))
    arcs = covered & (radius > ARC_ZONE[0]) & (radius < ARC_ZONE[1])
    return _add_noise(image, noise, covered, arcs, peak_snr, rng)


def _add_noise(image, noise, covered, arcs, wanted, rng) -> GridImage:
    snr = np.where(arcs, image / noise, 0.0)
    peak = np.unravel_index(np.argmax(snr), snr.shape)
    if wanted is not None and snr[peak] > wanted:
        extra = np.sqrt((image[peak] / wanted) ** 2 - noise[peak] ** 2)
        image = image + extra * rng.standard_normal(image.shape)
        noise = np.sqrt(noise**2 + extra**2)
    return GridImage(image.astype(np.float32), noise.astype(np.float32), covered, float(snr[peak]))


def _overlaps(old: int, new: int, ratio: float, center: float) -> np.ndarray:
    """[new, old]: the share of old pixel j that lies in new pixel i along one axis; a new pixel is `ratio` old ones."""
    edges = center + (np.arange(new + 1) - new / 2) * ratio
    pixels = np.arange(old) - 0.5
    left, right = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
    return np.clip(right - left, 0, 1)
