"""The blind ceiling: how well anybody could tell substructure from none who does not know where it lies.

found = blind_ceiling(recipe, count=64, draws=16384)
found["any_least_auc"], found["any_most_auc"]      # what nobody exceeds lies between these two

The oracle of `lenslib.ceiling` is told the template of each lens. This observer is told the noise, the smooth lens and
the source, and how the recipe draws substructure, but not what was drawn. By the lemma of Neyman & Pearson (1933, Phil.
Trans. R. Soc. A 231, 289) no test does better than the likelihood ratio, averaged over all that could have been drawn,

    Lambda_k(x) = < exp(x T - |T|^2 / 2) >  over the templates T of class k,

x being what the smooth image leaves, over the noise. Templates are of first order in the mass: T = -B (grad S alpha) /
sigma, of a source S, a deflection alpha and the blurring B, less what small changes of the smooth lens and source can
imitate. So a template is a sum over cells of the sky of the mass there, times what a unit mass there does. A subhalo
counts to the nearest cell, and a string is spread over those that it crosses.

Like the oracle, this observer knows lens and source but for small changes, of whatever size: who knows how the recipe
draws these too could gain a little more.

The mean is taken over finitely many draws, and bounds it from both sides. *Least*: the true template is none of them;
the mean is some test, and no test beats the likelihood ratio. *Most*: the true template stands in for one of them. That
is the likelihood ratio of one who is told a set of templates that holds the true one, and who is told more does no
worse. Both tend to the blind ceiling as draws are added, the sooner the fewer numbers describe what is drawn.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.special import logsumexp
from torch import Tensor

from lenslib.ceiling import templates as rendered_templates
from lenslib.ceiling import varied_names
from lenslib.errors import InputError
from lenslib.instruments import blur, convolve_dense
from lenslib.optics import pixel_grid
from lenslib.recipe import Recipe
from lenslib.refine import SmoothModel, smooth
from lenslib.resampling import RESAMPLES, Resampled, interval, once, roc
from lenslib.simulate import trace
from lenslib.sources import sersic
from lenslib.substructure import string_pieces

# of substructure that a sum over cells can stand for
PROFILES = ("point", "string")
# a side of a cell, in pixels
_CELL = 2
# equal pieces of a string, which are spread over the cells
_PIECES = 40
# directions of the image in which what masses do is told apart
_MODES = 384
# of its noise, the light of a pixel that is looked at: others show next to nothing
_LIT = 0.1
# of the singular values of what a smooth fit takes up
_ROUNDING = 1e-6
# cells whose responses are blurred at once
_AT_ONCE = 500


class Cells:
    """Cells of the sky that cover an image, and what masses in them do to it."""

    def __init__(self, recipe: Recipe):
        instrument = recipe.instrument
        self.recipe, self.side = recipe, instrument.pixels // _CELL
        self.pitch, self.scale = _CELL * instrument.pixel_scale, instrument.pixel_scale
        self.x, self.y = pixel_grid(instrument.pixels, self.scale)
        self.middles = torch.stack([axis.flatten() for axis in pixel_grid(self.side, self.pitch)])

    def responses(self, params: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """[cells, pixels]: the change of one lens's image by a unit mass (arcsec^2) in each cell, to first order and
        over the noise [pixels]. `params` are of that lens, [1] each."""
        rays = [ray.clone().requires_grad_() for ray in trace(self.recipe, params, self.x, self.y)]
        with torch.enable_grad():
            slopes = torch.autograd.grad(sersic(params, *rays).sum(), rays)
        return torch.cat([self._moved(cells, *slopes) for cells in self.middles.T.split(_AT_ONCE)]) / noise

    def _moved(self, cells: Tensor, slope_x: Tensor, slope_y: Tensor) -> Tensor:
        dx, dy = self.x - cells[:, :1, None], self.y - cells[:, 1:, None]
        # a mass at x bends light towards itself: the source is seen where the ray falls short by that much
        change = -(slope_x * dx + slope_y * dy) / (dx**2 + dy**2) * self.scale**2
        return blur(change, self.recipe.instrument.psf, self.scale, by=convolve_dense).flatten(1)

    def modes(self, params: Mapping[str, Tensor], varied: Iterable[str]) -> tuple[np.ndarray, np.ndarray, float]:
        """[cells, modes]: what a unit mass in each cell leaves of one lens's image when small changes of the `varied`
        parameters have taken up what they can, along the directions that show most of it; these directions, [pixels,
        modes]; and their share of it."""
        model = SmoothModel(self.recipe)
        numbers = model.pack(dict(params))
        image = model.images(numbers).view(1, 1, *self.x.shape)
        noise = self.recipe.instrument.noise.deviation(image, params).flatten()
        slopes = model.slopes(numbers)[0][[name in varied for name in model.names]] / noise
        lit, responses = image.flatten() > _LIT * noise, self.responses(params, noise)
        left = without(slopes[:, lit], responses[:, lit])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, found = torch.svd_lowrank(left, q=min(_MODES, *left.shape), niter=1)
        directions = found.new_zeros(len(lit), found.shape[1])
        directions[lit] = found
        modes, all_of_it = left @ found, without(slopes, responses).square().sum()
        return modes.numpy(), directions.numpy(), float(modes.square().sum() / all_of_it)

    def shares(self, pieces: Mapping[str, np.ndarray]) -> csr_array:
        """Mass [draws, cells] of a population's pieces, see `lenslib.substructure`."""
        spread = "length" in pieces
        x, y, mass = string_pieces(pieces, _PIECES) if spread else (pieces[name] for name in ("x", "y", "mass"))
        places = [np.clip(axis / self.pitch + (self.side - 1) / 2, 0, self.side - 1) for axis in (x, y)]
        rows = np.broadcast_to(np.arange(len(mass))[:, None], mass.shape)
        if not spread:
            parts = [(*np.rint(places).astype(int), mass)]
        else:
            low = [np.minimum(place.astype(int), self.side - 2) for place in places]
            part = [place - first for place, first in zip(places, low, strict=True)]
            weights = [(1 - share, share) for share in part]
            corners = [(i, j) for i in (0, 1) for j in (0, 1)]
            parts = [(low[0] + i, low[1] + j, mass * weights[0][i] * weights[1][j]) for i, j in corners]
        cells, held = (
            np.concatenate(part, 1) for part in zip(*((j * self.side + i, m) for i, j, m in parts), strict=True)
        )
        rows, there = np.tile(rows, len(parts)), held > 0
        return csr_array((held[there].astype(np.float32), (rows[there], cells[there])), (len(mass), self.side**2))


