"""The lens undone: sources come back as they were drawn."""

import pytest
import torch

from lenslib import load_recipe
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
