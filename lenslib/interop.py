"""The same scene as other simulators' objects.

A `Scene` is one in lenstronomy's words; other simulators' objects are translated from it.
"""

import contextlib
import io
import os
import warnings
from typing import Any, NamedTuple

import numpy as np

from lenslib.errors import InputError
from lenslib.optics import SOFTENING
from lenslib.substructure import string_pieces

# point masses that stand for a string
STRING_PIECES = 1000


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


def lenstronomy_scene(batch, i: int, channel: int = 0) -> Scene:
    """Image i of a `Batch`, in one of its channels, as lenstronomy model lists and keyword lists (lenstronomy 1.12 or
    newer).

    The point-spread function is GAUSSIAN where the recipe's is one Gaussian, PIXEL with the same kernel otherwise. A
    string, which lenstronomy has not, becomes `STRING_PIECES` point masses.
    """
    if not -len(batch) <= i < len(batch):
        raise InputError(f"no image {i} in a batch of {len(batch)}")
    recipe = batch.recipe
    if recipe.kind == "roulette":
        raise InputError(f"lenstronomy has no words for the images of {recipe.name}: see lenslib.cosmosim instead")
    if not 0 <= channel < recipe.channels:
        raise InputError(f"no channel {channel} in images of {recipe.channels}")
    value = {name: float(column[i]) for name, column in batch.params.items()}
    models, keywords = _smooth_lenses(recipe, value)
    population = recipe.substructure.populations.get(recipe.classes[int(batch.labels[i])])
    if population is not None:
        pieces = {name: column[i].tolist() for name, column in batch.substructure.items()}
        for k, theta_E in enumerate(pieces["theta_E"]):
            if theta_E > 0:
                piece = {name: column[k] for name, column in pieces.items()}
                named, given = _substructure(population.profile, piece)
                models, keywords = models + named, keywords + given
    band = list(recipe.bands or [""])[channel]
    light = _light(recipe, value, "source", "", band, channel)
    lens_light = _light(recipe, value, "lens_light", "lens_light_", band, channel) if recipe.lens_light else ([], [])
    pixels, scale = recipe.instrument.pixels, recipe.instrument.pixel_scale
    corner = -(pixels - 1) / 2 * scale
    grid = {
        "nx": pixels,
        "ny": pixels,
        "transform_pix2angle": [[scale, 0.0], [0.0, scale]],
        "ra_at_xy_0": corner,
        "dec_at_xy_0": corner,
    }
    return Scene(models, keywords, *light, grid, _psf(recipe.psfs()[channel], scale), *lens_light)


def _smooth_lenses(recipe, value: dict[str, float]) -> tuple[list[str], list[dict[str, float]]]:
    """The main lens, shear and companions."""
    lens = {"theta_E": value["lens_theta_E"]}
    lens |= {name: value[f"lens_{name}"] for name in ("e1", "e2", "center_x", "center_y")}
    if recipe.lens.profile == "epl":
        lens["gamma"] = value["gamma"]
    models = [recipe.lens.profile.upper(), "SHEAR"]
    keywords = [lens, {name: value[name] for name in ("gamma1", "gamma2")}]
    for name, group in recipe.companions.items():
        own = ("theta_E", "center_x", "center_y", *(("e1", "e2") if group.profile == "sie" else ()))
        models += [{"sie": "SIE", "point": "POINT_MASS"}[group.profile]] * group.count
        keywords += [{key: value[f"{name}_{k}_{key}"] for key in own} for k in range(group.count)]
    return models, keywords


