"""A data set simulated in shards, on as many machines, and joined to the one that a single machine would have written.

place = shard("2/8", 12000, recipe.chunk_size)        # the second of eight: which images it holds
join_datasets(["data/1", "data/2", ...], "data/train")
"""

import re
from collections.abc import Sequence

import torch

from lenslib.dataset import Batches, DataSet, open_dataset, write_batches
from lenslib.errors import InputError
from lenslib.foreign import FoundFiles

# images read at once
_ROWS = 512


def shard(which: str, count: int, chunk: int, start: int = 0) -> tuple[int, int]:
    """Start and count of shard "k/n", k from 1, of the `count` images from `start` on: whole chunks, so that none is
    drawn twice. InputError for text of another form, and for more shards than chunks."""
    numbers = re.fullmatch(r"(\d+)/(\d+)", which)
    k, n = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= k <= n:
        raise InputError(f"a shard is K/N, such as 2/8 for the second of eight, not '{which}'")
    first, last = start // chunk, -(-(start + count) // chunk)
    if last - first < n:
        raise InputError(f"{count} images are {last - first} chunks of {chunk}, too few for {n} shards: ask for fewer")
    cuts = [min(max((first + (last - first) * part // n) * chunk, start), start + count) for part in (k - 1, k)]
    return cuts[0], cuts[1] - cuts[0]


def join_datasets(folders: Sequence, folder) -> DataSet:
    """Write the images of several data-set folders, verified, into a new one, in the order of their indices.

    Shards of one set give the very files, and the digest, of that set simulated in one go on the same kind of device.
    Raises InputError for folders of different recipes, seeds or units, and for images that are missing or there twice.
    """
    parts = [open_dataset(part) for part in folders]
    for part in parts:
        if isinstance(part.recipe, FoundFiles):
            raise InputError(
                f"'{part.folder}' was not simulated here: only folders of `lenslib simulate` can be joined"
            )
        for name in ("recipe", "seed", "units", "channels"):
            if getattr(part, name) != getattr(parts[0], name):
                raise InputError(f"'{part.folder}' and '{parts[0].folder}' differ in {name}: they are not of one set")
    parts.sort(key=_start)
    for before, after in zip(parts, parts[1:], strict=False):
        begin, end = _start(after), _start(before) + len(before)
        if begin != end:
            raise InputError(f"'{after.folder}' begins at image {begin}, not {end}, where '{before.folder}' ends")
    one = parts[0]
    count = sum(map(len, parts))
    return write_batches(one.recipe, count, one.channels, _batches(parts), one.seed, folder, _start(one), one.units)


def _start(part: DataSet) -> int:
    return int(part.params["index"].iloc[0])


def _batches(parts: Sequence[DataSet]) -> Batches:
    for part in parts:
        for first in range(0, len(part), _ROWS):
            rows = part.params.iloc[first : first + _ROWS].drop(columns="index")
            columns = {name: torch.from_numpy(rows[name].to_numpy(copy=True)) for name in rows}
            yield torch.from_numpy(part.images[first : first + _ROWS].copy()), columns
