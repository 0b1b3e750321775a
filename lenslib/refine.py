"""Smooth lenses fitted to images: Levenberg and Marquardt's method through the simulator, many images at a time.

templates = Templates(recipe)                     # noise-free smooth lenses from the recipe's own priors
fit = refine(recipe, images, templates.starts(images), noise)
fit.residual                                      # what the smooth lens and source leave, in standard deviations
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from lenslib.errors import InputError
from lenslib.recipe import Recipe
from lenslib.simulate import is_compiled, render_compiled, render_moved, render_quickly

# fitted as logarithms: sizes and brightnesses, which are positive
_POSITIVE = (
    "lens_theta_E",
    "R_sersic",
    "n_sersic",
    "amp",
    "lens_light_amp",
    "lens_light_R_sersic",
    "lens_light_n_sersic",
)
# the camera's place, of a centred roulette: where a start does not say it, the light does
CENTRE = ("centre_x", "centre_y")
GALAXY = ("R_sersic", "n_sersic", "amp")
SHAPE = ("e1", "e2", "center_x", "center_y")
# as fitted: outside, the simulator has no meaning or no precision
_BOUNDS = {"gamma": (1.2, 2.8), "n_sersic": (-1.2, 2.1), "R_sersic": (-5.0, 2.0)} | {
    f"{galaxy}_{name}": (-0.7, 0.7) for galaxy in ("lens", "source", "lens_light") for name in ("e1", "e2")
}
# steps of the finite differences, as fitted: single precision keeps four digits of the derivative
_STEP = 2e-3
# images that are fitted together: one fixed number, so that the renderer is compiled once
SLOTS = 16
# of templates: larger than a data set's seed can be, so that no truth is among them
TEMPLATE_SEED = int.from_bytes(b"templates")
# a fit has converged when a step promises to lower chi-square by less, and by less than one were it hardly held back
PROMISE = 0.05
# eigenvalues of a curvature of unit diagonal below this are rounding
_DIGITS = 1e-7


@dataclass(frozen=True)
class Fit:
    """Smooth lenses fitted to n images.

    params: name to [n], as in `Batch.params`. covariance: [n, k, k] of the parameters in `names`, from the curvature of
    chi-square (and, of noisy roulettes, from the jumps of the bitmap). chi_square: [n], to be held against `freedom`,
    the pixels that count less k. converged: bool [n].
    model, residual: [n, c, h, w], the image of the fit, and (image - model) / noise.
    """

    names: tuple[str, ...]
    params: dict[str, Tensor]
    covariance: Tensor
    chi_square: Tensor
    freedom: Tensor
    converged: Tensor
    steps: Tensor
    model: Tensor
    residual: Tensor

    @property
    def good(self) -> Tensor:
        """Bool [n]: converged, with a chi-square within three standard deviations of what noise alone gives."""
        return self.converged & (self.chi_square - self.freedom < 3 * (2 * self.freedom).sqrt())

    def uncertainty(self, name: str) -> Tensor:
        """Standard deviation [n] of one parameter."""
        k = self.names.index(name)
        return self.covariance[:, k, k].sqrt()


# the fields of a `Fit` that have a value for each image
_VALUES = ("covariance", "chi_square", "freedom", "converged", "steps", "model", "residual")


def free_names(recipe: Recipe) -> tuple[str, ...]:
    """The parameters of a recipe's smooth lens and light that a fit moves."""
    names = [*recipe.lens.parameters, *GALAXY, *(f"source_{name}" for name in SHAPE)]
    if recipe.lens_light is not None:
        names += [f"lens_light_{name}" for name in (*GALAXY, *SHAPE)]
    return tuple(names)


def smooth(recipe: Recipe) -> Recipe:
    """The recipe without its substructure and its source's clumps: one class of smooth lenses."""
    if recipe.companions or recipe.bands or recipe.source.profile != "sersic":
        raise InputError(f"{recipe.name}: only one lens with a Sersic source in one band can be fitted")
    bare = recipe.substructure.model_copy(update={"populations": {}})
    source = recipe.source.model_copy(update={"clumps": None})
    return recipe.model_copy(update={"classes": ("smooth",), "substructure": bare, "by_class": {}, "source": source})


