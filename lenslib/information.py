"""What an image can tell: Fisher matrices of recipes, the Cramer-Rao bound, and what leaves an image as it is.

information = fisher(recipe, params)      # params as in Batch.params, double precision
information.bound()                       # smallest standard deviation of any unbiased estimate, by name
information.null_directions()             # "chi and einstein_radius together"

The matrix is F = J^T V^-1 J with the derivatives J of the noise-free image by forward-mode differentiation through the
simulator, and the variance V of each pixel's noise. That is all the information of Gaussian noise of known variance;
of photon noise it leaves out what the variance itself tells, little where a pixel has tens of counts. A matrix is
local: it does not see that two distant sets of parameters give one image.
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
from lenslib.optics import substructure_deflection
from lenslib.roulette_images import axes
from lenslib.roulette_images import light as roulette_light
from lenslib.simulate import _render, _scene

# of rounding to whole numbers, when what is rounded spans several of them
ROUNDING_VARIANCE = 1 / 12
# an eigenvalue of the scaled matrix below this is zero but for rounding
_NULL = 1e-11
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
    """A target that the images of a recipe do not show."""


@dataclass(frozen=True)
class NullDirection:
    """A change of parameters that an image does not show, to first order; `steps` maps names to amounts, the largest
    share of its parameter's scale first."""

    steps: dict[str, float]

    @property
    def words(self) -> str:
        names = list(self.steps)
        if len(names) == 1:
            return f"{names[0]} alone"
        return f"{', '.join(names[:-1])} and {names[-1]} together"


