"""CosmoSim's lenses and sources fitted to images: first as if light were read exactly, then through the bitmap.

templates = RouletteTemplates(recipe)             # scenes from the recipe's own sampling
fit = refine_roulettes(recipe, images, templates.starts(images))

A ray reads the source from the nearest pixel of a bitmap, so that an image jumps where its parameters move smoothly.
The first fit has the mean of those jumps for its model and their scatter for noise; the second takes its steps by the
slopes of the first, and its images from the bitmap, while that noise is lowered to nothing: once a fit is near, a jump
left over is a pixel that still reads its neighbour, and tells more than any smooth image could. Where the camera was
moved by whole pixels, and by how many, `roulette_search` looks for in between.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lenslib.refine import CENTRE, SLOTS, Fit, best_of, check_images, conclude, inverse, joined, packed, take_over
from lenslib.roulette_model import FINE, UNIT, RouletteModel, nearest_place
from lenslib.roulette_pixels import (
    COOLING,
    Seen,
    curvature,
    drawn_scenes,
    explained,
    first_noise,
    noise_of,
    parts_of,
    polish,
    seen_at,
    smooth_fit,
    worth,
)
from lenslib.roulette_recipe import RouletteRecipe
from lenslib.roulette_search import places

# pixels that a search looks at
_ENOUGH = 4096
# shares of the bitmap's scatter that a fit may leave for good, where it still reads some pixels' neighbours
_LEFT = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
# lenses whose jumps are drawn, at most `SLOTS`, and how often, each time as far about the fit as the last time told
_DRAWS, _ROUNDS = 16, 2
# images from which on the half minute is worth it that compiling takes
_WORTH_COMPILING = 48
# pixels a side of a template; where an estimate led to no good fit, how many are searched, and the best tried
_TEMPLATE, _SEARCHED, _TRIED = 50, 2048, 4


@torch.no_grad()
def refine_roulettes(
    recipe: RouletteRecipe,
    images: Tensor,
    starts: Tensor | dict[str, Tensor],
    steps: int = 100,
    evolutions: int = 5,
    progress: bool = False,
) -> Fit:
    """Fit lens and source to images [n, 1, h, w] in grey levels, as the recipe's camera writes them.

    `starts`: parameters by name, each [n] (a network's estimate), or fitted numbers [n, s, k]
    (`RouletteTemplates.starts`), of which the next is tried where the one before led to no good fit of light read
    exactly; where an estimate did not, a search begins. Where the camera was moved by whole pixels and an image without
    noise tells by how many, they are taken as known, with deviations of 0; while there is doubt, the search goes on, at
    last with so many `evolutions` of seconds each. Fits keep to the Einstein radii and distances that the recipe draws.

    Fits that explain the image through the bitmap have the deviations of rounding alone. Those of noisy images, which
    hide the bitmap, hold its jumps as well; those of other images, and of images turned after they were read, take its
    jumps for independent: too narrow where a lens hardly bends. A fit that has not converged is flagged, not hidden.
    Raises InputError for images that are not finite, of one brightness, or not of the recipe's size, for starts that do
    not fit the images, and recipes that vary chi.
    """
    check_images(recipe, images)
    whole = RouletteModel(recipe, compiled=len(images) >= _WORTH_COMPILING)
    numbers, search = packed(whole, starts, len(images)), None
    if isinstance(starts, dict):
        search = cache(lambda: RouletteTemplates(recipe, _SEARCHED))
        if "centre_x" in whole.lens_names and "centre_x" not in starts:
            numbers = _met(whole, images, numbers)
    order = torch.cat([worth(recipe, part) for part in images.split(SLOTS)])
    lit = (order < 1).sum(1)
    # images with about as much light go together
    groups, parts = (lit / _ENOUGH).log2().ceil().clamp(min=0), []
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        few, full = (seen_at(whole, images[rows], order[rows], most) for most in (_ENOUGH, int(lit[rows].max())))
        parts.append((rows, _fit(whole, full, few, images[rows], numbers[rows], search, steps, evolutions, progress)))
    return joined([fit for _, fit in parts], torch.cat([rows for rows, _ in parts]).argsort())


def _met(whole: RouletteModel, images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers [n, 1, k] with the camera where light has its centre in the images: beside theirs, where a part of the
    light fell out of the frame. Of images in which no light stands above the noise, in the middle."""
    seen = images.flatten(1) * (images.flatten(1) > 3 * whole.recipe.instrument.noise_sd)
    beside = torch.stack([seen @ whole.x, seen @ whole.y], 1) / seen.sum(1, keepdim=True).clamp(min=1e-30)
    numbers = whole.centred(numbers[:, 0], FINE)
    numbers[:, [whole.lens_names.index(name) for name in CENTRE]] -= beside / UNIT
    return numbers[:, None]


def _fit(whole, full: Seen, few: Seen, images: Tensor, starts: Tensor, search, steps, evolutions, progress) -> Fit:
    def smooth(rows, start):
        part = few.rows(rows)
        guess = smooth_fit(part, start, first_noise(part, start), steps, progress)
        numbers = whole.pack(guess.params)
        return smooth_fit(part, numbers, noise_of(part, numbers), steps, progress)

    found = best_of(starts, smooth)
    if search is not None and not found.good.all():
        found = best_of(search().starts(images, _TRIED), smooth, found)
    numbers, every, camera = whole.pack(found.params), Seen(whole, images.flatten(1)), whole.recipe.instrument
    if camera.noise_sd:
        # noise is beaten down by numbers: all lit pixels have their say
        near = found
        found = smooth_fit(full, numbers, noise_of(full, numbers), steps, progress)
        numbers, found = whole.pack(found.params), replace(found, converged=near.converged & found.converged)
    noise = noise_of(every, numbers).view_as(images)
    drawn = torch.cat([whole.images(numbers[rows]) for rows in parts_of(len(images))]).view_as(images)
    fine = conclude(whole, images, noise, numbers, curvature(full, numbers), found.converged, found.steps, drawn)
    # a picture that was turned after it was read has lost the bitmap's pixels
    if camera.lookup == "turned":
        return fine
    if camera.noise_sd:  # which hides what pixel of the bitmap was read
        return fine if camera.lookup == "exact" else replace(fine, covariance=_with_jumps(full, numbers))
    return _through_the_bitmap(every, full, few, numbers, fine, evolutions, progress)


def _with_jumps(seen: Seen, numbers: Tensor) -> Tensor:
    """Covariances [n, k, k] of smooth fits to images read from a bitmap, whose jumps agree over many pixels: from how
    far those of lenses like the fitted one, drawn from the covariance so far, lead a fit astray. So few draws tell a
    deviation to a fifth."""
    found = []
    for i, here in enumerate(numbers.split(1)):
        draw = torch.Generator().manual_seed(0)
        one, many = (seen.model.rows(torch.full((count,), i)) for count in (1, _DRAWS))
        _, variance, scatter, slopes = one.with_noise(here)
        weighted = slopes / (variance + scatter)[:, None]
        covariance = inverse(weighted @ slopes.mT)[0]
        gain = covariance @ weighted[0].double()
        noise = (gain * variance[0]) @ gain.T
        for _ in range(_ROUNDS):
            values, vectors = torch.linalg.eigh(covariance)
            away = torch.randn(_DRAWS, len(values), generator=draw, dtype=torch.float64) * values.clamp(min=0).sqrt()
            drawn = seen.model.bounded(here + (away @ vectors.T).float())
            if "centre_x" in seen.model.lens_names:
                drawn = nearest_place(seen.model, drawn)
            shown, variance, scatter, slopes = many.with_noise(drawn)
            weighted, jumps = slopes / (variance + scatter)[:, None], many.bitmap(drawn) - shown
            astray = (inverse(weighted @ slopes.mT) @ (weighted @ jumps[..., None]).double())[..., 0]
            covariance = noise + astray.T @ astray / _DRAWS
        units = seen.model.units(here)[0].double()
        found.append(units @ covariance @ units.T)
    return torch.stack(found).float()


def _through_the_bitmap(every, full: Seen, few: Seen, numbers: Tensor, smooth: Fit, evolutions, progress) -> Fit:
    """The fits with their images read from the bitmap, where such a fit explains the image; as they were elsewhere."""
    if "centre_x" not in smooth.names:
        found = _read_fit(every, full, few, numbers, smooth.converged, smooth.steps)
        return take_over(smooth, found, torch.arange(len(numbers)))
    numbers, decided = places(full, few, numbers, evolutions, progress)
    # where there is doubt, the place stays as free as the rest
    for rows in ((decided == known).nonzero()[:, 0] for known in (True, False)):
        if len(rows):
            views = [view.rows(rows) for view in (every, full, few)]
            views = [view.held() for view in views] if decided[rows[0]] else views
            found = _read_fit(*views, numbers[rows], smooth.converged[rows], smooth.steps[rows])
            smooth = take_over(smooth, found, rows)
    return smooth


def _read_fit(every: Seen, full: Seen, few: Seen, numbers: Tensor, converged: Tensor, steps: Tensor) -> Fit:
    """Fits of images read from the bitmap. Where one gives back the image pixel by pixel, its noise is the least of the
    bitmap's scatter that leaves a good fit; elsewhere all of that scatter is in doubt, as for the smooth fit before,
    which then must have `converged` [n]."""
    numbers = polish(few, numbers, COOLING[3:])[0]
    numbers = polish(full, numbers, COOLING[5:10])[0]
    count, pixels = len(numbers), every.model.recipe.instrument.pixels
    shape = (-1, 1, pixels, pixels)
    drawn = torch.cat([every.model.bitmap(numbers[part]) for part in parts_of(count)]).view(shape)
    known, steps = explained(full, numbers), steps + len(COOLING)

    def concluded(rows: Tensor, share: float) -> Fit:
        part, here = every.rows(rows), numbers[rows]
        noise, slope = noise_of(part, here, share).view(shape), curvature(full.rows(rows), here, share)
        facts = (converged | known)[rows], steps[rows], drawn[rows]
        return conclude(every.model, part.data.view(shape), noise, here, slope, *facts)

    best, rest = concluded(torch.arange(count), 1.0), known.nonzero()[:, 0]
    for share in _LEFT:
        if not len(rest):
            break
        found = concluded(rest, share)
        best, rest = take_over(best, found, rest), rest[~found.good]
    return best


class RouletteTemplates:
    """Scenes drawn from a recipe's own sampling and seen coarsely, to start fits from without the truth."""

    def __init__(self, recipe: RouletteRecipe, count: int = 4096):
        self.model = RouletteModel(recipe)
        self.numbers = self.model.pack(drawn_scenes(recipe, count))
        pixels = recipe.instrument.pixels
        self.step = pixels / _TEMPLATE
        steps = (torch.arange(_TEMPLATE) + 0.5) * self.step - pixels / 2
        x, y = (part.flatten() for part in torch.meshgrid(steps, steps, indexing="xy"))
        self.images = torch.cat([self.model.images_at(rows, x, y) for rows in self.numbers.split(64)])
        self.squares = self.images.square().sum(1)

    def starts(self, images: Tensor, count: int = 8) -> Tensor:
        """The fitted numbers [n, count, k] of the templates least different from each image [n, 1, h, w]."""
        small = interpolate(images, (_TEMPLATE, _TEMPLATE), mode="area").flatten(1)
        return self.numbers[(self.squares - 2 * small @ self.images.T).topk(count, largest=False).indices]