def without(slopes: Tensor, images: Tensor) -> Tensor:
    """Images [n, pixels] less the best sum of `slopes` [k, pixels], of each."""
    _, values, directions = torch.linalg.svd(slopes / slopes.norm(dim=1, keepdim=True), full_matrices=False)
    directions = directions[values > _ROUNDING * values[0]]
    return images - (images @ directions.T) @ directions


def likelihoods(
    templates: Sequence[np.ndarray], truths: Sequence[np.ndarray], noise: np.ndarray
) -> dict[str, np.ndarray]:
    """Logarithms of the likelihood ratios of c classes against none, of images of none and of every class in one lens.

    templates: of each class, those drawn, [draws, modes]. truths: of each class, those in its images, [images, modes].
    noise: [1 + c, images, modes], of deviation one. Returns `least` and `most`, and `known`, of one who is told the
    truths of every class for each image, each [1 + c, images, c].
    """
    images = noise + np.stack([np.zeros_like(truths[0]), *truths])
    found = {name: np.empty((*images.shape[:2], len(templates))) for name in ("least", "most", "known")}
    for k, (drawn, true) in enumerate(zip(templates, truths, strict=True)):
        ratios = images @ drawn.T - (drawn**2).sum(1) / 2
        own = (images * true).sum(-1) - (true**2).sum(-1) / 2
        found["least"][..., k] = found["most"][..., k] = logsumexp(ratios, axis=-1) - np.log(len(drawn))
        found["most"][1 + k, :, k] = np.logaddexp(logsumexp(ratios[1 + k, :, 1:], axis=-1), own[1 + k]) - np.log(
            len(drawn)
        )
        found["known"][..., k] = own
    return found


