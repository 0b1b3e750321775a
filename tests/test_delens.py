"""The lens undone: sources come back as they were drawn."""

import pytest
import torch

from lenslib import load_recipe, simulate
from lenslib.delens import true_source
from lenslib.errors import InputError
from lenslib.inference import delens


@pytest.mark.parametrize("name", ["roulette_sis", "raytrace_sis", "raytrace_sie"])
def test_the_source_comes_back_without_its_lens(name):
    recipe = load_recipe(name, {"instrument.lookup": "exact"})
    batch = recipe.sample(8, seed=4)
    width = 80.0
    found, truth = delens(recipe, batch.images, batch.params, width, 40), true_source(recipe, batch.params, width, 40)
    seen = found.isfinite()
    assert seen.float().mean() > 0.9
    # a pixel of the source is two wide, over which its brightness is not constant
    assert float((found - truth)[seen].abs().max()) < 12
    assert float((found - truth)[seen].square().mean().sqrt()) < 2


def test_a_smooth_lens_of_another_recipe_is_undone(small_matched):
    recipe = small_matched({"substructure.mass_fraction": 0.0, "classes": ["no_sub"], "substructure.populations": {}})
    batch = recipe.sample(8, seed=4, noise=False)
    found, truth = delens(recipe, batch.images, batch.params, 1.2, 12), true_source(recipe, batch.params, 1.2, 12)
    seen = found.isfinite()
    # blurred by the telescope, but in the right place and of the right brightness
    for one, other, there in zip(found, truth, seen, strict=True):
        both = torch.stack([one[there], other[there]])
        assert float(torch.corrcoef(both)[0, 1]) > 0.85
        assert float(both[0].sum() / both[1].sum()) == pytest.approx(1, abs=0.15)


def test_the_light_of_the_lens_is_no_part_of_the_source():
    recipe = load_recipe("model_a", {"instrument.pixels": 40, "instrument.pixel_scale": 0.1})
    params = recipe.sample(6, seed=4, noise=False).params
    dark = params | {"lens_light_amp": torch.zeros(6)}
    images, without = (simulate.render(recipe, part) for part in (params, dark))
    # half of the light and more is the lens's
    assert (images.sum((1, 2, 3)) > 1.5 * without.sum((1, 2, 3))).any()
    found, expected = delens(recipe, images, params, 1.2, 12), delens(recipe, without, dark, 1.2, 12)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(images.amax()) / 0.1**2, equal_nan=True)
    with pytest.raises(InputError, match="lack lens_light_amp"):
        delens(recipe, images, {name: value for name, value in params.items() if name != "lens_light_amp"}, 1.2, 12)


def test_nothing_is_seen_where_no_ray_ends():
    recipe = load_recipe("roulette_sis", {"instrument.lookup": "exact"})
    batch = recipe.sample(1, seed=4)
    assert not delens(recipe, batch.images, batch.params, 4000.0, 64)[0, 0, 0].isfinite().any()


@pytest.mark.parametrize(("width", "pixels"), [(0.0, 20), (-1.0, 20), (50.0, 1)])
def test_a_source_of_no_size(width, pixels):
    recipe = load_recipe("roulette_sis")
    batch = recipe.sample(1, seed=4)
    with pytest.raises(InputError, match="a source needs a width above 0"):
        delens(recipe, batch.images, batch.params, width, pixels)