class SmoothModel:
    """The simulator as a function of the fitted numbers [n, k]."""

    # a damping that hardly holds a step back; less, and the four digits of the slopes do
    free = 0.05

    def __init__(self, recipe: Recipe):
        self.recipe, self.names = smooth(recipe), free_names(recipe)
        bounds = [_BOUNDS.get(name, (-20.0, 20.0)) for name in self.names]
        self.low, self.high = torch.tensor(bounds).unbind(1)
        self.logarithmic = torch.tensor([name in _POSITIVE for name in self.names])

    @property
    def fixed_shape(self) -> bool:
        """Whether all that is drawn must be of `SLOTS` images: that is what the renderer is compiled for."""
        return is_compiled()

    def pack(self, params: dict[str, Tensor]) -> Tensor:
        columns = torch.stack([params[name].float() for name in self.names], 1)
        return self.bounded(torch.where(self.logarithmic, columns.clamp(min=1e-30).log(), columns))

    def unpack(self, numbers: Tensor) -> dict[str, Tensor]:
        columns = torch.where(self.logarithmic, numbers.exp(), numbers).unbind(1)
        return dict(zip(self.names, columns, strict=True))

    def bounded(self, numbers: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(numbers, self.low), self.high)

    def units(self, numbers: Tensor) -> Tensor:
        """Derivatives [n, k, k] of the parameters by the fitted numbers: a logarithm's deviation is a relative one."""
        return torch.where(self.logarithmic, numbers.exp(), 1.0).diag_embed()

    def rows(self, rows: Tensor) -> "SmoothModel":
        """For some of the images: all have the same pixels."""
        return self

    def images(self, numbers: Tensor) -> Tensor:
        """[n, pixels]."""
        return render_quickly(self.recipe, self.unpack(numbers)).flatten(1)

    def images_and_slopes(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """[n, pixels] and [n, k, pixels], by forward differences: quicker than automatic ones, at four digits."""
        n, k = numbers.shape
        moved = numbers + _STEP * torch.cat([torch.zeros(1, k), torch.eye(k)])[:, None]
        params = self.unpack(moved.flatten(0, 1))
        images = render_moved(self.recipe, params, n, len(self.recipe.lens.parameters)).reshape(k + 1, n, -1)
        return images[0], ((images[1:] - images[0]) / _STEP).transpose(0, 1)

    def slopes(self, numbers: Tensor) -> Tensor:
        """[n, k, pixels], for any number of images."""
        found = [self.images_and_slopes(part)[1] for part in in_parts(self, numbers)]
        return torch.cat(found)[: len(numbers)]


class Templates:
    """Noise-free images of smooth lenses drawn from a recipe's priors, to start fits from without the truth.

    `count` templates are compared with an image at half its resolution; their brightness does not matter.
    """

    def __init__(self, recipe: Recipe, count: int = 16384, progress: bool = False):
        self.model, parts, images = SmoothModel(recipe), [], []
        chunk = self.model.recipe.chunk_size
        firsts = tqdm(range(0, count, chunk), desc="templates", disable=None if progress else True)
        for k, _ in enumerate(firsts):
            _, drawn, _ = self.model.recipe.draw(TEMPLATE_SEED, k)
            params = {name: torch.as_tensor(drawn[name], dtype=torch.float32) for name in self.model.names}
            parts.append(self.model.pack(params))
            shown = render_compiled(self.model.recipe, params)
            images.append(_halved(shown))
        self.numbers, images = torch.cat(parts)[:count], torch.cat(images)[:count]
        self.norms = images.norm(dim=1, keepdim=True).clamp(min=1e-30)
        self.images = images / self.norms

    def starts(self, images: Tensor, count: int = 4) -> Tensor:
        """The fitted numbers [n, count, k] of the templates most like each image [n, 1, h, w], the best first, each
        with the brightness that fits best."""
        found = []
        for image in _halved(images):
            likeness, best = (self.images @ image).topk(count)
            numbers = self.numbers[best].clone()
            factor = (likeness / self.norms[best, 0]).clamp(min=1e-12).log()
            for k, name in enumerate(self.model.names):
                if name in ("amp", "lens_light_amp"):
                    numbers[:, k] += factor
            found.append(numbers)
        return torch.stack(found)


def _halved(images: Tensor) -> Tensor:
    """[n, pixels / 4]."""
    return avg_pool2d(images[:, :1], 2, ceil_mode=True, count_include_pad=False).flatten(1)


def noise_map(recipe: Recipe, params: dict[str, Tensor], model: Tensor) -> Tensor:
    """Standard deviations [n, c, h, w] of photon noise for noise-free images `model` [n, c, h, w] and the exposures in
    `params`, in the units of the images.

    Raises InputError for recipes whose noise is none, or DeepLenseSim's.
    """
    if recipe.instrument.noise.kind not in ("photon", "sky"):
        raise InputError(
            f"{recipe.name}: noise '{recipe.instrument.noise.kind}' is not that of photons: pass a noise map"
        )
    return recipe.instrument.noise.deviation(model, params)


def refine(
    recipe: Recipe,
    images: Tensor,
    starts: Tensor | dict[str, Tensor],
    noise: Tensor,
    steps: int = 30,
    progress: bool = False,
) -> Fit:
    """Fit a smooth lens and source to images [n, 1, h, w] with standard deviations `noise` of the same shape.

    `starts`: parameters by name, each [n] (a network's estimate), or fitted numbers [n, s, k] (`Templates.starts`), of
    which the next is tried where the one before led to no good fit. A pixel of infinite noise does not count.
    A fit that has not converged after `steps` is flagged, not hidden.
    Raises InputError for images that are not finite, of one brightness, or not of the recipe's size, for noise that is
    not positive, and for starts that do not fit the images.
    """
    model = SmoothModel(recipe)
    check_images(recipe, images)
    _check_noise(images, noise)
    starts = packed(model, starts, len(images))
    return best_of(starts, lambda rows, start: fit_all(model, images[rows], noise[rows], start, steps, progress))


def packed(model, starts: Tensor | dict[str, Tensor], count: int) -> Tensor:
    """Starts of `count` images as fitted numbers [n, s, k] of a model such as `SmoothModel`.

    InputError, which says what is wrong, for starts that lack a parameter, are of another number of images, or are not
    finite.
    """
    if isinstance(starts, Tensor):
        if starts.ndim != 3 or not starts.shape[1] or starts.shape[::2] != (count, len(model.names)):
            raise InputError(
                f"starts have shape {tuple(starts.shape)}: {count} images need [{count}, starts, {len(model.names)}]"
            )
        _refuse("has a start that is NaN or infinite", ~starts.isfinite())
        return starts
    if lack := [name for name in model.names if name not in starts and name not in CENTRE]:
        raise InputError(f"starts lack {', '.join(lack)}: give every parameter of the lens and its source")
    if sum(name in starts for name in CENTRE if name in model.names) == 1:
        raise InputError(f"starts have one of {' and '.join(CENTRE)}: give the camera's place whole, or not at all")
    given = {name: torch.as_tensor(starts[name]) for name in model.names if name in starts}
    for name, value in given.items():
        if value.shape != (count,):
            raise InputError(f"starts of {name} have shape {tuple(value.shape)}: {count} images need [{count}]")
        _refuse(f"starts at a {name} that is NaN or infinite", ~value.isfinite())
    return model.pack(given)[:, None]


def best_of(starts: Tensor, fit: Callable[[Tensor, Tensor], Fit], best: Fit | None = None) -> Fit:
    """The best fits, of `best` and those that `fit(rows, starts)` finds: from each of the starts [n, s, k] in turn, for
    the images whose fits are not yet good."""
    rest = torch.arange(len(starts)) if best is None else (~best.good).nonzero()[:, 0]
    for k in range(starts.shape[1]):
        if not len(rest):
            break
        found = fit(rest, starts[rest, k])
        best = found if best is None else _better(best, found, rest)
        rest = (~best.good).nonzero()[:, 0]
    return best


def check_images(recipe, images: Tensor) -> None:
    """InputError, which names the image, for what is no tensor [n, 1, h, w] of single precision and the recipe's size,
    for images that are not finite and such of one brightness."""
    pixels = recipe.instrument.pixels
    if not isinstance(images, Tensor):
        raise InputError(f"images are a {type(images).__name__}: give a tensor, such as torch.from_numpy(images)")
    if images.ndim != 4 or images.shape[1:] != (1, pixels, pixels) or not len(images):
        raise InputError(f"images have shape {tuple(images.shape)}, and {recipe.name} has [n, 1, {pixels}, {pixels}]")
    if images.dtype != torch.float32:
        raise InputError(f"images are {images.dtype}: give them in single precision, float32")
    _refuse("is NaN or infinite", ~images.isfinite())
    _refuse("has pixels that are all equal", images.amax((1, 2, 3)) == images.amin((1, 2, 3)))


def _check_noise(images: Tensor, noise: Tensor) -> None:
    if noise.shape != images.shape:
        raise InputError(f"noise has shape {tuple(noise.shape)}, images {tuple(images.shape)}: give one for each pixel")
    _refuse("has noise that is not positive", ~(noise > 0))


def _refuse(what: str, wrong: Tensor) -> None:
    """InputError for the first image of which anything is `wrong` [n, ...]."""
    wrong = wrong.reshape(len(wrong), -1).any(1)
    if wrong.any():
        raise InputError(f"image {int(wrong.nonzero()[0])} {what}")


def _better(best: Fit, found: Fit, rest: Tensor) -> Fit:
    """`best` with those of its fits at `rest` replaced that `found` betters."""
    before = best.chi_square[rest] - best.converged[rest].float() * 1e-3
    mine = found.chi_square - found.converged.float() * 1e-3 < before
    return _replaced(best, found, rest[mine], mine)


def take_over(best: Fit, found: Fit, rows: Tensor) -> Fit:
    """`best` with its fits at `rows` replaced by those of `found` that are good."""
    return _replaced(best, found, rows[found.good], found.good)


def joined(fits: list[Fit], order: Tensor) -> Fit:
    """Fits one after another, then in the order of their indices `order` [n]."""
    parts = {name: torch.cat([getattr(fit, name) for fit in fits])[order] for name in _VALUES}
    params = {name: torch.cat([fit.params[name] for fit in fits])[order] for name in fits[0].params}
    return replace(fits[0], params=params, **parts)


def _replaced(best: Fit, found: Fit, rows: Tensor, mine: Tensor) -> Fit:
    def merged(ours: Tensor, theirs: Tensor) -> Tensor:
        ours = ours.clone()
        ours[rows] = theirs[mine]
        return ours

    changes = {name: merged(getattr(best, name), getattr(found, name)) for name in _VALUES}
    params = {name: merged(value, found.params[name]) for name, value in best.params.items()}
    return replace(best, params=params, **changes)


@torch.no_grad()
def fit_all(model, images: Tensor, noise: Tensor, numbers: Tensor, steps: int, progress: bool) -> Fit:
    """One fit an image, of a model such as `SmoothModel`, from numbers [n, k].

    `SLOTS` are under way at any time: one that ends makes room for the next."""
    data, weight = images.flatten(1), 1 / noise.flatten(1)
    n, k = numbers.shape
    numbers, damping = numbers.clone(), torch.full((n,), 1e-2)
    chi, steps_done, converged = (
        torch.full((n,), torch.inf),
        torch.zeros(n, dtype=torch.long),
        torch.zeros(n, dtype=bool),
    )
    curvature = torch.zeros(n, k, k)
    waiting = list(range(n))[::-1]
    under_way = [waiting.pop() for _ in range(min(SLOTS, n))]
    with tqdm(total=n, desc="fit", unit="image", disable=None if progress else True) as bar:
        while under_way:
            # slots without an image repeat the first, where what is compiled is for one number of images
            spare = SLOTS if model.fixed_shape else 1
            slots = torch.tensor(under_way + under_way[:1] * (spare - len(under_way)))
            here, slopes = model.rows(slots).images_and_slopes(numbers[slots])
            slopes, left = slopes * weight[slots, None], (data[slots] - here) * weight[slots]
            chi[slots] = left.square().sum(1)
            curvature[slots] = slopes @ slopes.mT
            downhill = (slopes @ left[..., None])[..., 0]
            tried = _try_steps(model, slots, numbers, damping, chi, curvature, downhill, data, weight)
            numbers[slots], converged[slots] = tried
            steps_done[slots] += 1
            ended = {i for i in under_way if converged[i] or steps_done[i] >= steps}
            bar.update(len(ended))
            under_way = [i for i in under_way if i not in ended]
            under_way += [waiting.pop() for _ in range(min(SLOTS - len(under_way), len(waiting)))]
    drawn = [model.rows(rows).images(numbers[rows]) for rows in in_parts(model, torch.arange(n))]
    drawn = torch.cat(drawn)[:n].view_as(images)
    return conclude(model, images, noise, numbers, curvature, converged, steps_done, drawn)


def _try_steps(model, slots, numbers, damping, chi, curvature, downhill, data, weight, tries: int = 4):
    """The best of a few damped steps from each slot's numbers, [slots, k], and whether the fit has converged [slots].
    Damping is lowered by a step that helps and raised by one that does not."""
    here, diagonal = numbers[slots], curvature[slots].diagonal(dim1=1, dim2=2)
    floor = 1e-7 * diagonal + 1e-12 * diagonal.amax(1, keepdim=True) + 1e-12

    def step_and_promise(damping):
        damped = curvature[slots] + torch.diag_embed(damping[:, None] * diagonal + floor)
        step = torch.linalg.solve(damped.double(), downhill.double()).float()
        return step, (step * downhill).sum(1)

    lower, promise, chosen = torch.zeros(len(slots), dtype=bool), torch.zeros(len(slots)), here.clone()
    free = step_and_promise(damping[slots].clamp(max=model.free))[1]
    for _ in range(tries):
        step, promised = step_and_promise(damping[slots])
        new = model.bounded(here + step.clamp(-0.5, 0.5))
        value = ((data[slots] - model.rows(slots).images(new)) * weight[slots]).square().sum(1)
        helps = (value <= chi[slots]) & ~lower
        chosen = torch.where(helps[:, None], new, chosen)
        promise = torch.where(lower, promise, promised)
        lower |= helps
        damping[slots] = torch.where(
            helps, damping[slots] * 0.2, torch.where(lower, damping[slots], damping[slots] * 6)
        )
        damping[slots] = damping[slots].clamp(1e-7, 1e6)
        if bool(((promise < PROMISE) | lower).all()):
            break
    return chosen, (promise < PROMISE) & (free < 1)


def conclude(model, images, noise, numbers, curvature, converged, steps, drawn) -> Fit:
    """The fits that ended at numbers [n, k] with images `drawn`; none has converged where the model has no slope."""
    known = curvature.flatten(1).isfinite().all(1)
    curvature, converged = torch.where(known[:, None, None], curvature, 0.0), converged & known
    residual, units = (images - drawn) / noise, model.units(numbers).double()
    covariance = torch.where(known[:, None, None], units @ inverse(curvature) @ units.mT, torch.inf)
    freedom = noise.isfinite().flatten(1).sum(1) - len(model.names)
    chi = residual.square().flatten(1).sum(1)
    params = model.unpack(numbers)
    return Fit(model.names, params, covariance.float(), chi, freedom, converged, steps, drawn, residual)


def inverse(curvature: Tensor) -> Tensor:
    """Of curvatures [n, k, k], double precision: zero for numbers that were held, and at most as large as the digits of
    single precision allow."""
    diagonal = curvature.diagonal(dim1=1, dim2=2).double()
    scale = torch.where(diagonal > 0, diagonal.clamp(min=1e-300).rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(curvature.double() * scale[:, :, None] * scale[:, None])
    root = vectors * scale[:, :, None] / values.clamp(min=_DIGITS).sqrt()[:, None]
    return root @ root.mT


def in_parts(model, numbers: Tensor) -> list[Tensor]:
    """In parts of `SLOTS` rows; where the model's shape is fixed, the last is filled up with its last row."""
    lack = -len(numbers) % SLOTS if model.fixed_shape else 0
    return list(torch.cat([numbers, numbers[-1:].expand(lack, *numbers.shape[1:])]).split(SLOTS))
