"""The Einstein radius of a real lens: an isothermal ellipsoid with shear and a smooth source, fitted to its arcs.

No published value enters a fit. The constants below are the same for every lens; they were chosen while looking at the
37 lenses of Tan et al. 2024, so the accuracy on those is a little flattered.
"""

from dataclasses import dataclass

import numpy as np
import torch
from caustics.lenses import func
from scipy.ndimage import binary_dilation, gaussian_filter, label, maximum_position
from scipy.optimize import least_squares
from scipy.signal import convolve2d, fftconvolve

from lenslib.errors import InputError
from lenslib.frames import Frame
from lenslib.lens_light import LensLight, axis_ratio, non_negative, subtract_lens_light

NAMES = (
    "theta_E",
    "e1",
    "e2",
    "gamma1",
    "gamma2",
    "center_x",
    "center_y",
    "source_x",
    "source_y",
    "source_e1",
    "source_e2",
)
SOURCE_WIDTHS = np.array([0.03, 0.07, 0.15, 0.3])  # arcsec: the source is a non-negative sum of such Gaussians
PIXEL = 0.1  # arcsec: the arcs are fitted on pixels of about this size
INNER, OUTER, INTRUDER = 0.15, 2.4, 2.6  # arcsec: pixels fitted; what peaks beyond the last is no image of the source
DRIZZLE = 1.5  # a binned pixel's variance over that of independent pixels
LIGHT_ERROR, ARC_ERROR = 0.04, 0.15  # what the galaxy's and the source's model miss, as a share of their brightness
CLIP = 5.0  # residuals beyond this many standard deviations count by their logarithm (Cauchy)
# widths of the priors around 0 and, for e1 and e2, around 0.8 of the light's: mass follows light (Koopmans et al. 2006)
PRIOR = np.array([np.inf, 0.1, 0.1, 0.07, 0.07, 0.03, 0.03, np.inf, np.inf, 0.25, 0.25])
REACH = np.array([0, 0.25, 0.25, 0.25, 0.25, 0.1, 0.1, 1.2, 1.2, 0.6, 0.6])
THETA_E = (0.3, 2.4)
STEP = np.array([3e-3, 5e-3, 5e-3, 3e-3, 3e-3, 2e-3, 2e-3, 3e-3, 3e-3, 1e-2, 1e-2])
SCALE = np.array([0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03, 0.1, 0.1, 0.2, 0.2])
SYSTEMATIC = 0.03  # relative: the isothermal slope, the smooth source


@dataclass(frozen=True)
class RingFit:
    """`theta_E` and `uncertainty` (arcsec); `params` by lenstronomy's names (arcsec, the frame's axes, from the light's
    centre); `model` [h, w], the arcs in counts/s per pixel, on blocks of about 0.1 arcsec; `chi_square` per degree of
    freedom.
    """

    theta_E: float
    uncertainty: float
    params: dict[str, float]
    model: np.ndarray
    chi_square: float


@dataclass(frozen=True)
class _Scene:
    x: np.ndarray  # arcsec from the light's centre, [h, w]
    y: np.ndarray
    image: np.ndarray
    weight: np.ndarray
    psf: np.ndarray
    expected: np.ndarray  # the priors' centre, [11]


def estimate_einstein_radius(frame: Frame, light: LensLight | None = None) -> tuple[float, float]:
    """Circularised Einstein radius and its uncertainty (arcsec), see `fit_ring`."""
    fit = fit_ring(frame, light)
    return fit.theta_E, fit.uncertainty