def _substructure(profile: str, piece: dict[str, float]) -> tuple[list[str], list[dict[str, float]]]:
    """One piece of dark substructure as lens models and their keywords."""
    center = {"center_x": piece["x"], "center_y": piece["y"]}
    if profile == "string":
        string = {name: np.array([[value]]) for name, value in (piece | {"mass": piece["theta_E"] ** 2}).items()}
        pieces = zip(*(column[0] for column in string_pieces(string, STRING_PIECES)), strict=True)
        keywords = [{"theta_E": mass**0.5, "center_x": x, "center_y": y} for x, y, mass in pieces]
        return ["POINT_MASS"] * STRING_PIECES, keywords
    if profile == "pseudo_jaffe":
        # lenstronomy's has a core, which must be there: far below a pixel
        core = 1e-4 * piece["Rs"]
        density = piece["theta_E"] ** 2 / (2 * core * piece["Rs"])
        return ["PJAFFE"], [{"sigma0": density, "Ra": core, "Rs": piece["Rs"]} | center]
    if profile == "tnfw":
        return ["TNFW"], [_tnfw(piece) | center]
    return ["POINT_MASS"], [{"theta_E": piece["theta_E"]} | center]


def _tnfw(piece: dict[str, float]) -> dict[str, float]:
    """Of the NFW profile that is cut, the deflection at its scale radius (Baltz et al. 2009, eq. A.4, has its mass)."""
    import torch
    from caustics.lenses import func

    tau = torch.tensor(piece["r_trunc"] / piece["Rs"], dtype=torch.float64)
    scale_mass = float(func.M0_totmass_tnfw(piece["theta_E"] ** 2, tau))
    return {"Rs": piece["Rs"], "r_trunc": piece["r_trunc"], "alpha_Rs": scale_mass / piece["Rs"] * (1 - np.log(2))}


def _light(recipe, value: dict[str, float], galaxy: str, own: str, band: str, channel: int):
    """Light model and keywords of a galaxy in one band, each in a list."""
    prefix, profile = f"{galaxy}_", getattr(recipe, galaxy).profile
    light = {"amp": value[f"{own}amp"] * 10 ** (-0.4 * value.get(f"{prefix}colour_{band}", 0.0))}
    light |= {name: value[prefix + name] for name in ("center_x", "center_y")}
    if profile == "picture":
        picture = recipe.source.in_bands(recipe.channels)[int(value["source_picture"]), channel]
        turn = {"phi_G": value["source_angle"], "scale": recipe.source.pixel_scale}
        return ["INTERPOL"], [light | turn | {"image": picture.double().numpy()}]
    light |= {name: value[own + name] for name in ("R_sersic", "n_sersic")}
    keywords = [light | {name: value[prefix + name] for name in ("e1", "e2")}]
    clumps = recipe.source.clumps if galaxy == "source" else None
    for k in range(clumps.count if clumps else 0):
        clump = {name: value[f"clump{k}_{name}"] for name in ("R_sersic", "center_x", "center_y")}
        keywords.append(clump | {"n_sersic": 1.0, "e1": 0.0, "e2": 0.0, "amp": value[f"clump{k}_amp"] * light["amp"]})
    return ["SERSIC_ELLIPSE"] * len(keywords), keywords


def _psf(psf, scale: float) -> dict[str, Any]:
    if psf.gaussians is not None and len(psf.gaussians) == 1:
        fwhm = psf.gaussians[0].fwhm
        return {"psf_type": "GAUSSIAN", "fwhm": fwhm, "pixel_size": scale, "truncation": psf.truncation}
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
    with warnings.catch_warnings():
        # an Airy disc made of its eigenvectors dips below zero by a millionth of its peak
        warnings.filterwarnings("ignore", message=".*negative element")
        psf = PSF(**scene.kwargs_psf)

    def light(names: list[str]):
        # lenstronomy would flatten the innermost 1e-4 arcsec of a profile, where those of n above 1 have a cusp
        kept = [{"smoothing": SOFTENING} if name == "SERSIC_ELLIPSE" else None for name in names]
        return LightModel(names, profile_kwargs_list=kept)

    return ImageModel(
        PixelGrid(**grid),
        psf,
        lens_model_class=LensModel(scene.lens_model_list),
        source_model_class=light(scene.light_model_list),
        lens_light_model_class=light(scene.lens_light_model_list),
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
    # it says, in a box, that it would rather have a newer Python
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
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
