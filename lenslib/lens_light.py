"""The lens galaxy's light: fitted by nested Gaussians around the arcs and taken away; cosmic rays found on the way."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, laplace, median_filter
from scipy.optimize import least_squares, nnls
from scipy.signal import fftconvolve

from lenslib.frames import Frame

# What a smooth galaxy model cannot follow (isophotes that twist, an imperfect PSF), as a share of its own brightness.
# Chosen once for all frames.
MODEL_ERROR = 0.02
WIDTHS = 14
CORE = 4  # pixels: nearer to the galaxy's centre neither arcs nor cosmic rays are told from the galaxy


@dataclass(frozen=True)
class LensLight:
    """- `residual`: float64 [h, w], image minus model, counts/s; `model`: float64 [h, w], galaxy and sky.
    - `center`: (x, y) of the galaxy in pixels of the frame.
    - `ellipticity`: (e1, e2) = (1 - q) / (1 + q) (cos 2 phi, sin 2 phi) of its isophotes in the frame's axes.
    - `good`: bool [h, w], false where a cosmic ray fell. `clipped`: bool [h, w], arcs left out of the fit.
    """

    residual: np.ndarray
    model: np.ndarray
    center: tuple[float, float]
    ellipticity: tuple[float, float]
    good: np.ndarray
    clipped: np.ndarray


def subtract_lens_light(frame: Frame, rounds: int = 4) -> LensLight:
    """Fit the galaxy and a constant sky by `rounds` of fitting and clipping what stands out of the model.

    The galaxy is a multi-Gaussian expansion (Emsellem et al. 1994; Cappellari 2002): concentric, of one ellipticity,
    amplitudes not negative, through the frame's point-spread function. Widths: half a pixel to the frame's size.
    """
    image, noise = frame.image.astype(np.float64), frame.noise.astype(np.float64)
    widths = np.geomspace(0.5, image.shape[0] / 2.5, WIDTHS)
    shape = np.zeros(4)  # centre offset (pixels) from the frame's middle, e1, e2
    good, clipped = np.ones(image.shape, bool), np.zeros(image.shape, bool)
    for turn in range(rounds + 1):
        weight = (good & ~clipped) / np.hypot(noise, MODEL_ERROR * np.maximum(image, 0))
        if turn < rounds:
            shape = _reshape(frame, shape, widths, weight)
        model, _ = _fit(frame, shape, widths, weight)
        residual = image - model
        y, x = np.indices(image.shape) - (image.shape[0] - 1) / 2
        outside = np.hypot(x - shape[0], y - shape[1]) > CORE
        if turn in (0, rounds - 1):
            good = ~(cosmic_rays(residual, frame) & outside)
        # smoothing by 0.7 pixels leaves 0.4 of white noise, so that 4 is four standard deviations
        significance = gaussian_filter(residual * good / np.hypot(noise, MODEL_ERROR * model), 0.7) / 0.4
        clipped = binary_dilation((significance > 4) & outside, iterations=2) | (np.abs(significance) > 25)
    middle = (image.shape[0] - 1) / 2
    center = (float(middle + shape[0]), float(middle + shape[1]))
    return LensLight(residual, model, center, (float(shape[2]), float(shape[3])), good, clipped)


def _reshape(frame: Frame, shape: np.ndarray, widths: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A few steps towards the best centre and ellipticity, amplitudes refitted at each."""

    def residuals(p):
        # bounded, so that an arc not yet clipped pulls no harder than a noisy pixel
        return np.clip(_fit(frame, p, widths, weight)[1], -6, 6)

    def jacobian(p):
        # steps far above the rounding of the float32 images
        start, steps = residuals(p), (0.02, 0.02, 0.005, 0.005)
        return np.stack([(residuals(p + h * axis) - start) / h for h, axis in zip(steps, np.eye(4), strict=True)], 1)

    reach = np.array([frame.image.shape[0] / 4] * 2 + [0.7] * 2)
    fit = least_squares(residuals, shape, jacobian, bounds=(-reach, reach), x_scale=[0.3, 0.3, 0.05, 0.05], max_nfev=4)
    return fit.x