def blind_ceiling(
    recipe: Recipe, count: int, draws: int = 16384, images: int = 16, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float] | int | float]:
    """Bounds of the blind ceiling of a recipe, each with the 2.5 and 97.5 percentiles of a bootstrap over its lenses.

    Of `count` lenses, with `images` images of every class each: `<name>_least_auc`, `<name>_most_auc` and
    `<name>_known_auc`, of one who is told the templates, for any substructure and each class of it against none.
    `<name>_quarter_least_auc` and so on are from a quarter of the draws: they say whether more draws would help.
    `<name>_rendered_auc`: of the test of `least` on what a fit leaves of images that the recipe renders, of `images`
    noises each: no first order in these images, so that an AUC is found that can be reached. `<class>_chi_square` and
    `<class>_rendered_chi_square`: what substructure leaves to first order and as rendered, medians over lenses.
    `kept`: the smallest share of the responses' power in the directions of the image that are looked at.
    InputError for fewer than two lenses or four draws, and for a recipe without noise, without classes with and without
    substructure, with lenses that differ by class, or with substructure other than points and strings.
    """
    having = _check(recipe, count, draws)
    params = smooth(recipe).sample(count, seed, noise=False).params
    cells, varied = Cells(recipe), varied_names(recipe, params)
    rendered = {label: part for label, (part, _) in rendered_templates(recipe, count, seed).items()}
    found, kept, power = defaultdict(list), [], defaultdict(list)
    for i in range(count):
        own = {name: value[i : i + 1] for name, value in params.items()}
        modes, directions, share = cells.modes(own, varied)
        drawn = [cells.shares(pieces(recipe, label, own, draws + images, [seed, i])) @ modes for label in having]
        truths, templates = [part[draws:] for part in drawn], [part[:draws] for part in drawn]
        noise = np.random.default_rng([seed, i]).standard_normal((1 + len(having), *truths[0].shape), np.float32)
        few = likelihoods([part[: draws // 4] for part in templates], truths, noise)
        real = [np.tile(rendered[label][i] @ directions, (images, 1)) for label in having]
        for name, value in likelihoods(templates, truths, noise).items():
            found[name].append(value)
        for name in ("least", "most"):
            found[f"quarter_{name}"].append(few[name])
        found["rendered"].append(likelihoods(templates, real, noise)["least"])
        for label, part in zip(having, truths, strict=True):
            power[f"{label}_chi_square"].append(np.median((part**2).sum(1)))
            power[f"{label}_rendered_chi_square"].append((rendered[label][i] ** 2).sum())
        kept.append(share)
    metrics = _aucs(having, {name: np.stack(values) for name, values in found.items()}, seed, resamples)
    metrics |= {name: float(np.median(values)) for name, values in power.items()}
    return metrics | {"count": count, "images": images, "draws": draws, "kept": min(kept)}


def _aucs(having, found: Mapping[str, np.ndarray], seed: int, resamples: int) -> dict[str, dict[str, float]]:
    """AUCs from logarithms of likelihood ratios [lenses, 1 + classes, images, classes] by what they are of."""
    statistics = {}
    for name, ratios in found.items():
        count, classes, images, _ = ratios.shape
        labels = np.broadcast_to(np.arange(classes)[:, None], ratios.shape[:-1])
        scores = {"any": (labels, np.logaddexp.reduce(ratios, axis=-1))}
        for k, label in enumerate(having):
            scores[label] = labels[:, [0, 1 + k]], ratios[..., k][:, [0, 1 + k]]
        for label, (which, score) in scores.items():
            statistics[f"{label}_{name}_auc"] = roc(which.ravel() > 0, score.ravel(), which[0].size)
    resampled = Resampled(count, seed, resamples).over(*statistics.values())
    return {
        name: interval(once(count, statistic)[0], draw[:, 0])
        for (name, statistic), draw in zip(statistics.items(), resampled, strict=True)
    }


def pieces(
    recipe: Recipe, label: str, params: Mapping[str, Tensor], count: int, key: list[int]
) -> dict[str, np.ndarray]:
    """`count` draws [count, k] of the substructure of a class, in one lens of `params` [1] each."""

    def stream(name: str) -> np.random.Generator:
        return np.random.default_rng([*key, zlib.crc32(f"{label} {name}".encode())])

    scale = recipe.cosmology.deflection_scale
    theta_E = np.full(count, float(params["theta_E"]) / scale)
    fraction = recipe.substructure.mass_fraction
    fraction = np.zeros(count) if fraction is None else fraction.draw(stream("mass_fraction"), count)
    drawn, _ = recipe.substructure.populations[label].draw(stream, count, recipe.cosmology, theta_E, fraction)
    return drawn | {"mass": scale * drawn["mass"]}


def _check(recipe: Recipe, count: int, draws: int) -> tuple[str, ...]:
    having = tuple(label for label in recipe.classes if label in recipe.substructure.populations)
    if count < 2 or draws < 4:
        raise InputError(f"a blind ceiling needs two lenses and four draws or more, not {count} and {draws}")
    if not 0 < len(having) < len(recipe.classes):
        raise InputError(f"{recipe.name} needs classes with and without substructure to tell apart")
    if recipe.instrument.noise.kind == "none" or recipe.instrument.divide_by_peak:
        raise InputError(f"{recipe.name}: the blind ceiling is for images with noise, not divided by their peak")
    if recipe.by_class:
        raise InputError(f"{recipe.name}: its classes have lenses of their own, which alone tell them apart")
    if extended := [label for label in having if recipe.substructure.populations[label].profile not in PROFILES]:
        raise InputError(f"{recipe.name}: {', '.join(extended)} is neither of {' nor of '.join(PROFILES)}s")
    return having
