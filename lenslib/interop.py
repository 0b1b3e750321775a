"""The same scene as other simulators' objects."""

from typing import Any, NamedTuple

from lenslib.errors import InputError


class Scene(NamedTuple):
    """One lens in lenstronomy's words: pass the lists to LensModel, LightModel, PixelGrid and PSF."""

    lens_model_list: list[str]
    kwargs_lens: list[dict[str, float]]
    light_model_list: list[str]
    kwargs_light: list[dict[str, float]]
    kwargs_pixel: dict[str, Any]
    kwargs_psf: dict[str, Any]


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
    light = {name: value[name] for name in ("amp", "R_sersic", "n_sersic")}
    light |= {name: value[f"source_{name}"] for name in ("e1", "e2", "center_x", "center_y")}
    pixels, scale = recipe.instrument.pixels, recipe.instrument.pixel_scale
    corner = -(pixels - 1) / 2 * scale
    grid = {
        "nx": pixels,
        "ny": pixels,
        "transform_pix2angle": [[scale, 0.0], [0.0, scale]],
        "ra_at_xy_0": corner,
        "dec_at_xy_0": corner,
    }
    return Scene(models, keywords, ["SERSIC_ELLIPSE"], [light], grid, _psf(recipe.instrument))


def _psf(instrument) -> dict[str, Any]:
    psf, scale = instrument.psf, instrument.pixel_scale
    if len(psf.gaussians) == 1:
        return {
            "psf_type": "GAUSSIAN",
            "fwhm": psf.gaussians[0].fwhm,
            "pixel_size": scale,
            "truncation": psf.truncation,
        }
    return {"psf_type": "PIXEL", "kernel_point_source": psf.kernel(scale)}


def lenstronomy_image(scene: Scene):
    """The noise-free image [h, w] that lenstronomy itself draws of a scene."""
    import numpy as np
    from lenstronomy.Data.pixel_grid import PixelGrid
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    grid = scene.kwargs_pixel | {"transform_pix2angle": np.array(scene.kwargs_pixel["transform_pix2angle"])}
    model = ImageModel(
        PixelGrid(**grid),
        PSF(**scene.kwargs_psf),
        lens_model_class=LensModel(scene.lens_model_list),
        source_model_class=LightModel(scene.light_model_list),
        kwargs_numerics={"supersampling_factor": 1},
    )
    return model.image(scene.kwargs_lens, scene.kwargs_light)
