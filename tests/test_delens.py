"""The lens undone: sources come back as they were drawn."""

import pytest
import torch

from lenslib import load_recipe, simulate
from lenslib.delens import likeness, true_source
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


def pictures():
    """Two smooth pictures, and the same with noise of two strengths."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.meshgrid(torch.linspace(-2, 2, 40), torch.linspace(-2, 2, 40), indexing="xy")
    truth = torch.stack([255 * torch.exp(-((x - a) ** 2) - 2 * y**2) for a in (0.0, 0.5)])[:, None]
    return truth, truth + torch.tensor([2.0, 20.0])[:, None, None, None] * torch.randn(truth.shape, generator=rng)


def test_likeness_is_that_of_scikit_image_where_all_is_seen():
    metrics = pytest.importorskip("skimage.metrics")
    truth, found = pictures()
    for one, other, ratio, similarity in zip(truth, found, *likeness(found, truth, 255.0), strict=True):
        one, other = one[0].double().numpy(), other[0].double().numpy()
        assert float(ratio) == pytest.approx(metrics.peak_signal_noise_ratio(one, other, data_range=255), abs=1e-3)
        said = metrics.structural_similarity(
            one, other, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(similarity) == pytest.approx(said, abs=1e-3)


def test_what_is_not_seen_counts_neither_for_nor_against_a_likeness():
    truth, found = pictures()
    found[..., :12, :] = torch.nan
    cut = likeness(found, truth, 255.0)
    # the same as of what is left alone
    for part, alone in zip(cut, likeness(found[..., 12:, :], truth[..., 12:, :], 255.0), strict=True):
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4)
    # whatever is true there
    truth[..., :12, :] = 77.0
    for part, again in zip(cut, likeness(found, truth, 255.0), strict=True):
        torch.testing.assert_close(part, again)
    assert likeness(found * torch.nan, truth, 255.0)[1].isnan().all()


def test_nothing_is_seen_where_no_ray_ends():
    recipe = load_recipe("roulette_sis", {"instrument.lookup": "exact"})
    batch = recipe.sample(1, seed=4)
    assert not delens(recipe, batch.images, batch.params, 4000.0, 64)[0, 0, 0].isfinite().any()


@pytest.mark.parametrize(("width", "pixels"), [(0.0, 20), (-1.0, 20), (50.0, 1), (50.0, 20.5)])
def test_a_source_of_no_size(width, pixels):
    recipe = load_recipe("roulette_sis")
    batch = recipe.sample(1, seed=4)
    with pytest.raises(InputError, match="a source needs a width above 0"):
        delens(recipe, batch.images, batch.params, width, pixels)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"x": torch.tensor([1.0, torch.nan])}, "x is not a finite number"),
        ({"einstein_radius": torch.ones(1)}, "einstein_radius has shape"),
        ({"y": None}, "parameters lack y"),
    ],
)
def test_lenses_that_cannot_be_undone(spoil, said):
    recipe = load_recipe("roulette_sis")
    batch = recipe.sample(2, seed=4)
    params = {name: value for name, value in (batch.params | spoil).items() if value is not None}
    with pytest.raises(InputError, match=said):
        delens(recipe, batch.images, params, 50.0, 20)
