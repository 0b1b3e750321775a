"""The same scene as other simulators' objects.

A `Scene` is one in lenstronomy's words; other simulators' objects are translated from it.
"""

import os
import warnings
from typing import Any, NamedTuple

import numpy as np

from lenslib.errors import InputError


class Scene(NamedTuple):
    """One lens in lenstronomy's words: pass the lists to LensModel, LightModel, PixelGrid and PSF."""

    lens_model_list: list[str]
    kwargs_lens: list[dict[str, float]]
    light_model_list: list[str]
    kwargs_light: list[dict[str, float]]
    kwargs_pixel: dict[str, Any]
    kwargs_psf: dict[str, Any]
    lens_light_model_list: list[str]
    kwargs_lens_light: list[dict[str, float]]


def lenstronomy_scene(batch, i: int) -> Scene:
    """Image i of a `Batch` as lenstronomy model lists and keyword lists (lenstronomy 1.12 or newer).

    The point-spread function is GAUSSIAN where the recipe's is one Gaussian, PIXEL with the same kernel otherwise.
    """
    if not -len(batch) <= i < len(batch):
        raise InputError(f"no image {i} in a batch of {len(batch)}")
    recipe = batch.recipe
    value = {name: float(column[i]) for name, column in batch.params.items()}
    lens = {"theta_E": value["lens_theta_E"]}
    lens |= {name: value[f"lens_{name}"] for name in ("e1", "e2", "center_x", "center_y")}
    if recipe.lens.profile == "epl":
        lens["gamma"] = value["gamma"]
    models, keywords = (
        [recipe.lens.profile.upper(), "SHEAR"],
        [lens, {name: value[name] for name in ("gamma1", "gamma2")}],
    )
    for x, y, theta_E in zip(*(batch.substructure[name][i].tolist() for name in ("x", "y", "theta_E")), strict=True):
        if theta_E > 0:
            models.append("POINT_MASS")
            keywords.append({"theta_E": theta_E, "center_x": x, "center_y": y})
    light = [_sersic(value, "source_", own="")]
    lens_light = [_sersic(value, "lens_light_", own="lens_light_")] if "lens_light_amp" in value else []
    pixels, scale = recipe.instrument.pixels, recipe.instrument.pixel_scale
    corner = -(pixels - 1) / 2 * scale
    grid = {
        "nx": pixels,
        "ny": pixels,
        "transform_pix2angle": [[scale, 0.0], [0.0, scale]],
        "ra_at_xy_0": corner,
        "dec_at_xy_0": corner,
    }
    sersics = ["SERSIC_ELLIPSE"]
    psf = _psf(recipe.instrument)
    return Scene(models, keywords, sersics, light, grid, psf, sersics * len(lens_light), lens_light)


def _sersic(value: dict[str, float], prefix: str, own: str) -> dict[str, float]:
    light = {name: value[own + name] for name in ("amp", "R_sersic", "n_sersic")}
    return light | {name: value[prefix + name] for name in ("e1", "e2", "center_x", "center_y")}


def _psf(instrument) -> dict[str, Any]:
    psf, scale = instrument.psf, instrument.pixel_scale
    if psf.gaussians is not None and len(psf.gaussians) == 1:
        return {
            "psf_type": "GAUSSIAN",
            "fwhm": psf.gaussians[0].fwhm,
            "pixel_size": scale,
            "truncation": psf.truncation,
        }
    return {"psf_type": "PIXEL", "kernel_point_source": psf.kernel(scale)}


def lenstronomy_image(scene: Scene) -> np.ndarray:
    """The noise-free image [h, w] that lenstronomy itself draws of a scene."""
    return lenstronomy_model(scene).image(scene.kwargs_lens, scene.kwargs_light, scene.kwargs_lens_light)


def lenstronomy_model(scene: Scene):
    """lenstronomy's ImageModel for a scene and all others of the same model lists, pixels and point-spread function."""
    from lenstronomy.Data.pixel_grid import PixelGrid
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    grid = scene.kwargs_pixel | {"transform_pix2angle": np.array(scene.kwargs_pixel["transform_pix2angle"])}
    return ImageModel(
        PixelGrid(**grid),
        PSF(**scene.kwargs_psf),
        lens_model_class=LensModel(scene.lens_model_list),
        source_model_class=LightModel(scene.light_model_list),
        lens_light_model_class=LightModel(scene.lens_light_model_list),
        kwargs_numerics={"supersampling_factor": 1},
    )


def autolens_scene(batch, i: int):
    """Image i of a `Batch` as a PyAutoLens `Tracer` (2026.7): see `autolens_tracer`."""
    return autolens_tracer(lenstronomy_scene(batch, i))


