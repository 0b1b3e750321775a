"""Images of CosmoSim's lenses and sources as functions of numbers to be fitted: smooth ones with their slopes, and
those that a camera reads from a bitmap of the source.
"""

from copy import copy
from functools import lru_cache, partial

import torch
from torch import Tensor

from lenslib import roulettes
from lenslib.compilation import compiled
from lenslib.errors import InputError
from lenslib.refine import CENTRE, SLOTS
from lenslib.roulette_images import axes, light
from lenslib.roulette_recipe import RouletteRecipe, missing

# of rounding to whole grey levels, and of reading a bitmap anywhere within a pixel, along each of its sides
UNIFORM = 1 / 12
# where a ray reads the bitmap, on average, from where it ends: CosmoSim's goes to the left and above
_SHIFTS = {"exact": (0.0, 0.0), "round": (0.0, 0.0), "floor": (-0.5, 0.5)}
# terms of a series that is the lens itself where it converges, as far as slopes go
_MANY_TERMS = 16
# pixels (or degrees) in a unit of the fitted numbers, so that all are known to about as many digits
UNIT = 40.0
# pixels a side of the image that tells where the light's centre is: of many scenes, and of one that is fitted
COARSE, FINE = 40, 200
# images at a time, where there are not `SLOTS` of them
_FEW = 4


