"""The ceiling: how well anybody could tell the classes of a recipe apart, from what a refit of the smooth lens leaves.

left = leftovers(recipe, 192)             # of 192 lenses, each with the substructure of every class
metrics = oracle(left)                    # macro_auc, any_auc, ..., with intervals over lenses
share_of_ceiling(auc, ceiling_of(records, "matched_hst"))

Each lens is drawn once for each class of the recipe: the same macro lens, source and exposure, another substructure.
A smooth lens and source are fitted to each noise-free image. What no fit can take up, over the noise, is that class's
template T of that lens, and chi^2 = |T|^2 is all that is left of the signal.

The oracle is an observer who is told, beside the image, the template of every class in that lens, but not which class
the image is of. Noise is taken as Gaussian, of the variance of the noise-free image. Of the smooth lens and the source
the oracle knows what the recipe never varies, and nothing else: what changes of them can imitate is lost. Then the
image tells of class k the log-likelihood L_k = <x, T_k> - |T_k|^2 / 2, x being what a refit leaves of the image
(signal-detection theory: Green & Swets 1966; Barrett & Myers 2004, Foundations of Image Science, section 13.2), and no
score of an image separates better than the probabilities that follow from L. One class against a single other without
substructure has, in two lenses i and j, the AUC Phi(sqrt(chi_i^2 + chi_j^2) / 2).

It is an upper limit, because a classifier has to search for what the oracle is told, but for two things: one who knows
how the recipe draws lenses can pass it where an image hardly shows a parameter (`leftovers(by="priors_known")` says by
how much), and of photon noise it leaves out what the variance itself tells. Templates are those at the minimum of
chi-square that is reached from the true lens. A fit that has not converged leaves too much, so that the ceiling comes
out too high and stays a limit; such fits are counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, quantile_test
from torch import Tensor

from lenslib.errors import InputError, unknown
from lenslib.metrics import UNDEFINED
from lenslib.recipe import Recipe
from lenslib.records import Records
from lenslib.refine import SmoothModel, fit_all, in_parts, smooth
from lenslib.resampling import RESAMPLES, Resampled, Statistic, interval, once, roc

RESIDUAL = "_residual"  # ends the name of a set of what fits leave of another
# of the noise of each image, half of them the other half's negatives
_DRAWS = 16
# of its mean: a parameter that varies by less is a constant, rounded
_CONSTANT = 1e-5
# of the finite differences of what a fit moves, as in `refine`
_STEP = 2e-3
# of the largest singular value
_ROUNDING = 1e-9


def paired_auc(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The AUC of an image with a known template against one without, in two lenses whose templates leave the chi-square
    `first` and `second` (arrays that broadcast): Phi(sqrt(first + second) / 2). For one lens, both are the same."""
    return norm.cdf(np.sqrt(np.add(first, second)) / 2)


@dataclass(frozen=True)
class Leftovers:
    """What fits of smooth lenses leave of n lenses with the substructure of each of c classes.

    gram: [n, c, c], inner products of the templates, over the noise; the diagonal is chi-square, 0 for a class without
    substructure. substructured, converged: bool [c] and [n, c]. Without noise, `gram` is None.
    """

    classes: tuple[str, ...]
    substructured: np.ndarray
    gram: np.ndarray | None
    converged: np.ndarray

    def chi_square(self, label: str) -> np.ndarray:
        """[n], of a class."""
        k = self.classes.index(label)
        return self.gram[:, k, k]