@dataclass(frozen=True)
class Fisher:
    """Fisher matrices of n images: names of the k parameters, their values [n, k], `matrix` [n, k, k], all float64."""

    names: tuple[str, ...]
    values: Tensor
    matrix: Tensor

    def bound(self, known: Iterable[str] = (), prior: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """The Cramer-Rao bound [n] of every parameter that is not `known`: infinite for what an image does not show.

        `prior` maps names to the standard deviations of what is known beside the image.
        """
        covariance, free, names = self._covariance(known, prior or {})
        bounds = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        bounds = torch.where(free, torch.inf, bounds)
        return {name: bounds[:, k] for k, name in enumerate(names)}

    def correlation(self, known: Iterable[str] = (), prior: Mapping[str, float] | None = None) -> Tensor:
        """Correlations [n, k, k] of the best estimates of what is not `known`; nan with what an image does not show."""
        covariance, free, _ = self._covariance(known, prior or {})
        deviations = covariance.diagonal(dim1=1, dim2=2).sqrt()
        found = covariance / (deviations[:, :, None] * deviations[:, None, :])
        return torch.where(free[:, :, None] | free[:, None, :], torch.nan, found)

    def null_directions(self, image: int = 0, known: Iterable[str] = ()) -> list[NullDirection]:
        """Independent changes of parameters that image number `image` does not show, each of as few as can be."""
        keep, names = self._keep(known)
        values, vectors, scale = _eigen(self.matrix[image][keep][:, keep][None])
        null = vectors[0][:, values[0] < _NULL]
        found = []
        for column in _sparse(null).T:
            step = {name: float(part / unit) for name, part, unit in zip(names, column, scale[0], strict=True)}
            largest = float(column.abs().max())
            kept = [name for name, part in zip(names, column, strict=True) if abs(float(part)) > 1e-3 * largest]
            found.append(NullDirection({name: step[name] for name in kept}))
        return found

    def rank(self, known: Iterable[str] = ()) -> Tensor:
        """Ranks [n], rounding apart."""
        keep, _ = self._keep(known)
        values, _, _ = _eigen(self.matrix[:, keep][:, :, keep])
        return (values >= _NULL).sum(1)

    def _keep(self, known) -> tuple[list[int], list[str]]:
        for name in known:
            if name not in self.names:
                raise unknown("parameter", name, self.names)
        keep = [k for k, name in enumerate(self.names) if name not in set(known)]
        return keep, [self.names[k] for k in keep]

    def _covariance(self, known, prior) -> tuple[Tensor, Tensor, list[str]]:
        keep, names = self._keep(known)
        matrix = self.matrix[:, keep][:, :, keep].clone()
        for name, deviation in prior.items():
            if name not in names:
                raise unknown("parameter", name, names)
            if not deviation > 0:
                raise InputError(f"the prior of {name} needs a standard deviation above 0, not {deviation!r}")
            matrix[:, names.index(name), names.index(name)] += deviation**-2
        values, vectors, scale = _eigen(matrix)
        null = values < _NULL
        inverse = torch.where(null, 0, 1 / values.clamp(min=_NULL))
        covariance = (vectors * inverse[:, None, :]) @ vectors.transpose(1, 2) / (scale[:, :, None] * scale[:, None, :])
        # what has a part in any null direction is free
        free = ((vectors**2) * null[:, None, :]).sum(2) > 1e-6
        return covariance, free, names


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and vectors of matrices [n, k, k] scaled to a diagonal of ones (or zeros), and the scales [n, k]."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    # a parameter that moves no pixel by more than rounding has no scale of its own
    scale = torch.where(diagonal > 1e-20, diagonal, 1).sqrt()
    scaled = torch.where(diagonal > 1e-20, 1.0, 0.0)
    scaled = scaled[:, :, None] * matrix / (scale[:, :, None] * scale[:, None, :]) * scaled[:, None, :]
    return *torch.linalg.eigh(scaled), scale


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
    Raises InputError for an unknown name, a scene that has no image, and a recipe without noise, of whose images
    everything could be told.
    """
    model = _Model(recipe, params, names, points)
    matrices = []
    for part in range(0, model.count, _AT_ONCE):
        _, slopes, deviation = model.derivatives(slice(part, part + _AT_ONCE))
        white = slopes / deviation[:, None]
        matrices.append(white @ white.transpose(1, 2))
    return Fisher(model.names, model.values, torch.cat(matrices))


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
    images of the wrong shape and directions that the images do not show."""
    model = _Model(recipe, params, names, points)
    data = images.double().flatten(1)
    if len(data) != model.count:
        raise InputError(f"{len(data)} images and {model.count} scenes to start from: give one for each")
    found = []
    for part in range(0, model.count, _AT_ONCE):
        rows = slice(part, part + _AT_ONCE)
        values = model.values[rows].clone()
        for _ in range(steps):
            mean, slopes, deviation = model.derivatives(rows, values)
            if mean.shape != data[rows].shape:
                raise InputError(f"images have {data.shape[1]} pixels, and those of {recipe.name} {mean.shape[1]}")
            white, rest = slopes / deviation[:, None], (data[rows] - mean) / deviation
            matrix = white @ white.transpose(1, 2)
            if (Fisher(model.names, values, matrix).rank() < len(model.names)).any():
                raise InputError("the images do not show all that is to be fitted: leave out some of the names")
            values = values + torch.linalg.solve(matrix, (white @ rest[:, :, None])[..., 0])
        found.append(values)
    return dict(zip(model.names, torch.cat(found).T, strict=True))


def check_targets(recipe, targets: Iterable[str], count: int = 16, seed: int = 0) -> dict[str, float]:
    """Shares of `count` images of a recipe that do not show each of `targets`, those left out that all show.

    An `UnobservableWarning` names them and what they go with. InputError for a name that the recipe does not have.
    """
    batch = recipe.sample(count, seed, noise=False)
    information = fisher(recipe, batch.params, points=batch.substructure or None)
    shares, partners = {}, {}
    bounds = information.bound()
    for target in targets:
        if target not in bounds:
            raise unknown("target", target, information.names)
        share = float(torch.isinf(bounds[target]).double().mean())
        if share:
            shares[target] = share
            first = int(torch.isinf(bounds[target]).nonzero()[0, 0])
            words = [part.words for part in information.null_directions(first) if target in part.steps]
            partners[target] = words[0] if words else target
    if shares:
        said = ", ".join(f"{name} ({share:.0%} of them: {partners[name]})" for name, share in shares.items())
        warnings.warn(f"images of {recipe.name} do not show {said}", UnobservableWarning, stacklevel=2)
    return shares


class _Model:
    """A recipe's noise-free image and the deviation of its noise as functions of some parameters."""

    def __init__(self, recipe, params, names, points):
        self.recipe = recipe
        self.fixed = {name: value.double() for name, value in params.items() if value.is_floating_point()}
        if not self.fixed:
            raise InputError("no parameters: give those of a Batch")
        known = parameters(recipe, self.fixed)
        self.names = tuple(names if names is not None else known)
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
        return tuple(part[: len(values)] for part in found)


@lru_cache
def _kernels():
    """What is costly, compiled where a compiler is at hand; apart, because a compiler that fuses the light into the
    blurring would compute it anew for every pixel of a point-spread function."""
    return compiled(_light_and_slopes), compiled(convolve)


def _light_and_slopes(recipe, names, values, fixed, points) -> Tensor:
    """Images before they are blurred and their derivatives, [1 + k, n, c, h, w]."""

    def light(given):
        params = fixed | dict(zip(names, given.unbind(1), strict=True))
        return _render(recipe, params, points, _scene, substructure_deflection, lambda images, profiles: images)

    def slope(step):
        return torch.func.jvp(light, (values,), (step.expand_as(values),))[1]

    steps = torch.eye(len(names), dtype=values.dtype, device=values.device)
    return torch.cat([light(values)[None], torch.func.vmap(slope)(steps)])


def _derivatives(recipe, names, values, fixed, points) -> tuple[Tensor, Tensor, Tensor]:
    """Images [n, p], derivatives [n, k, p] and deviations [n, p], in the units of the instrument."""
    if recipe.kind == "roulette":
        scenes = [{name: value[i : i + 1] for name, value in fixed.items()} for i in range(len(values))]
        parts = [_roulette_slopes(recipe, names, one, scene) for one, scene in zip(values, scenes, strict=True)]
        flat = torch.stack(parts, 1)
        variance = recipe.instrument.noise_sd**2 + ROUNDING_VARIANCE
        deviation = torch.full_like(flat[0], variance**0.5)
    else:
        light, blur = _kernels()
        found = light(recipe, names, values, fixed, points)
        # blurring is linear: what holds for images holds for their derivatives
        channels = [
            blur(channel.flatten(0, 1), psf.profiles(recipe.instrument.pixel_scale)).view_as(channel)
            for channel, psf in zip(found.unbind(2), recipe.psfs(), strict=True)
        ]
        found = torch.stack(channels, 2)
        deviation = _deviation(recipe, found[0], fixed)
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
            params = {
                name: value[:, None, None]
                for name, value in (fixed | dict(zip(names, given[:, None], strict=True))).items()
            }
            return roulette_light(recipe, params, at_x + params.get("centre_x", 0), at_y + params.get("centre_y", 0))[
                0, 0
            ]

        found[1:, tile] = torch.func.vmap(lambda step, bright=bright: torch.func.jvp(bright, (values,), (step,))[1])(
            steps
        )
    return found


def _deviation(recipe, images: Tensor, params) -> Tensor:
    """Standard deviation of every pixel's noise, never quite zero."""
    return recipe.instrument.noise.deviation(images, params).clamp(min=1e-12)


def _over_peak(found: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Images, derivatives and deviations of what is divided by an image's brightest pixel."""
    flat = found.flatten(2)
    where = flat[0].argmax(1)[None, :, None].expand(len(flat), -1, 1)
    at_peak = flat.gather(2, where)[..., None, None]
    peak = at_peak[0]
    image = found[0] / peak
    return torch.cat([image[None], (found[1:] - image * at_peak[1:]) / peak]), deviation / peak
