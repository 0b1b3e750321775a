"""Other simulators draw the scenes that they are handed as this library does."""

import numpy as np
import pytest

from lenslib.errors import InputError
from lenslib.interop import autolens_image, autolens_scene, autolens_tracer, lenstronomy_image
from lenslib.recipe import load_recipe
from lenslib.refine import smooth
from lenslib.sources import sersic_flux

LENS_LIGHT = {
    "amp": 5.0,
    "R_sersic": 0.6,
    "n_sersic": 2.5,
    "ellipticity": {"e1": 0.1, "e2": -0.05},
    "center": {"x": 0.05, "y": -0.1},
}


def _assert_alike(batch, i, draw, edge=0):
    """Within a thousandth of the peak, `edge` pixels off the border."""
    inner = slice(edge, batch.images.shape[-1] - edge)
    ours = batch.images[i, 0, inner, inner].numpy()
    np.testing.assert_allclose(draw(batch.to_lenstronomy(i))[inner, inner], ours, rtol=0, atol=1e-3 * ours.max())


def _half(recipe) -> int:
    """Pixels from the middle of the kernel to its edge."""
    return len(recipe.instrument.psf.kernel(recipe.instrument.pixel_scale)) // 2


def _autolens(recipe):
    kernel = recipe.instrument.psf.kernel(recipe.instrument.pixel_scale)
    return lambda scene: autolens_image(scene, kernel)


@pytest.mark.parametrize(
    ("name", "pixels", "scenes"),
    [("deeplense_1", 150, 3), ("model_a", 60, 1), ("model_b", 60, 1), ("unsupervised_a", 60, 1)],
)
def test_noise_free_images_are_pyautolenss(name, pixels, scenes):
    # PyAutoLens takes seconds a scene: of most recipes, few of a small part of the sky will do
    recipe = load_recipe(name, {"instrument.pixels": pixels})
    batch = recipe.sample(96, seed=321, noise=False)
    for label in range(3):
        for i in (batch.labels == label).nonzero()[:scenes, 0].tolist():
            # to the very border: PyAutoLens draws the sky beyond it for the kernel's wings
            _assert_alike(batch, i, _autolens(recipe))


def test_power_laws_and_light_of_the_lens_are_pyautolenss_and_lenstronomys():
    overrides = {"instrument.pixels": 80, "classes": ["no_sub"], "substructure.populations": {}}
    overrides["lens_light"] = LENS_LIGHT
    recipe = load_recipe("matched_hst", overrides)
    batch = recipe.sample(3, seed=1, noise=False)
    # each takes the sky beyond the edge for something else, and this kernel has wings
    edge = _half(recipe)
    assert edge < 30
    for i in range(3):
        assert batch.to_lenstronomy(i).lens_model_list[0] == "EPL"
        _assert_alike(batch, i, _autolens(recipe), edge)
        _assert_alike(batch, i, lenstronomy_image, edge)


def test_a_tracer_has_the_lens_and_the_source_in_two_planes(small_recipe):
    batch = small_recipe.sample(96, noise=False)
    i = int((batch.labels == 1).nonzero()[0, 0])
    lens, source = autolens_scene(batch, i).galaxies
    assert lens.redshift < source.redshift
    names = sorted(
        type(profile).__name__ for profile in vars(lens).values() if hasattr(profile, "deflections_yx_2d_from")
    )
    assert names == ["ExternalShear", "Isothermal", *["PointMass"] * 25]


def test_what_has_no_translation_is_named(small_recipe):
    batch = small_recipe.sample(1, noise=False)
    scene = batch.to_lenstronomy(0)
    lens = {"theta_E": 1.0, "center_x": 0.0, "center_y": 0.0}
    with pytest.raises(InputError, match="CHAMELEON"):
        autolens_tracer(scene._replace(lens_model_list=["CHAMELEON"], kwargs_lens=[lens]))
    with pytest.raises(InputError, match="HERNQUIST"):
        autolens_tracer(scene._replace(light_model_list=["HERNQUIST"]))
    with pytest.raises(InputError, match="no channel 1 in images of 1"):
        batch.to_lenstronomy(0, channel=1)
    with pytest.raises(InputError, match="no image 1"):
        autolens_scene(batch, 1)


def test_clumps_are_lenstronomys_and_hold_the_share_of_light_that_they_say():
    clumps = {"count": 3, "share": {"uniform": [0.02, 0.2]}, "R_sersic": 0.05, "distance": {"uniform": [0.0, 1.5]}}
    overrides = {"instrument.pixels": 80, "classes": ["no_sub"], "substructure.populations": {}}
    overrides |= {"instrument.psf": {"gaussians": [{"fwhm": 0.12}]}, "source.clumps": clumps}
    batch = load_recipe("matched_hst", overrides).sample(3, seed=1, noise=False)
    for i in range(3):
        assert batch.to_lenstronomy(i).light_model_list == ["SERSIC_ELLIPSE"] * 4
        _assert_alike(batch, i, lenstronomy_image)
    whole = sersic_flux(batch.params["R_sersic"].numpy(), batch.params["n_sersic"].numpy())
    share = batch.params["clump1_amp"].numpy() * sersic_flux(0.05, 1.0) / whole
    assert ((share > 0.0199) & (share < 0.2001)).all()
    # the smooth fit knows nothing of them
    assert smooth(batch.recipe).source.clumps is None


@pytest.mark.parametrize("name", ["model_a", "model_b"])
def test_galaxies_are_as_bright_as_the_scripts_of_the_paper_draw_them(name, monkeypatch):
    """PyAutoLens's intensity, 1.2 for the lens and 0.7 to 0.9 for the source there, is that of a pixel of any size."""
    recipe = load_recipe(name)
    area = recipe.instrument.pixel_scale**2
    assert recipe.lens_light.amp.value * area == pytest.approx(1.2)
    assert [value * area for value in recipe.source.amp.uniform] == pytest.approx([0.7, 0.9])
    # in the middle of an image they are far above the sky that is added
    monkeypatch.setattr("lenslib.recipe.PER_CLASS", 3)
    batch = load_recipe(name, {"instrument.pixels": 30}).sample(8, noise=False)
    assert float((batch.images.amax((1, 2, 3)) / batch.params["background_rms"]).min()) > 50