class _Known(SmoothModel):
    """A smooth model of which a fit moves only the numbers that a recipe varies."""

    def __init__(self, recipe: Recipe, varied: set[str]):
        super().__init__(recipe)
        self.moved = [k for k, name in enumerate(self.names) if name in varied]

    def images_and_slopes(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        steps = _STEP * torch.eye(len(self.names))[self.moved, None]
        images = self.images(torch.cat([numbers[None], numbers + steps]).flatten(0, 1)).unflatten(0, (-1, len(numbers)))
        slopes = images.new_zeros(*numbers.shape, images.shape[-1])
        slopes[:, self.moved] = ((images[1:] - images[0]) / _STEP).transpose(0, 1)
        return images[0], slopes


def varied_names(recipe: Recipe, params: Mapping[str, Tensor]) -> set[str]:
    """The parameters of the smooth lens and source that differ between lenses, of `params` [n] each."""
    names = [name for name in SmoothModel(recipe).names if params[name].std() > _CONSTANT * params[name].abs().mean()]
    return set(names)


def only(recipe: Recipe, label: str) -> Recipe:
    """The recipe with one of its classes: image i is of the same lens, source and exposure, whichever class it is."""
    populations = {name: part for name, part in recipe.substructure.populations.items() if name == label}
    own = {name: part for name, part in recipe.by_class.items() if name == label}
    bare = recipe.substructure.model_copy(update={"populations": populations})
    return recipe.model_copy(update={"classes": (label,), "substructure": bare, "by_class": own})


@torch.no_grad()
def leftovers(
    recipe: Recipe, count: int, seed: int = 0, by: str = "refit", all_unknown: bool = False, steps: int = 60
) -> Leftovers:
    """Templates of `count` lenses of a recipe.

    by: "refit", by the method of Levenberg and Marquardt in `lenslib.refine`, which follows the curves of a degeneracy,
    fits many images together, and says whether a fit has converged, as the Gauss-Newton steps of `information.refit` do
    not; "first_order", about the true lens; "priors_known", to first order by one who knows the recipe's width in each
    parameter, as a Gaussian prior about the truth. all_unknown: whether to fit also what the recipe never varies.
    InputError for fewer than two lenses, and for recipes that `refine.smooth` cannot fit, that have one class, or whose
    images are divided by their peak.
    """
    _check(recipe, count, by)
    substructured = np.array([label in recipe.substructure.populations for label in recipe.classes])
    converged, gram = np.ones((count, len(recipe.classes)), bool), None
    if recipe.instrument.noise.kind != "none":
        gram = np.zeros((count, len(recipe.classes), len(recipe.classes)))
        found = templates(recipe, count, seed, by, all_unknown, steps)
        for label, (part, ended) in found.items():
            k = recipe.classes.index(label)
            converged[:, k] = ended
            for other, (their, _) in found.items():
                gram[:, k, recipe.classes.index(other)] = np.einsum("np,np->n", part, their, dtype=np.float64)
    return Leftovers(recipe.classes, substructured, gram, converged)


@torch.no_grad()
def templates(
    recipe: Recipe, count: int, seed: int = 0, by: str = "refit", all_unknown: bool = False, steps: int = 60
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By class with substructure the templates [count, pixels] of `leftovers`, which says what the arguments are, and
    whether each fit has converged, bool [count]."""
    params = smooth(recipe).sample(count, seed, noise=False).params
    model, varied = SmoothModel(recipe), varied_names(recipe, params)
    if len(varied) < len(model.names) and not all_unknown:
        model = _Known(recipe, varied)
    numbers, parts = model.pack(params), {}
    for label in (label for label in recipe.classes if label in recipe.substructure.populations):
        drawn = only(recipe, label).sample(count, seed, noise=False)
        deviation = recipe.instrument.noise.deviation(drawn.images, drawn.params)
        if by == "refit":
            fit = fit_all(model, drawn.images, deviation, numbers, steps, progress=False)
            parts[label] = fit.residual.flatten(1).numpy(), fit.converged.numpy()
        else:
            found = _to_first_order(model, drawn.images, deviation, numbers, by == "priors_known")
            parts[label] = found, np.ones(count, bool)
    return parts


def _check(recipe: Recipe, count: int, by: str) -> None:
    if by not in (ways := ("refit", "first_order", "priors_known")):
        raise unknown("way to fit", by, ways)
    if count < 2:
        raise InputError(f"the ceiling of {recipe.name} needs two lenses or more, not {count}")
    if len(recipe.classes) < 2:
        raise InputError(f"{recipe.name} has one class: there is nothing to tell apart")
    if recipe.instrument.divide_by_peak:
        raise InputError(f"{recipe.name}: images that are divided by their peak are not fitted")


def _to_first_order(model: SmoothModel, images: Tensor, deviation: Tensor, numbers: Tensor, priors: bool) -> np.ndarray:
    """Templates [n, pixels], or [n, pixels + k] with `priors`: what a change costs stands behind what it leaves."""
    widths, found = numbers.std(0).double().numpy(), []
    changes, noises = images.flatten(1), deviation.flatten(1)
    for part in in_parts(model, numbers):
        for smooth_image, slopes in zip(*model.images_and_slopes(part), strict=True):
            if len(found) == len(images):  # the last part is filled up
                break
            image, noise = changes[len(found)], noises[len(found)]
            slopes, change = ((of / noise).double().numpy() for of in (slopes, image - smooth_image))
            if priors:
                moved = slopes.any(1) & (widths > _CONSTANT)
                slopes = np.hstack([slopes[moved], np.diag(1 / widths[moved])])
                change = np.append(change, np.zeros(moved.sum()))
            found.append(beside(slopes, change))
    return np.stack(found)


def beside(slopes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What is left of an image [pixels] when the best sum of `slopes` [k, pixels] is taken away."""
    return image - slopes.T @ np.linalg.lstsq(slopes.T, image, rcond=_ROUNDING)[0]


def oracle(left: Leftovers, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, dict[str, float] | int | str]:
    """The oracle's AUC, each with the 2.5 and 97.5 percentiles of a bootstrap over lenses.

    `macro_auc` and `auc_<class>`: each class against the rest, as in `metrics.classification_metrics`. `any_auc`: any
    substructure against none. `<class>_against_none_auc`: from the formula; the others by drawing noise.
    `chi_square_<class>`: the median, with the interval of its sign test. `not_converged`: fits, of `fits`.
    Without noise every AUC is 1 by definition, and `noise` says "none".
    """
    bare = bool(not left.substructured.all() and left.substructured.any())
    names = [f"auc_{label}" for label in left.classes] + ["macro_auc"] + ["any_auc"] * bare
    having = [label for label, has in zip(left.classes, left.substructured, strict=True) if has]
    counts = {"count": len(left.converged), "fits": len(left.converged) * len(having)}
    if left.gram is None:
        names += [f"{label}_against_none_auc" for label in having if bare]
        return dict.fromkeys(names, {"value": 1.0, "low": 1.0, "high": 1.0}) | counts | {"noise": "none"}
    n, classes = left.converged.shape
    labels, scores = _answers(left.gram, seed)
    copies = len(labels) // n
    parts = [roc(labels == k, scores[:, k], copies) for k in range(classes)]
    statistics = dict(zip(names, [*parts, _mean(parts)], strict=False))
    if bare:
        has = left.substructured
        statistics["any_auc"] = roc(has[labels], scores[:, has].sum(1), copies)
        statistics |= {f"{label}_against_none_auc": over_pairs(left.chi_square(label)) for label in having}
    draws = Resampled(n, seed, resamples).over(*statistics.values())
    found = {
        name: interval(once(n, statistic)[0], draw[:, 0])
        for (name, statistic), draw in zip(statistics.items(), draws, strict=True)
    }
    found |= {f"chi_square_{label}": _median(left.chi_square(label)) for label in having}
    return found | counts | {"not_converged": int((~left.converged).sum()), "noise": "Gaussian"}


def _median(values: np.ndarray) -> dict[str, float]:
    """With the interval of the sign test; of so few values that it has none, from the smallest to the largest."""
    limits = quantile_test(values).confidence_interval()
    low = values.min() if np.isnan(limits.low) else limits.low
    high = values.max() if np.isnan(limits.high) else limits.high
    return {"value": float(np.median(values)), "low": float(low), "high": float(high)}


def _mean(parts: list[Statistic]) -> Statistic:
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


def _answers(gram: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [m] and the oracle's probabilities [m, c] of images of every class in every lens, each with noise drawn
    `_DRAWS` times, lens by lens; m = n c draws."""
    n, classes, _ = gram.shape
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(values.clip(0))[:, None]
    noise = np.random.default_rng(seed).standard_normal((n, classes, _DRAWS // 2, classes))
    noise = np.concatenate([noise, -noise], 2) @ root[:, None].swapaxes(2, 3)
    # of an image of class m: <x, T_k> = <T_m, T_k> + <noise, T_k>
    likely = gram[:, :, None] + noise - np.diagonal(gram, axis1=1, axis2=2)[:, None, None] / 2
    likely = np.exp(likely - likely.max(-1, keepdims=True)).reshape(-1, classes)
    labels = np.tile(np.repeat(np.arange(classes), _DRAWS), n)
    return labels, likely / likely.sum(1, keepdims=True)


def over_pairs(chi_square: np.ndarray) -> Statistic:
    """[resamples, 1]: the mean of `paired_auc` over pairs of different lenses, which leave `chi_square` [n]."""
    pairs = paired_auc(chi_square[:, None], chi_square)
    same = np.diagonal(pairs)

    def statistic(counts: np.ndarray) -> np.ndarray:
        squares = counts**2
        total = ((counts @ pairs) * counts).sum(1) - squares @ same
        with np.errstate(invalid="ignore"):  # one lens, drawn every time, makes no pair
            return (total / (counts.sum(1) ** 2 - squares.sum(1)))[:, None]

    return statistic


def ceiling_of(records: Records, recipe: str, metric: str = "macro_auc") -> dict[str, float] | None:
    """The ceiling of a recipe, or of what fits leave of it, from the record `ceiling/<recipe>/oracle`; None if there is
    none."""
    try:
        run = records.select("ceiling", recipe.removesuffix(RESIDUAL), "oracle")[0]
    except InputError:
        return None
    return run.metrics.get(metric)


def share_of_ceiling(
    auc: Mapping[str, float] | str, ceiling: Mapping[str, float] | None
) -> dict[str, float] | str | None:
    """(AUC - 0.5) / (ceiling - 0.5) as {"value", "low", "high"}; None without a ceiling or an AUC.

    The interval follows from both, as they come from different lenses, by MOVER-R (Donner & Zou 2012, Stat. Methods
    Med. Res. 21, 347; Newcombe 2016, ibid. 25, 1774): the limits of a ratio from the distances of the limits of its two
    parts. "undefined" where the ceiling's interval reaches 0.5, or is so wide that the ratio has no upper limit.
    """
    if ceiling is None or auc == UNDEFINED:
        return None
    top, low, high = (auc[part] - 0.5 for part in ("value", "low", "high"))
    base, least, most = (ceiling[part] - 0.5 for part in ("value", "low", "high"))
    if least <= 0 or most >= 2 * base:
        return UNDEFINED
    product = top * base
    below = product**2 - low * most * (2 * top - low) * (2 * base - most)
    above = product**2 - high * least * (2 * top - high) * (2 * base - least)
    return {
        "value": top / base,
        "low": (product - max(below, 0) ** 0.5) / (most * (2 * base - most)),
        "high": (product + max(above, 0) ** 0.5) / (least * (2 * base - least)),
    }


def share_text(auc: Mapping[str, float], ceiling: Mapping[str, float] | None) -> str:
    """The share of the ceiling for the cell of a table: empty without a ceiling."""
    share = share_of_ceiling(auc, ceiling)
    if isinstance(share, dict):
        return f"{share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]"
    return share or ""
