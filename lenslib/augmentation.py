"""Images turned, mirrored, shifted and distorted as they are shown to a network, on the device where they lie."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

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


def warp_images(images: Tensor, maps: Tensor) -> Tensor:
    """Images [n, c, h, w], each seen through its own projective map [n, 3, 3], which says where a place (x, y, 1), from
    -1 to 1 across the image, is taken from. Between pixels, light is interpolated; beyond the border, mirrored."""
    identity = torch.eye(2, 3, device=images.device, dtype=images.dtype)
    grid = affine_grid(identity.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    ones = torch.ones_like(grid[..., :1])
    taken = torch.einsum("nij,nhwj->nhwi", maps.to(images), torch.cat([grid, ones], -1))
    return grid_sample(images, taken[..., :2] / taken[..., 2:], padding_mode="reflection", align_corners=False)


def _turns(angles: Tensor) -> Tensor:
    cos, sin, zero, one = angles.cos(), angles.sin(), torch.zeros_like(angles), torch.ones_like(angles)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3)


def _rotated(images: Tensor, evenly: Callable) -> Tensor:
    return warp_images(images, _turns(evenly(math.pi)))


def _affine(images: Tensor, evenly: Callable) -> Tensor:
    maps = _turns(evenly(math.radians(10)))
    shear = torch.eye(3).repeat(len(images), 1, 1)
    shear[:, 0, 1] = torch.tan(evenly(math.radians(10)))
    shear[:, :2] *= 1 + evenly(0.1)[:, None, None]
    return warp_images(images, maps @ shear)


def _perspective(images: Tensor, evenly: Callable) -> Tensor:
    maps = torch.eye(3).repeat(len(images), 1, 1)
    maps[:, 2, 0], maps[:, 2, 1] = evenly(0.2), evenly(0.2)
    return warp_images(images, maps)


def _contrast(images: Tensor, evenly: Callable) -> Tensor:
    factor, offset = 1 + evenly(0.2), evenly(0.2)
    return images * factor.to(images)[:, None, None, None] + offset.to(images)[:, None, None, None]


# what photographs are distorted by: "rotate" by any angle; "affine", turned and sheared by 10 degrees and larger or
# smaller by a tenth at most; "perspective", each side nearer or farther by a fifth at most; "contrast", which is all
# that colour is in one band, by a fifth, and brightness, by a fifth of an image's deviation
DISTORTIONS = {
    "none": lambda images, evenly: images,
    "rotate": _rotated,
    "affine": _affine,
    "perspective": _perspective,
    "contrast": _contrast,
}


def distort_images(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Each of the images [n, c, h, w] distorted by its own draw of one of the `DISTORTIONS`."""
    return DISTORTIONS[kind](images, lambda most: most * (2 * torch.rand(len(images), generator=generator) - 1))