def fit_ring(frame: Frame, light: LensLight | None = None, starts: int = 6) -> RingFit:
    """Fit the arcs from the best `starts` of a coarse search over Einstein radius and source position.

    `theta_E` is that of lenstronomy's SIE, sqrt(major x minor). The uncertainty adds the fit's own, scaled by its
    chi-square, to 3 per cent for what the model leaves out.
    """
    light = light or subtract_lens_light(frame)
    scene = _prepare(frame, light)
    low, high = scene.expected - REACH, scene.expected + REACH
    low[0], high[0] = THETA_E
    fits = [_descend(scene, start, low, high, 12) for start in _search(scene)[:starts]]
    best = _descend(scene, min(fits, key=lambda fit: fit.cost).x, low, high, 25)
    freedom = max(int((scene.weight > 0).sum()) - len(NAMES), 1)
    chi_square = 2 * best.cost / freedom
    formal = np.sqrt(np.linalg.pinv(best.jac.T @ best.jac)[0, 0] * max(chi_square, 1))
    theta_E = float(best.x[0])
    model = _amplitudes(scene, best.x[None])[1][0]
    block = round(PIXEL / frame.pixel_scale) or 1
    padding = [(0, full - block * part) for full, part in zip(frame.image.shape, model.shape, strict=True)]
    model = np.pad(np.kron(model, np.ones((block, block))), padding)
    params = dict(zip(NAMES, map(float, best.x), strict=True))
    return RingFit(theta_E, float(np.hypot(formal, SYSTEMATIC * theta_E)), params, model, float(chi_square))


def critical_curve(params: dict[str, float], count: int = 200) -> np.ndarray:
    """Tangential critical curve [count, 2] (x, y) of a fit's ellipsoid and shear: arcsec from the light's centre.

    An isothermal ellipsoid has shear -kappa exp(2i phi) about its centre (Kassiola & Kovner 1993, ApJ 417, 450), so
    det A = 0 is solved by kappa = (1 - gamma^2) / 2 (1 - gamma1 cos 2 phi - gamma2 sin 2 phi).
    """
    phi = np.linspace(0, 2 * np.pi, count)
    q, angle = axis_ratio(params["e1"], params["e2"])
    # kappa = theta_E / (2 r elongation)
    elongation = np.sqrt(q * np.cos(phi - angle) ** 2 + np.sin(phi - angle) ** 2 / q)
    gamma1, gamma2 = params["gamma1"], params["gamma2"]
    along = 1 - gamma1 * np.cos(2 * phi) - gamma2 * np.sin(2 * phi)
    r = params["theta_E"] * along / (elongation * (1 - gamma1**2 - gamma2**2))
    return np.stack([params["center_x"] + r * np.cos(phi), params["center_y"] + r * np.sin(phi)], 1)


def _prepare(frame: Frame, light: LensLight) -> _Scene:
    block = round(PIXEL / frame.pixel_scale) or 1
    good = light.good & ~intruders(frame, light)
    count = binned(good.astype(float), block)
    parts = np.maximum(count, 1)
    image = binned(light.residual * good, block) / parts
    variance = DRIZZLE * binned(frame.noise.astype(float) ** 2 * good, block) / parts**2
    galaxy = binned(light.model, block) / block**2
    sigma = np.sqrt(variance + (LIGHT_ERROR * galaxy) ** 2 + (ARC_ERROR * np.maximum(image, 0)) ** 2)
    y, x = (binned(a.astype(float), block) / block**2 for a in np.indices(frame.image.shape))
    x, y = (x - light.center[0]) * frame.pixel_scale, (y - light.center[1]) * frame.pixel_scale
    radius = np.hypot(x, y)
    used = (radius > INNER) & (radius < OUTER) & (count > 0)
    if used.sum() < 100:
        raise InputError(f"{frame.name}: {used.sum()} pixels within {OUTER} arcsec of the lens: cut a larger frame")
    expected = np.zeros(len(NAMES))
    expected[1:3] = 0.8 * np.array(light.ellipticity)
    return _Scene(x, y, image, np.where(used, 1 / sigma, 0), binned_psf(frame.psf, block), expected)