class RouletteModel:
    """Expected images as a function of the fitted numbers [n, k]: x, y, einstein_radius, of an ellipsoid axis_ratio
    and orientation, of a centred image centre_x and centre_y (in units of `UNIT`), and of the source the logarithm of
    the mean of its axes and its ellipticity ln(sigma1 / sigma2) / 2 (cos 2 theta, sin 2 theta), smooth at round ones.
    """

    fixed_shape = False
    # a damping that hardly holds a step back in a valley as narrow as where the camera's place and the lens's trade
    free = 1e-6

    def __init__(self, recipe: RouletteRecipe, compiled: bool = False):
        if recipe.sampling.chi[0] != recipe.sampling.chi[1]:
            raise InputError(
                f"{recipe.name} varies chi, and an image shows einstein_radius / chi alone: give sampling.chi one value"
            )
        if (recipe.lens.terms or _MANY_TERMS) < _MANY_TERMS:
            raise InputError(
                f"{recipe.name}: a series of {recipe.lens.terms} terms is not yet the lens; a fit needs {_MANY_TERMS}"
            )
        self.compiled, self.recipe, self.chi = compiled, recipe, float(recipe.sampling.chi[0])
        lens = ("axis_ratio", "orientation") if recipe.lens.profile == "sie" else ()
        places = CENTRE if recipe.instrument.centring != "none" else ()
        self.lens_names = ("x", "y", "einstein_radius", *lens, *places)
        self.numbers_names = (*self.lens_names, "size", "g1", "g2")
        self.names = (*self.lens_names, "sigma1", "sigma2", "theta")
        self.low, self.high = torch.tensor([_bounds(recipe, name) for name in self.numbers_names]).unbind(1)
        x, y = torch.broadcast_tensors(*axes(recipe.instrument.pixels, torch.zeros(())))
        self.x, self.y = x.flatten(), y.flatten()
        self.frozen: tuple[int, ...] = ()

    def at(self, pixels: Tensor | slice) -> "RouletteModel":
        """The same at some pixels [n, p] of n images, indices into a flattened frame, or a part of such pixels."""
        model = copy(self)
        model.x, model.y = self.x[..., pixels], self.y[..., pixels]
        return model

    def rows(self, rows: Tensor) -> "RouletteModel":
        """The same for some of the images, where each has pixels of its own."""
        if self.x.ndim == 1:
            return self
        model = copy(self)
        model.x, model.y = self.x[rows], self.y[rows]
        return model

    def freeze(self, *names: str) -> "RouletteModel":
        """The same with some of the lens's numbers held."""
        model = copy(self)
        model.frozen = tuple(map(self.lens_names.index, names))
        return model

    def scaled(self, numbers: Tensor, einstein_radius: Tensor) -> Tensor:
        """Numbers [n, k] with another Einstein radius [n] and the source as many times farther: what is seen stays as
        large, as stretched, and amid the camera, and is bent otherwise."""
        x, y, radius, *places = (self.lens_names.index(name) for name in ("x", "y", "einstein_radius", *CENTRE))
        given, numbers = _lens(self.lens_names, numbers), numbers.clone()
        times = einstein_radius / given["einstein_radius"]
        nu = torch.stack(
            roulettes.image_position(self.recipe.lens.profile, given | {"chi": torch.full_like(times, self.chi)}), 1
        )
        numbers[:, [x, y, radius]] *= times[:, None]
        numbers[:, places] += (times - 1)[:, None] * nu / UNIT
        return self.bounded(numbers)

    def pack(self, params: dict[str, Tensor]) -> Tensor:
        """Fitted numbers [n, k]; where the camera's place is not among `params`, it is where the light's centre is."""
        missing(params, tuple(name for name in self.names if name not in CENTRE))
        given = {name: value.float() for name, value in params.items()}
        one, two = given["sigma1"].clamp(min=1).log(), given["sigma2"].clamp(min=1).log()
        twice = torch.deg2rad(2 * given["theta"])
        shape = ((one + two) / 2, (one - two) / 2 * torch.cos(twice), (one - two) / 2 * torch.sin(twice))
        zero = torch.zeros_like(one)
        # a source right behind the lens has a ring for an image, and no place to expand about
        given["x"] = given["x"] + ((given["x"] == 0) & (given["y"] == 0))
        lens = [given.get(name, zero) / _unit(name) for name in self.lens_names]
        numbers = torch.stack([*lens, *shape], 1)
        numbers = self.bounded(numbers)
        return numbers if "centre_x" not in self.lens_names or "centre_x" in given else self.centred(numbers)

    def unpack(self, numbers: Tensor) -> dict[str, Tensor]:
        """Parameters by name, each [n], with sigma1 >= sigma2 and theta from 0 to 180."""
        found, (size, g1, g2) = _lens(self.lens_names, numbers), numbers[:, -3:].unbind(1)
        half = torch.hypot(g1, g2)
        theta = torch.remainder(torch.rad2deg(torch.atan2(g2, g1)) / 2, 180)
        return found | {"sigma1": torch.exp(size + half), "sigma2": torch.exp(size - half), "theta": theta}

    def units(self, numbers: Tensor) -> Tensor:
        """Derivatives [n, k, k] of `names` by the fitted numbers; the angle of a round source has a huge one."""
        one, two, _ = (self.unpack(numbers)[name] for name in ("sigma1", "sigma2", "theta"))
        g1, g2 = numbers[:, -2], numbers[:, -1]
        half = torch.hypot(g1, g2).clamp(min=1e-4)
        zero, cos, sin = torch.zeros_like(g1), g1 / half, g2 / half
        turn = torch.rad2deg(0.5 / half)
        rows = [(one, one * cos, one * sin), (two, -two * cos, -two * sin), (zero, -turn * sin, turn * cos)]
        found = torch.tensor([*map(_unit, self.lens_names), 1, 1, 1]).diag().repeat(len(numbers), 1, 1)
        found[:, -3:, -3:] = torch.stack([torch.stack(row, 1) for row in rows], 1)
        return found

    def bounded(self, numbers: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(numbers, self.low), self.high)

    def images(self, numbers: Tensor) -> Tensor:
        """[n, pixels], of light read exactly, on average."""
        return self.images_and_variances(numbers)[0]

    def beyond(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """How far the source's distance and the Einstein radius are outside what the recipe draws, in quarters of
        a pixel, [n, 2], and the slopes of this, [n, k, 2]."""
        draws = self.recipe.sampling
        nearest, farthest = (pick(draws.radius[i], draws.radius_again[i]) for i, pick in enumerate((min, max)))
        ranges = torch.tensor([(nearest, farthest), draws.einstein_radius]) / UNIT
        x, y, radius = (self.lens_names.index(name) for name in ("x", "y", "einstein_radius"))
        distance = torch.hypot(numbers[:, x], numbers[:, y]).clamp(min=1e-6)
        here, unit = torch.stack([distance, numbers[:, radius]], 1), 0.25 / UNIT
        outside = (here - here.clamp(ranges[:, 0], ranges[:, 1])) / unit
        slopes = torch.zeros(*numbers.shape, 2)
        slopes[:, [x, y], 0], slopes[:, radius, 1] = numbers[:, [x, y]] / distance[:, None], 1.0
        return outside, slopes / unit * (outside != 0)[:, None]

    def images_and_variances(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [n, pixels], the variance of noise and rounding, and what the bitmap adds to it, of the same shape."""
        return self._run(0, self._plan, numbers)

    def images_at(self, numbers: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """[n, pixels], of light read exactly, at pixels (x, y) from the camera's place."""
        return _smooth(self._plan, numbers, x, y)[0]

    def with_noise(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `images_and_variances`, and slopes [n, k, pixels]."""
        *found, slopes = self._run(1, self._plan, numbers)
        slopes[:, list(self.frozen)] = 0
        return *found, slopes

    def bitmap(self, numbers: Tensor) -> Tensor:
        """Images [n, pixels] as the recipe's camera reads them, on average over its noise."""
        return self._run(2, self._exact_plan, numbers)[0]

    def _run(self, kernel: int, plan, numbers: Tensor) -> tuple[Tensor, ...]:
        """A kernel for any number of images: in two sizes, because each is compiled for."""
        if not self.compiled or len(numbers) > SLOTS:
            return _FUNCTIONS[kernel](plan, numbers, self.x, self.y)
        count = len(numbers)
        size = _FEW if count <= _FEW else SLOTS
        numbers, x, y = (_filled(part, size) if part.ndim == 2 else part for part in (numbers, self.x, self.y))
        return tuple(part[:count] for part in _kernels()[kernel](plan, numbers, x, y))

    @property
    def _plan(self):
        """What shapes the images besides numbers: plain values, since kernels are compiled for each."""
        camera = self.recipe.instrument
        return self.recipe.lens.profile, self.lens_names, self.chi, camera.masked, camera.lookup, camera.noise_sd

    @property
    def _exact_plan(self):
        return self.recipe, self.lens_names, self.chi

    def centred(self, numbers: Tensor, side: int = COARSE) -> Tensor:
        """The numbers with the camera at the centre of light, by an image of the whole, `side` pixels wide."""
        places = [self.lens_names.index(name) for name in ("centre_x", "centre_y")]
        params = self.unpack(numbers) | {"chi": torch.tensor(self.chi)}
        nu = torch.stack(roulettes.image_position(self.recipe.lens.profile, params), 1)
        source, b = torch.hypot(params["x"], params["y"]), roulettes.ring_radius(params)
        # an image is stretched most along the ring; one that is not masked can lie on the lens's other side
        reach = 4 * params["sigma1"] * (1 + b / source) + (0 if self.recipe.instrument.masked else 2 * b)
        unit = torch.linspace(-1, 1, side)
        grid = [part.flatten() for part in torch.meshgrid(unit, unit, indexing="xy")]
        numbers = numbers.clone()
        numbers[:, places] = nu / UNIT
        for rows in torch.arange(len(numbers)).split(max(1, 100_000 // side**2)):
            x, y = (reach[rows, None] * part for part in grid)
            # noise that is cut off at zero would shine everywhere
            shown = _smooth((*self._plan[:-1], 0.0), numbers[rows], x, y)[0] + 1e-9
            shift = torch.stack([(shown * x).sum(1), (shown * y).sum(1)], 1) / shown.sum(1, keepdim=True)
            numbers[rows[:, None], torch.tensor(places)] += shift / UNIT
        return nearest_place(self, numbers)


def _filled(values: Tensor, size: int) -> Tensor:
    """Values [n, k] with the last repeated: [size, k]."""
    return torch.cat([values, values[-1:].expand(size - len(values), -1)])


def _bounds(recipe: RouletteRecipe, name: str) -> tuple[float, float]:
    """Of a fitted number: half as far again as the recipe draws, so that no fit ends at a lens of another kind."""
    draws, half = recipe.sampling, 0.75 * recipe.instrument.frame
    farthest = 1.5 * max(draws.radius[1], draws.radius_again[1])
    low, high = draws.einstein_radius
    shape = {"size": (0.0, 6.0), "g1": (-2.0, 2.0), "g2": (-2.0, 2.0), "axis_ratio": (0.02, 0.98)}
    lens = {"x": (-farthest, farthest), "y": (-farthest, farthest), "einstein_radius": (low / 2, 1.5 * high)}
    if name in shape:
        return shape[name]
    low, high = lens.get(name, (-half, half))
    return low / UNIT, high / UNIT


def _unit(name: str) -> float:
    return 1.0 if name == "axis_ratio" else UNIT


def _lens(names: tuple[str, ...], numbers: Tensor) -> dict[str, Tensor]:
    """Lens and camera [n], by name, in pixels and degrees."""
    return {name: value * _unit(name) for name, value in zip(names, numbers.unbind(1), strict=False)}


def _smooth(plan, numbers, x, y, slopes: bool = False):
    """Images [n, pixels] of a Gaussian source where a bitmap is read on average, clipped as the camera does, the
    variance of noise and rounding, and what reading the bitmap adds to it; with `slopes`, the derivatives of the images
    [n, k, pixels] as well.

    By the chain rule from where a ray ends to what is there. Of a lens whose series converges, every ray is followed.
    """
    profile, names, chi, masked, lookup, noise = plan
    given = {name: value[:, None] for name, value in _lens(names, numbers).items()}
    given["chi"] = torch.full_like(given["x"], chi)
    x, y = x + given.get("centre_x", 0), y + given.get("centre_y", 0)
    nu = roulettes.image_position(profile, given)
    inside = roulettes.converges(profile, given, nu, x, y) if masked else torch.ones_like(x, dtype=torch.bool)
    x, y = torch.where(inside, x, nu[0]), torch.where(inside, y, nu[1])
    pull_x, pull_y = roulettes.deflection(profile, given, x, y)
    left, up = _shift(lookup, given)
    at_x, at_y = x - pull_x - given["x"] + left, y - pull_y - given["y"] + up
    # the inverse of the source's covariance: exp(-2 size) exp(-2 G), G the symmetric matrix of the ellipticity
    size, g1, g2 = (value[:, None] for value in numbers[:, -3:].unbind(1))
    squared = g1**2 + g2**2 + 1e-12
    half = torch.sqrt(squared)
    scale, even, odd = torch.exp(-2 * size), torch.cosh(2 * half), torch.sinh(2 * half) / half
    down_x = scale * ((even - odd * g1) * at_x - odd * g2 * at_y)
    down_y = scale * ((even + odd * g1) * at_y - odd * g2 * at_x)
    found = 255 * torch.exp(-0.5 * (at_x * down_x + at_y * down_y)) * inside
    # pixels that read one pixel of the bitmap err together, as many as the image is stretched by
    stretch = 1 + roulettes.ring_radius(given) / torch.sqrt(given["x"] ** 2 + given["y"] ** 2)
    scatter = (0 if lookup == "exact" else UNIFORM) * stretch * found**2 * (down_x**2 + down_y**2)
    shown, spread, passed = _clipped(found, noise) if noise else (found, torch.zeros_like(found), 1)
    variances = spread + UNIFORM, scatter
    if not slopes:
        return shown, *variances
    steps = {"x": (-1.0, 0.0), "y": (0.0, -1.0)}
    power = -2 if profile == "pm" else -1
    steps["einstein_radius"] = tuple(power * pull / given["einstein_radius"] for pull in (pull_x, pull_y))
    for name, moves in (("centre_x", "x"), ("centre_y", "y"), ("axis_ratio",) * 2, ("orientation",) * 2):
        if name in names:
            steps[name] = _step_of_ray(profile, given, x, y, moves)
    moved = [-(down_x * steps[name][0] + down_y * steps[name][1]) * _unit(name) for name in names]
    along, across, ring = at_x**2 - at_y**2, 2 * at_x * at_y, at_x**2 + at_y**2
    bent = (2 * even - odd) / squared * (g1 * along + g2 * across)
    shape = [at_x * down_x + at_y * down_y]
    shape += [0.5 * scale * (odd * part - g * (2 * odd * ring - bent)) for g, part in ((g1, along), (g2, across))]
    return shown, *variances, torch.stack([found * passed * slope for slope in (*moved, *shape)], 1)


def _step_of_ray(profile: str, given: dict[str, Tensor], x: Tensor, y: Tensor, name: str):
    """How the end of a ray at pixel (x, y) moves with x, y or a parameter of the lens."""
    kinds = {"x": x, "y": y} | {name: given[name] for name in ("axis_ratio", "orientation") if name in given}

    def ray(value):
        place = kinds | {name: value}
        pull_x, pull_y = roulettes.deflection(profile, given | place, place["x"], place["y"])
        return place["x"] - pull_x, place["y"] - pull_y

    return torch.func.jvp(ray, (kinds[name],), (torch.ones_like(kinds[name]),))[1]


def _shift(lookup: str, given: dict[str, Tensor]):
    """Where light is read, on average, from where a ray ends; of a picture turned afterwards, turned as well.

    That it turns a little with the source's place is left out of the slopes."""
    if lookup != "turned":
        return _SHIFTS[lookup]
    radius = torch.sqrt(given["x"] ** 2 + given["y"] ** 2)
    cos, sin = given["x"] / radius, given["y"] / radius
    left, up = _SHIFTS["floor"]
    return left * cos - up * sin, left * sin + up * cos


def _clipped(light: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of light with Gaussian noise, when what is below 0 or above 255 is set to these, and the
    derivative of the mean by the light."""
    low, high = -light / noise, (255 - light) / noise
    inside = torch.special.ndtr(high) - torch.special.ndtr(low)
    at_low, at_high = (torch.exp(-0.5 * edge**2) / (2 * torch.pi) ** 0.5 for edge in (low, high))
    above = torch.special.ndtr(-high)
    mean = light * inside + noise * (at_low - at_high) + 255 * above
    square = (light**2 + noise**2) * inside + noise * (light * at_low - (light + 255) * at_high) + 255**2 * above
    return mean, square - mean**2, inside


def _read(plan, numbers, x, y) -> tuple[Tensor]:
    """Images [n, pixels] as the recipe's camera reads them, on average over noise."""
    recipe, names, chi = plan
    given = {name: value[:, None] for name, value in _lens(names, numbers).items()}
    given["chi"] = torch.full_like(given["x"], chi)
    size, g1, g2 = (value[:, None] for value in numbers[:, -3:].unbind(1))
    half = torch.sqrt(g1**2 + g2**2)
    given |= {"sigma1": torch.exp(size + half), "sigma2": torch.exp(size - half)}
    given["theta"] = torch.rad2deg(torch.atan2(g2, g1)) / 2
    x, y = x + given.get("centre_x", 0), y + given.get("centre_y", 0)
    found = light(recipe, given, x, y, recipe.instrument.lookup)
    noise = recipe.instrument.noise_sd
    return (_clipped(found, noise)[0] if noise else found,)


_FUNCTIONS = (_smooth, partial(_smooth, slopes=True), _read)


@lru_cache
def _kernels():
    """Compiled for images of any size."""
    return [compiled(function, dynamic=True) for function in _FUNCTIONS]


def nearest_place(model: RouletteModel, numbers: Tensor) -> Tensor:
    """The numbers with the camera at the nearest whole place."""
    at, numbers = [model.lens_names.index(name) for name in ("centre_x", "centre_y")], numbers.clone()
    numbers[:, at] = (numbers[:, at] * UNIT).round() / UNIT
    return numbers
