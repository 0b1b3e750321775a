"""Images turned, mirrored and shifted as they are shown to a network, on the device where they lie."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lenslib.errors import InputError


def turn_images(images: Tensor, kind: int) -> Tensor:
    """One of the eight symmetries of the square: a flip for kind >= 4, then kind % 4 right-angle turns."""
    if kind >= 4:
        images = images.flip(-1)
    return torch.rot90(images, kind % 4, (-2, -1))


AUGMENTATIONS = {"none": (0,), "half_turn": (0, 2), "flips": (0, 2, 4, 6), "d4": tuple(range(8))}


def draw_kinds(count: int, kinds: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """One of `kinds` for each of `count` images, drawn evenly; int64 [count]."""
    if len(kinds) == 1:
        return torch.full((count,), kinds[0])
    return torch.tensor(kinds)[torch.randint(len(kinds), (count,), generator=generator)]


def augmented(values: Tensor, kinds: Tensor, turn: Callable[[Tensor, int], Tensor] = turn_images) -> Tensor:
    """Each of the values [n, ...], by default images, turned by its own of the kinds [n]."""
    result = values
    for kind in kinds.unique().tolist():
        if kind:  # 0 leaves all as it is
            mine = (kinds == kind).nonzero()[:, 0].to(values.device)
            result = result.clone() if result is values else result
            result[mine] = turn(values[mine], kind)
    return result


def shift_images(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each of the images [n, c, h, w] moved by its own whole number of pixels, evenly from -`pixels` to `pixels` down
    and to the right; what comes in at a border is mirrored there. InputError for shifts as long as the image."""
    count, channels, height, width = images.shape
    if pixels >= min(height, width):
        raise InputError(f"shift must be below the {min(height, width)} pixels of an image, not {pixels}")
    moved = torch.randint(2 * pixels + 1, (2, count), generator=generator).to(images.device)
    rows = moved[0, :, None] + torch.arange(height, device=images.device)
    columns = moved[1, :, None] + torch.arange(width, device=images.device)
    wider = pad(images, [pixels] * 4, mode="reflect")
    each = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return wider[each, channel, rows[:, None, :, None], columns[:, None, None, :]]