def _fit(frame: Frame, shape: np.ndarray, widths: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best non-negative sum of Gaussians and sky: its image, and the weighted residuals of the pixels with weight."""
    used = weight > 0
    basis = np.empty((len(widths) + 1, *frame.image.shape), np.float32)
    basis[:-1] = fftconvolve(
        _gaussians(frame.image.shape, shape, widths), frame.psf[None].astype(np.float32), "same", axes=(1, 2)
    )
    basis[-1] = frame.background_rms
    columns, wanted = basis[:, used] * weight[used], frame.image[used] * weight[used]
    amplitudes = non_negative(columns, wanted)
    return np.tensordot(amplitudes, basis, 1), amplitudes @ columns - wanted


def _gaussians(size: tuple[int, int], shape: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Unit-flux elliptical Gaussians float32 [k, h, w]; the pixel's variance 1/12 stands for integrating over it."""
    y, x = np.indices(size, dtype=np.float32) - (size[0] - 1) / 2
    q, angle = axis_ratio(shape[2], shape[3])
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = cos * (x - shape[0]) + sin * (y - shape[1]), cos * (y - shape[1]) - sin * (x - shape[0])
    a, b = (widths**2 / q + 1 / 12)[:, None, None], (widths**2 * q + 1 / 12)[:, None, None]
    exponent = (-0.5 * (along**2 / a + across**2 / b)).astype(np.float32)
    return np.exp(exponent) / (2 * np.pi * np.sqrt(a * b)).astype(np.float32)


def axis_ratio(e1, e2):
    """(q, phi) of (e1, e2) = (1 - q) / (1 + q) (cos 2 phi, sin 2 phi); q at least 1/7."""
    e = np.minimum(np.hypot(e1, e2), 0.75)
    return (1 - e) / (1 + e), 0.5 * np.arctan2(e2, e1)


def non_negative(columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Amplitudes [k] >= 0 that minimise |amplitudes @ columns [k, n] - wanted [n]|, by k x k normal equations."""
    columns = columns.astype(np.float64)
    gram = columns @ columns.T
    norm = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    # Gaussians of similar width are nearly the same column: a trace of ridge keeps the factor stable
    factor = np.linalg.cholesky(gram / np.outer(norm, norm) + 1e-8 * np.eye(len(gram)))
    return nnls(factor.T, np.linalg.solve(factor, columns @ wanted / norm))[0] / norm


def cosmic_rays(residual: np.ndarray, frame: Frame, threshold: float = 4.5, contrast: float = 2.0) -> np.ndarray:
    """Pixels sharper than any light through the telescope, bool [h, w]; van Dokkum 2001 (L.A.Cosmic, PASP 113, 1420).

    Both limits are standard values; the frames of several exposures, which have no cosmic rays, return almost none.
    """
    # the noise as it would be without the cosmic ray
    noise = np.sqrt(frame.background_rms**2 + np.maximum(median_filter(frame.image, 5), 0) / frame.exposure_time)
    found, cleaned = np.zeros(residual.shape, bool), residual
    for _ in range(3):
        fine = np.kron(cleaned, np.ones((2, 2)))
        edges = np.maximum(-laplace(fine, mode="nearest"), 0)
        edges = edges.reshape(residual.shape[0], 2, residual.shape[1], 2).mean((1, 3)) / (2 * noise)
        smooth = median_filter(cleaned, 3)
        structure = np.maximum((smooth - median_filter(smooth, 7)) / noise, 0.01)
        sharp = edges - median_filter(edges, 5)
        core = (sharp > threshold) & (edges / structure > contrast)
        new = core | (binary_dilation(core, np.ones((3, 3))) & (sharp > threshold / 2))
        if not (new & ~found).any():
            break
        found |= new
        cleaned = np.where(found, median_filter(np.where(found, smooth, cleaned), 5), residual)
    # a single exposure is riddled with them, and each leaves a faint rim
    return binary_dilation(found) & (residual > 0) | found
