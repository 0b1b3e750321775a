"""What an image can tell: Fisher matrices of recipes, the Cramer-Rao bound, and what leaves an image as it is.

information = fisher(recipe, params)      # params as in Batch.params, double precision
information.bound()                       # smallest standard deviation of any unbiased estimate, by name
information.null_directions()             # "chi and einstein_radius together"

The matrix is F = J^T V^-1 J with the derivatives J of the noise-free image by forward-mode differentiation through the
simulator, and the variance V of each pixel's noise. That is all the information of Gaussian noise of known variance;
of photon noise it leaves out what the variance itself tells, little where a pixel has tens of counts. A matrix is
local: it does not see that two distant sets of parameters give one image. Nothing is computed from F itself, whose
condition is the square of that of V^-1/2 J, but from the triangular factor R of the latter: F = R^T R.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lenslib.compilation import compiled
from lenslib.errors import InputError, unknown
from lenslib.instruments import convolve
from lenslib.roulette_images import axes
from lenslib.roulette_images import light as roulette_light
from lenslib.simulate import EAGER, render_by

# of rounding to whole numbers, when what is rounded spans several of them
ROUNDING_VARIANCE = 1 / 12
# a singular value below this, of columns of norm one, is zero but for rounding: those of exact degeneracies come out
# at 1e-14 or less, and the weakest real ones, of lenses that hardly pull, near 1e-8
_NULL = 1e-10
# of derivatives of norm one
_ROUNDING = 1e-13
# a change of one unit that moves the whole image by less than this share of its noise moves nothing but by rounding
_STILL = 1e-10
# images whose derivatives are taken at once
_AT_ONCE = 8
# pixels of a roulette's image at once, so that all their derivatives stay in a processor's cache
_TILE = 16384
# grey levels below which a pixel is taken to have no light, and no derivatives
_DARK = 1e-6

_LIGHT = ("amp", "R_sersic", "n_sersic")
# of a recipe's parameters
_NOT_OF_THE_IMAGE = {"theta_E", "mass_fraction", "background_rms", "exposure_time", "peak_snr", "axion_mass"}


class UnobservableWarning(UserWarning):
    """A target that the images of a recipe do not show, or of which they show two values."""


@dataclass(frozen=True)
class NullDirection:
    """A change of parameters that an image does not show, to first order; `steps` maps names to amounts."""

    steps: dict[str, float]

    @property
    def words(self) -> str:
        *names, last = self.steps
        return f"{', '.join(names)} and {last} together" if names else f"{last} alone"


@dataclass(frozen=True)
class Fisher:
    """Information of n images: names of the k parameters, their values [n, k] and upper triangular factors R [n, k, k]
    of the Fisher matrices R^T R, all float64, in the units of the parameters.

    `known` is a name or names of parameters known beside the image; all that take it raise InputError for others.
    """

    names: tuple[str, ...]
    values: Tensor
    factor: Tensor

    @property
    def matrix(self) -> Tensor:
        """Fisher matrices [n, k, k]."""
        return self.factor.transpose(1, 2) @ self.factor

    def bound(self, known: Iterable[str] = (), prior: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """The Cramer-Rao bound [n] of every parameter that is not `known`: infinite for what an image does not show.

        `prior` maps names to the standard deviations of what is known beside the image.
        """
        root, free, names = self._root(known, prior or {})
        bounds = torch.where(free, torch.inf, root.norm(dim=2))
        return {name: bounds[:, k] for k, name in enumerate(names)}

    def correlation(self, known: Iterable[str] = (), prior: Mapping[str, float] | None = None) -> Tensor:
        """Correlations [n, k, k] of the best estimates of what is not `known`; nan with what an image does not show."""
        root, free, _ = self._root(known, prior or {})
        root = root / root.norm(dim=2, keepdim=True)
        return torch.where(free[:, :, None] | free[:, None, :], torch.nan, root @ root.transpose(1, 2))

    def null_directions(self, image: int = 0, known: Iterable[str] = ()) -> list[NullDirection]:
        """Independent changes of parameters that image number `image` does not show, each of as few as can be."""
        keep, names = self._keep(known)
        values, vectors, scale = _singular(self.factor[image][:, keep][None])
        found = []
        for column in _sparse(vectors[0][:, values[0] < _NULL]).T:
            steps, least = zip(names, column.tolist(), scale[0].tolist(), strict=True), 1e-3 * column.abs().max()
            found.append(NullDirection({name: part / unit for name, part, unit in steps if abs(part) > least}))
        return found

    def rank(self, known: Iterable[str] = ()) -> Tensor:
        """Ranks [n], rounding apart."""
        values, _, _ = _singular(self.factor[:, :, self._keep(known)[0]])
        return (values >= _NULL).sum(1)

    def _keep(self, known) -> tuple[list[int], list[str]]:
        known = _listed(known)
        for name in known:
            if name not in self.names:
                raise unknown("parameter", name, self.names)
        names = [name for name in self.names if name not in known]
        return [self.names.index(name) for name in names], names

    def _root(self, known, prior) -> tuple[Tensor, Tensor, list[str]]:
        """B [n, k, k] of the covariances B B^T of best estimates of what is seen, what is not [n, k], and names."""
        keep, names = self._keep(known)
        told = self.factor.new_zeros(len(self.factor), len(prior), len(names))
        for row, (name, deviation) in enumerate(prior.items()):
            if name not in names:
                raise unknown("parameter", name, names)
            if not deviation > 0:
                raise InputError(f"the prior of {name} needs a standard deviation above 0, not {deviation!r}")
            told[:, row, names.index(name)] = 1 / deviation
        values, vectors, scale = _singular(torch.cat([self.factor[:, :, keep], told], 1))
        null = values < _NULL
        inverse = torch.where(null, 0, 1 / values.clamp(min=_NULL))
        # rounding turns a null direction towards the others, the more the weaker these are seen
        free = (vectors * null[:, None, :]).norm(dim=2) > _ROUNDING * inverse.norm(dim=1, keepdim=True)
        root = vectors * inverse[:, None, :] / scale[:, :, None]
        return root, free, names


def _listed(names) -> tuple[str, ...]:
    """Names, of which one may come alone."""
    return (names,) if isinstance(names, str) else tuple(names)


def _singular(factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values [n, k] and right vectors [n, k, k] (columns) of factors [n, m, k] with columns of norm one (or
    of zeros), and the norms [n, k]."""
    scale = factor.norm(dim=1)
    # what moves no pixel by more than rounding has no scale of its own
    still = scale <= _STILL
    scale = scale.masked_fill(still, 1)
    scaled = (factor / scale[:, None]).masked_fill(still[:, None], 0)
    _, values, vectors = torch.linalg.svd(scaled, full_matrices=False)
    return values, vectors.transpose(1, 2), scale


