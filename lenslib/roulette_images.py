"""The light of roulette recipes: what the source looks like through the lens, differentiable; and which scenes have no
image. The camera, which draws data sets, is `lenslib.roulette_camera`.
"""

import torch
from torch import Tensor

from lenslib import roulettes
from lenslib.errors import InputError
from lenslib.roulette_recipe import RouletteRecipe, missing


def gaussian(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Grey levels, 255 at the peak, of the source at (x, y) from its centre; sigma1 is along theta (degrees).

    Angles are first brought into 0 to 90 degrees, and the two axes enter by the sum and the difference of their
    inverse squares, so that a half turn, or a quarter turn with the axes exchanged, changes not one bit, and the angle
    of a round source is multiplied by a zero.
    """
    theta = torch.remainder(params["theta"], 180)
    turned = theta >= 90
    double = torch.deg2rad(2 * (theta - 90 * turned))
    sign = 1 - 2 * turned.to(theta.dtype)
    one, two = params["sigma1"] ** -2, params["sigma2"] ** -2
    along = torch.cos(double) * (x**2 - y**2) + 2 * torch.sin(double) * (x * y)
    return 255 * torch.exp(-0.25 * ((one + two) * (x**2 + y**2) + sign * (one - two) * along))


def source_offset(recipe: RouletteRecipe, params: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays at image pixels (x, y) meet the source plane, from the centre of the source; params broadcast."""
    lens = recipe.lens
    if lens.model == "raytrace":
        pull_x, pull_y = roulettes.deflection(lens.profile, params, x, y)
        return x - pull_x - params["x"], y - pull_y - params["y"]
    nu_x, nu_y = roulettes.image_position(lens.profile, params)
    if lens.profile == "sie":
        # factorials soon leave single precision
        one = {name: value.reshape(-1).double() for name, value in params.items()}
        shape = one["axis_ratio"], one["orientation"]
        place = nu_x.reshape(-1).double(), nu_y.reshape(-1).double()
        amplitudes = roulettes.sie_amplitudes(roulettes.ring_radius(one), *place, lens.terms, *shape)
        found = roulettes.roulette_map(amplitudes, (x - nu_x).double(), (y - nu_y).double())
        return tuple(value.to(nu_x.dtype) for value in found)
    series = roulettes.sis_roulette if lens.profile == "sis" else roulettes.pm_roulette
    return series(roulettes.ring_radius(params), nu_x, nu_y, x - nu_x, y - nu_y, lens.terms)


def light(recipe: RouletteRecipe, params: dict[str, Tensor], x: Tensor, y: Tensor, lookup: str = "exact") -> Tensor:
    """Grey levels, not rounded, of image pixels (x, y) from the lens; params broadcast against them.

    `lookup` is where a ray reads the source: as `Frame` says, `turned` being `floor` in frames that are turned already.
    """
    masked = recipe.instrument.masked
    if masked:
        nu = roulettes.image_position(recipe.lens.profile, params)
        inside = roulettes.converges(recipe.lens.profile, params, nu, x, y)
        # a series that diverges is not summed: infinities would come through in derivatives
        x, y = torch.where(inside, x, nu[0]), torch.where(inside, y, nu[1])
    at_x, at_y = source_offset(recipe, params, x, y)
    if lookup in ("floor", "turned"):
        # rows of CosmoSim's bitmap grow downwards
        at_x, at_y = torch.floor(at_x), torch.ceil(at_y)
    elif lookup == "round":
        at_x, at_y = torch.round(at_x), torch.round(at_y)
    found = gaussian(params, at_x, at_y)
    return found * inside if masked else found


def axes(pixels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, pixels] and y [pixels, 1] of an image with the lens in its middle: column w/2, row h/2 - 1."""
    steps = torch.arange(pixels, dtype=like.dtype, device=like.device)
    return (steps - pixels // 2)[None, :], (steps - (pixels // 2 - 1))[:, None]


def render(recipe: RouletteRecipe, params: dict[str, Tensor], lookup: str = "exact") -> Tensor:
    """Images [n, 1, pixels, pixels] in grey levels that are not rounded; differentiable, in the precision of `params`.

    `params` has each of `recipe.targets` [n] and, where the image is not centred on the lens, centre_x and centre_y.
    InputError for a name that is missing.
    """
    missing(params, recipe.targets)
    planes = {name: value[:, None, None] for name, value in params.items()}
    x, y = axes(recipe.instrument.pixels, params["x"])
    x, y = x + planes.get("centre_x", 0), y + planes.get("centre_y", 0)
    return light(recipe, planes, x, y, lookup)[:, None]


def check_params(recipe: RouletteRecipe, params: dict[str, Tensor]) -> None:
    """See `RouletteRecipe.check`."""
    missing(params, recipe.targets)
    for name in recipe.targets:
        if not torch.isfinite(params[name]).all():
            raise InputError(f"{name} is not a finite number in every image")
    for name in ("sigma1", "sigma2", "chi", *(("axis_ratio",) if recipe.lens.profile == "sie" else ())):
        if (params[name] <= 0).any():
            raise InputError(f"{name} must be above 0, not {float(params[name].min()):g}")
    if recipe.lens.profile == "sie" and (params["axis_ratio"] >= 1).any():
        raise InputError(f"axis_ratio must be below 1, not {float(params['axis_ratio'].max()):g}: use the profile sis")
    if ((params["x"] == 0) & (params["y"] == 0)).any():
        raise InputError("a source right behind the lens has a ring for an image, and no place to expand about")
    nu_x, nu_y = roulettes.image_position(recipe.lens.profile, params)
    farthest, half = float(torch.hypot(nu_x, nu_y).max()), recipe.instrument.frame / 2
    if farthest >= half:
        raise InputError(f"an image {farthest:.1f} pixels from the lens is outside the frame, which ends at {half:g}")
    if recipe.lens.model == "roulette":
        _check_ring(recipe, params, nu_x, nu_y)


def _check_ring(recipe, params, nu_x, nu_y) -> None:
    """InputError where a source is seen at the edge of the region in which the series converges."""
    planes, nu_x, nu_y = {name: value[:, None] for name, value in params.items()}, nu_x[:, None], nu_y[:, None]
    # between the directions that would meet the lens's centre, where its pull has none
    steps = torch.arange(720, dtype=nu_x.dtype, device=nu_x.device) + 0.5
    turn = torch.atan2(nu_y, nu_x) + steps * (2 * torch.pi / 720)
    radius = torch.hypot(nu_x, nu_y)
    if recipe.lens.profile == "sie":
        # the ellipse of `converges`, within the disc
        angle = torch.deg2rad(planes["orientation"])
        along = torch.cos(angle) * nu_x + torch.sin(angle) * nu_y
        across = torch.cos(angle) * nu_y - torch.sin(angle) * nu_x
        size, flat = along**2 + planes["axis_ratio"] ** 2 * across**2, planes["axis_ratio"] ** 2
        bent = torch.cos(turn - angle) ** 2 + flat * torch.sin(turn - angle) ** 2
        radius = torch.minimum(radius, torch.sqrt(size / bent))
    x, y = nu_x + radius * torch.cos(turn), nu_y + radius * torch.sin(turn)
    pull_x, pull_y = roulettes.deflection(recipe.lens.profile, planes, x, y)
    seen = gaussian(planes, x - pull_x - planes["x"], y - pull_y - planes["y"]).amax(1)
    if (seen >= 1).any():
        k = int(seen.argmax())
        raise InputError(
            f"the source of image {k} lies outside the ring of convergence in part: it has {float(seen[k]):.0f} of 255 "
            "grey levels on the ring; make it smaller or move it outwards"
        )