def autolens_tracer(scene: Scene):
    """A scene of SIE, EPL, SHEAR and POINT_MASS lenses and SERSIC_ELLIPSE light as a PyAutoLens `Tracer`.

    PyAutoLens has (y, x) pairs, Einstein radii on the major axis and the Sersic constant of Ciotti & Bertin (1999);
    the translation is exact. Intensities are flux an arcsec^2. Deflections are reduced ones, so that the redshifts
    (0.5 and 1) only name the planes. Raises InputError for any other model.
    """
    al = _autolens()
    masses = {}
    for k, (model, given) in enumerate(zip(scene.lens_model_list, scene.kwargs_lens, strict=True)):
        masses[f"mass_{k}"] = _autolens_mass(al, model, given)
    lens_light = _autolens_light(al, scene.lens_light_model_list, scene.kwargs_lens_light)
    source_light = _autolens_light(al, scene.light_model_list, scene.kwargs_light)
    return al.Tracer([al.Galaxy(redshift=0.5, **masses, **lens_light), al.Galaxy(redshift=1.0, **source_light)])


def _autolens():
    """PyAutoLens, which would otherwise refuse to start outside a workspace folder of its own version."""
    os.environ.setdefault("PYAUTO_SKIP_WORKSPACE_VERSION_CHECK", "1")
    import autolens

    return autolens


def _autolens_mass(al, model: str, given: dict[str, float]):
    if model == "SHEAR":
        return al.mp.ExternalShear(gamma_1=given["gamma1"], gamma_2=given["gamma2"])
    centre = given["center_y"], given["center_x"]
    if model == "POINT_MASS":
        return al.mp.PointMass(centre=centre, einstein_radius=given["theta_E"])
    if model not in ("SIE", "EPL"):
        raise InputError(f"no translation of the lens model {model} to PyAutoLens: use SIE, EPL, SHEAR or POINT_MASS")
    size = np.hypot(given["e1"], given["e2"])
    q = (1 - size) / (1 + size)
    # equal convergence: (2 - t) / 2 (theta_E / sqrt(q))^t is (2 - t) / (1 + q) einstein_radius^t
    t = 1.0 if model == "SIE" else given["gamma"] - 1
    keywords = {"centre": centre, "ell_comps": (given["e2"], given["e1"])}
    keywords["einstein_radius"] = given["theta_E"] / np.sqrt(q) * ((1 + q) / 2) ** (1 / t)
    if model == "SIE":
        return al.mp.Isothermal(**keywords)
    return al.mp.PowerLaw(**keywords, slope=given["gamma"])


def _autolens_light(al, models: list[str], keywords: list[dict[str, float]]) -> dict[str, Any]:
    lights = {}
    for k, (model, given) in enumerate(zip(models, keywords, strict=True)):
        if model != "SERSIC_ELLIPSE":
            raise InputError(f"no translation of the light model {model} to PyAutoLens: use SERSIC_ELLIPSE")
        n = given["n_sersic"]
        # the same profile with another constant b: exp(-b (R / R_sersic)^(1/n) + b)
        ours, theirs = 1.9992 * n - 0.3271, al.lp.Sersic(sersic_index=n).sersic_constant
        lights[f"light_{k}"] = al.lp.Sersic(
            centre=(given["center_y"], given["center_x"]),
            ell_comps=(given["e2"], given["e1"]),
            intensity=given["amp"] * np.exp(ours - theirs),
            effective_radius=given["R_sersic"] * (theirs / ours) ** n,
            sersic_index=n,
        )
    return lights


def autolens_image(scene: Scene, kernel: np.ndarray) -> np.ndarray:
    """The noise-free image [h, w], rows along +y, that PyAutoLens itself draws of a scene, one ray a pixel.

    `kernel` [k, k] is the point-spread function (see `PSF.kernel`); PyAutoLens draws the sky beyond the edge for it.
    """
    al = _autolens()
    pixels, scale = scene.kwargs_pixel["nx"], scene.kwargs_pixel["transform_pix2angle"][0][0]
    grid = al.Grid2D.uniform(shape_native=(pixels, pixels), pixel_scales=scale, over_sample_size=1)
    psf = al.Convolver(kernel=al.Array2D.no_mask(np.asarray(kernel), pixel_scales=scale))
    image = autolens_tracer(scene).padded_image_2d_from(grid=grid, psf_shape_2d=kernel.shape)
    with warnings.catch_warnings():
        # it warns of the dark beyond the padding, which does not reach the image
        warnings.simplefilter("ignore")
        blurred = psf.convolved_image_via_real_space_from(image=image)
    edge = len(kernel) // 2
    inner = slice(edge, edge + pixels)
    # its first row is the one of largest y
    return np.array(blurred.native.array)[inner, inner][::-1] * scale**2