def _sparse(null: Tensor) -> Tensor:
    """Vectors [k, d] that span the same space, each with a parameter that no other has."""
    rows, rest = [], null
    for _ in range(null.shape[1]):
        sizes = rest.norm(dim=1)
        rows.append(int(sizes.argmax()))
        pivot = rest[rows[-1]] / sizes[rows[-1]]
        rest = rest - (rest @ pivot)[:, None] * pivot
    return null @ torch.linalg.inv(null[rows]) if rows else null


def parameters(recipe, params: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of all parameters that shape the image, and of the place of a centred image, which is not known."""
    if recipe.kind == "roulette":
        places = ("centre_x", "centre_y") if recipe.instrument.centring != "none" else ()
        return (*recipe.targets, *places)
    first = [name for name in (*recipe.lens.parameters, *_LIGHT) if name in params]
    sources = [name for name in params if name.startswith("source_") and name != "source_picture"]
    lens_light = [name for name in params if name.startswith("lens_light_")]
    companions = [name for name in params if name.startswith(tuple(f"{group}_" for group in recipe.companions))]
    return (*first, *sources, *lens_light, *companions)


def fisher(
    recipe,
    params: Mapping[str, Tensor],
    names: Iterable[str] | None = None,
    points: Mapping[str, Tensor] | None = None,
) -> Fisher:
    """Fisher matrices of n scenes of a recipe.

    `params` as in `Batch.params` ([n] each), `points` as in `Batch.substructure`, which is held fixed; `names` are the
    parameters that are not known (by default all of `parameters`). All is done in double precision.
    Raises InputError for no names or an unknown one, params of unequal lengths, a scene that has no image, and a recipe
    without noise, of whose images everything could be told.
    """
    model = _Model(recipe, params, names, points)
    factors = []
    for part in range(0, model.count, _AT_ONCE):
        _, slopes, deviation = model.derivatives(slice(part, part + _AT_ONCE))
        factors.append(torch.linalg.qr((slopes / deviation[:, None]).mT, mode="r").R)
    return Fisher(model.names, model.values, torch.cat(factors))


def refit(
    recipe,
    images: Tensor,
    params: Mapping[str, Tensor],
    names: Iterable[str] | None = None,
    points: Mapping[str, Tensor] | None = None,
    steps: int = 4,
) -> dict[str, Tensor]:
    """Maximum-likelihood estimates [n] from images [n, c, h, w] in flux (or grey levels), by Gauss-Newton steps from
    `params` with Gaussian noise of the variance of the image there. Raises what `fisher` raises, and InputError for
    images of the wrong shape, that are dark or not finite, and directions that the images do not show."""
    model = _Model(recipe, params, names, points)
    data = _data(recipe, images, model.count)
    found, count = [], len(model.names)
    for part in range(0, model.count, _AT_ONCE):
        rows = slice(part, part + _AT_ONCE)
        values = model.values[rows].clone()
        for _ in range(steps):
            mean, slopes, deviation = model.derivatives(rows, values)
            # with the data as one more column, its entries are its parts along the others
            columns = torch.cat([slopes, (data[rows] - mean)[:, None]], 1) / deviation[:, None]
            factor = torch.linalg.qr(columns.mT, mode="r").R
            slopes, rest = factor[:, :count, :count], factor[:, :count, count:]
            if (Fisher(model.names, values, slopes).rank() < count).any():
                raise InputError("the images do not show all that is to be fitted: leave out some of the names")
            values = values + torch.linalg.solve_triangular(slopes, rest, upper=True)[..., 0]
        found.append(values)
    return dict(zip(model.names, torch.cat(found).T, strict=True))


def _data(recipe, images, count: int) -> Tensor:
    """Images as [n, p], float64; InputError, which names the image, for what no fit could use."""
    data = torch.as_tensor(images).double()
    shape = [count, recipe.channels, recipe.instrument.pixels, recipe.instrument.pixels]
    if list(data.shape) != shape:
        raise InputError(f"images have the shape {list(data.shape)}, and one for each scene of {recipe.name} {shape}")
    data = data.flatten(1)
    bad = ~data.isfinite().all(1) | ~data.any(1)
    if bad.any():
        raise InputError(f"image {int(bad.nonzero()[0])} is zero everywhere or not finite: there is nothing to fit")
    return data


def check_targets(
    recipe,
    targets: Iterable[str],
    count: int = 16,
    seed: int = 0,
    known: Iterable[str] = (),
    ordered: bool = False,
) -> dict[str, float]:
    """Shares of `count` images of a recipe that do not show each of `targets`, those left out that all show.

    What the recipe never varies is known, and what `known` names. An `UnobservableWarning` names the targets and what
    they go with, and those of which each image has two sets, unless the targets are `ordered`, the larger sigma first.
    InputError for a name that the recipe does not have.
    """
    targets, known = _listed(targets), _listed(known)
    batch = recipe.sample(count, seed, noise=False)
    information = fisher(recipe, batch.params, points=batch.substructure or None)
    for name in (*targets, *known):
        if name not in information.names:
            raise unknown("target" if name in targets else "parameter", name, information.names)
    drawn = recipe.draw(seed, 0) if recipe.kind == "roulette" else recipe.draw(seed, 0)[1]
    # of a whole chunk, because a few scenes can agree by chance
    known += tuple(name for name in information.names if name in drawn and (drawn[name] == drawn[name][0]).all())
    hidden = {name: torch.isinf(bound) for name, bound in information.bound(known).items()}
    shares = {name: float(hidden[name].double().mean()) for name in targets if name in hidden and hidden[name].any()}
    said = []
    for name, share in shares.items():
        nulls = information.null_directions(int(hidden[name].nonzero()[0, 0]), known)
        partners = next((null.words for null in nulls if name in null.steps), name)
        said.append(f"{name} ({share:.0%} of them: {partners})")
    said = [f"images of {recipe.name} do not show {', '.join(said)}"] if said else []
    if not ordered and _two_labels(recipe, set(targets), set(known)):
        said.append(
            f"each image of {recipe.name} has two labels, (sigma1, sigma2, theta) and (sigma2, sigma1, theta + 90), "
            "unless the targets keep sigma1 >= sigma2"
        )
    if said:
        warnings.warn("; ".join(said), UnobservableWarning, stacklevel=2)
    return shares


def _two_labels(recipe, targets: set[str], known: set[str]) -> bool:
    """Whether a recipe draws the axes of a source in either order, a quarter turn apart, and none of this is known."""
    names = {"sigma1", "sigma2", "theta"}
    if recipe.kind != "roulette" or recipe.sampling.source == "round" or names & known:
        return False
    return bool(names & targets) and recipe.sampling.theta[1] - recipe.sampling.theta[0] >= 90


class _Model:
    """A recipe's noise-free image and the deviation of its noise as functions of some parameters."""

    def __init__(self, recipe, params, names, points):
        self.recipe = recipe
        given = {name: torch.as_tensor(value) for name, value in params.items()}
        self.fixed = {name: value.double() for name, value in given.items() if value.is_floating_point()}
        if not self.fixed:
            raise InputError("no parameters: give those of a Batch")
        shapes = {tuple(value.shape) for value in self.fixed.values()}
        if len(shapes) > 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
            said = ", ".join(f"{name} {list(value.shape)}" for name, value in self.fixed.items())
            raise InputError(f"parameters need one value for each of n scenes, not the shapes {said}")
        known = parameters(recipe, self.fixed)
        self.names = _listed(names) if names is not None else known
        if not self.names:
            raise InputError(f"no names of parameters: give some of {', '.join(known)}")
        for name in self.names:
            if name not in self.fixed or name in _NOT_OF_THE_IMAGE:
                raise unknown("parameter", name, known)
        if recipe.kind == "roulette":
            recipe.check(self.fixed)
        elif recipe.instrument.noise.kind == "none":
            raise InputError(
                f"{recipe.name} has no noise, so that an image tells all: set kind, background_rms, exposure_time of "
                "instrument.noise"
            )
        self.values = torch.stack([self.fixed[name] for name in self.names], 1)
        self.count = len(self.values)
        self.points = {name: value.double() for name, value in (points or {}).items()}

    def derivatives(self, rows: slice, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images [n, p], their derivatives [n, k, p] and deviations [n, p] of some scenes."""
        values = self.values[rows] if values is None else values
        # always as many, so that one compiled function does
        pad = [0] * (_AT_ONCE - len(values) if self.recipe.kind == "lens" else 0)
        order = torch.tensor([*range(len(values)), *pad])
        fixed = {name: value[rows][order] for name, value in self.fixed.items()}
        points = {name: value[rows][order] for name, value in self.points.items()}
        with torch.no_grad(), warnings.catch_warnings():
            # torch speaks of parts of its own that it will drop, and of caches that it does without
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
            found = _derivatives(self.recipe, self.names, values[order], fixed, points)
        found = tuple(part[: len(values)] for part in found)
        bad = ~found[1].isfinite().flatten(1).all(1)
        if bad.any():
            raise InputError(f"the derivatives of image {rows.start + int(bad.nonzero()[0])} are not finite numbers")
        return found


@lru_cache
def _kernels():
    """What is costly, compiled where a compiler is at hand; apart, because a compiler that fuses the light into the
    blurring would compute it anew for every pixel of a point-spread function."""
    return compiled(_light_and_slopes), compiled(convolve)


def _light_and_slopes(recipe, names, values, fixed, points) -> Tensor:
    """Images before they are blurred and their derivatives, [1 + k, n, c, h, w]."""
    unblurred = EAGER._replace(blur=lambda images, profiles: images)

    def light(given):
        params = fixed | dict(zip(names, given.unbind(1), strict=True))
        return render_by(unblurred, recipe, params, points)

    def slope(step):
        return torch.func.jvp(light, (values,), (step.expand_as(values),))[1]

    steps = torch.eye(len(names), dtype=values.dtype, device=values.device)
    return torch.cat([light(values)[None], torch.func.vmap(slope)(steps)])


def _derivatives(recipe, names, values, fixed, points) -> tuple[Tensor, Tensor, Tensor]:
    """Images [n, p], derivatives [n, k, p] and deviations [n, p], in the units of the instrument."""
    if recipe.kind == "roulette":
        scenes = [{name: value[k : k + 1] for name, value in fixed.items()} for k in range(len(values))]
        flat = torch.stack([_roulette_slopes(recipe, names, *one) for one in zip(values, scenes, strict=True)], 1)
        deviation = torch.full_like(flat[0], (recipe.instrument.noise_sd**2 + ROUNDING_VARIANCE) ** 0.5)
    else:
        light, blur = _kernels()
        found = light(recipe, names, values, fixed, points)
        # blurring is linear: what holds for images holds for their derivatives
        channels = [
            blur(channel.flatten(0, 1), psf.profiles(recipe.instrument.pixel_scale)).view_as(channel)
            for channel, psf in zip(found.unbind(2), recipe.psfs(), strict=True)
        ]
        found = torch.stack(channels, 2)
        # never quite zero
        deviation = recipe.instrument.noise.deviation(found[0], fixed).clamp(min=1e-12)
        if recipe.instrument.divide_by_peak:
            found, deviation = _over_peak(found, deviation)
        flat, deviation = found.flatten(2), deviation.flatten(1)
    return flat[0], flat[1:].transpose(0, 1), deviation


def _roulette_slopes(recipe, names, values, fixed) -> Tensor:
    """An image and its derivatives, [1 + k, p]: only where there is light, and a tile of pixels at a time."""
    x, y = torch.broadcast_tensors(*axes(recipe.instrument.pixels, values))
    places = fixed | dict(zip(names, values[:, None], strict=True))
    picture = recipe.render(places).flatten()
    lit = (picture > _DARK).nonzero()[:, 0]
    found = torch.cat([picture[None], values.new_zeros(len(names), x.numel())])
    steps = torch.eye(len(names), dtype=values.dtype, device=values.device)
    for tile in lit.split(_TILE):
        at_x, at_y = x.flatten()[tile][None, None], y.flatten()[tile][None, None]

        def bright(given, at_x=at_x, at_y=at_y):
            given = fixed | dict(zip(names, given, strict=True))
            planes = {name: value.reshape(1, 1, 1) for name, value in given.items()}
            at_x, at_y = at_x + planes.get("centre_x", 0), at_y + planes.get("centre_y", 0)
            return roulette_light(recipe, planes, at_x, at_y)[0, 0]

        found[1:, tile] = torch.func.vmap(lambda step, of=bright: torch.func.jvp(of, (values,), (step,))[1])(steps)
    return found


def _over_peak(found: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Images, derivatives and deviations of what is divided by an image's brightest pixel."""
    flat = found.flatten(2)
    where = flat[0].argmax(1)[None, :, None].expand(len(flat), -1, 1)
    at_peak = flat.gather(2, where)[..., None, None]
    peak = at_peak[0]
    image = found[0] / peak
    return torch.cat([image[None], (found[1:] - image * at_peak[1:]) / peak]), deviation / peak