def binned(a: np.ndarray, block: int) -> np.ndarray:
    """Sums over blocks of block x block pixels of [h, w]; what makes up no whole block is left out."""
    h, w = (n // block for n in a.shape)
    return a[: h * block, : w * block].reshape(h, block, w, block).sum((1, 3))


def binned_psf(psf: np.ndarray, block: int) -> np.ndarray:
    """The kernel between block-wide pixels, cut at 0.8 arcsec: light spread over one pixel, seen by another."""
    triangle = np.convolve(np.ones(block), np.ones(block))
    full = convolve2d(psf, np.outer(triangle, triangle))
    middle, half = full.shape[0] // 2, min(8, (full.shape[0] // 2) // block)
    index = middle + block * np.arange(-half, half + 1)
    kernel = full[np.ix_(index, index)]
    return kernel / kernel.sum()


def intruders(frame: Frame, light: LensLight) -> np.ndarray:
    """Bool [h, w]: what is bright beyond 2.6 arcsec, with all that hangs together with it."""
    noise = np.hypot(frame.noise, 0.03 * light.model)
    labels, count = label(gaussian_filter(light.residual * light.good / noise, 1.0) > 2)
    smooth = gaussian_filter(light.residual * light.good / noise, 1.0)
    peaks = maximum_position(smooth, labels, range(1, count + 1)) if count else []
    far = [
        i
        for i, (y, x) in enumerate(peaks, 1)
        if np.hypot(x - light.center[0], y - light.center[1]) * frame.pixel_scale > INTRUDER
    ]
    return binary_dilation(np.isin(labels, far), iterations=2)


def _arcs(scene: _Scene, params: np.ndarray) -> np.ndarray:
    """Lensed, blurred unit Gaussians [b, k, h, w] for parameters [b, 11]."""
    p = [torch.as_tensor(column)[:, None, None] for column in params.T.copy()]
    x, y = torch.as_tensor(scene.x)[None], torch.as_tensor(scene.y)[None]
    q, angle = (torch.as_tensor(a)[:, None, None] for a in axis_ratio(params[:, 1], params[:, 2]))
    ax, ay = func.reduced_deflection_angle_sie(p[5], p[6], q.clamp(max=0.9999), angle, p[0], x, y)
    # the shear's own centre only shifts the source
    bx, by = x - ax - p[3] * x - p[4] * y - p[7], y - ay - p[4] * x + p[3] * y - p[8]
    q, angle = (torch.as_tensor(a)[:, None, None] for a in axis_ratio(params[:, 9], params[:, 10]))
    along, across = angle.cos() * bx + angle.sin() * by, angle.cos() * by - angle.sin() * bx
    radius2 = (q * along**2 + across**2 / q).numpy()
    unblurred = np.exp(-0.5 * radius2[:, None] / SOURCE_WIDTHS[:, None, None] ** 2)
    return fftconvolve(unblurred, scene.psf[None, None], "same", axes=(2, 3))


def _amplitudes(scene: _Scene, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Robust weighted residuals [b, n] and models [b, h, w] with the best source amplitudes."""
    arcs, used = _arcs(scene, params), scene.weight > 0
    weight, wanted = scene.weight[used], scene.image[used] * scene.weight[used]
    best = [non_negative(one[:, used] * weight, wanted) for one in arcs]
    models = np.einsum("bk,bkhw->bhw", best, arcs)
    z = (models[:, used] * weight - wanted) / CLIP
    return np.sign(z) * CLIP * np.sqrt(np.log1p(z**2)), models


def _search(scene: _Scene) -> list[np.ndarray]:
    """Parameters with the best source position for each Einstein radius, best radius first."""
    grid = np.arange(-0.4, 0.41, 0.1)
    found = []
    for theta_E in np.arange(0.45, 2.01, 0.12):
        params = np.tile(scene.expected, (len(grid) ** 2, 1))
        params[:, 0] = theta_E
        params[:, 7], params[:, 8] = (a.ravel() for a in np.meshgrid(grid, grid))
        costs = (_amplitudes(scene, params)[0] ** 2).sum(1)
        found.append((costs.min(), params[costs.argmin()]))
    return [params for _, params in sorted(found, key=lambda pair: pair[0])]


def _descend(scene: _Scene, start: np.ndarray, low: np.ndarray, high: np.ndarray, evaluations: int):
    def residuals(p):
        return np.concatenate([_amplitudes(scene, p[None])[0][0], (p - scene.expected) / PRIOR])

    def jacobian(p):
        # all steps in one batch
        data = _amplitudes(scene, np.vstack([p, p + np.diag(STEP)]))[0]
        return np.vstack([((data[1:] - data[0]) / STEP[:, None]).T, np.diag(1 / PRIOR)])

    start = np.clip(start, low + 1e-6, high - 1e-6)
    return least_squares(residuals, start, jacobian, bounds=(low, high), x_scale=SCALE, max_nfev=evaluations)
