"""A data set simulated in shards, on as many machines, and joined to the one that a single machine would have written.

place = shard("2/8", 12000, recipe.chunk_size)        # the second of eight: which images it holds
join_datasets(["data/1", "data/2", ...], "data/train")
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

import lenslib
from lenslib.dataset import Batches, DataSet, open_dataset, write_batches
from lenslib.errors import InputError
from lenslib.foreign import FoundFiles

# images read at once
_ROWS = 512


def shard(which: str, count: int, chunk: int, start: int = 0) -> tuple[int, int]:
    """Start and count of shard "k/n", k from 1, of the `count` images from `start` on: whole chunks, so that none is
    drawn twice. InputError for text of another form, and for more shards than chunks."""
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", which)
    k, n = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= k <= n:
        raise InputError(f"a shard is K/N, such as 2/8 for the second of eight, not '{which:.40}'")
    first, last = start // chunk, -(-(start + count) // chunk)
    if last - first < n:
        raise InputError(f"{count} images are {last - first} chunks of {chunk}, too few for {n} shards: ask for fewer")
    cuts = [min(max((first + (last - first) * part // n) * chunk, start), start + count) for part in (k - 1, k)]
    return cuts[0], cuts[1] - cuts[0]


def join_datasets(folders: Sequence, folder) -> DataSet:
    """Write the images of several data-set folders, verified, into a new one, in the order of their indices.

    Shards of one set give the very files, and the digest, of that set simulated in one go on the same kind of device.
    Raises InputError for folders of different recipes, seeds or units, for those of another version of this library,
    and for images that are missing or there twice.
    """
    parts = [open_dataset(part) for part in folders]
    for part in parts:
        _check(part)
        for name in ("recipe", "seed", "units", "channels"):
            if getattr(part, name) != getattr(parts[0], name):
                raise InputError(f"'{part.folder}' and '{parts[0].folder}' differ in {name}: they are not of one set")
        if not part.params.dtypes.equals(parts[0].params.dtypes):
            raise InputError(f"'{part.folder}' and '{parts[0].folder}' differ in the columns of their params.parquet")
    parts.sort(key=_start)
    for before, after in zip(parts, parts[1:], strict=False):
        begin, end = _start(after), _start(before) + len(before)
        if begin != end:
            raise InputError(f"'{after.folder}' begins at image {begin}, not {end}, where '{before.folder}' ends")
    one = parts[0]
    count = sum(map(len, parts))
    return write_batches(one.recipe, count, one.channels, _batches(parts), one.seed, folder, _start(one), one.units)


def _check(part: DataSet) -> None:
    """InputError, before anything is written, for a folder that is no shard of this library's version."""
    if isinstance(part.recipe, FoundFiles):
        raise InputError(f"'{part.folder}' was not simulated here: only folders of `lenslib simulate` can be joined")
    if part.library_version != lenslib.__version__:
        raise InputError(
            f"'{part.folder}' was written by lenslib {part.library_version!s:.40}, this is {lenslib.__version__}, and "
            "a set names one version: join it with the one that wrote it, or simulate it again"
        )
    if part.images.shape[-1] != part.recipe.instrument.pixels:
        raise InputError(
            f"'{part.folder}' holds images of {part.images.shape[-1]} pixels, and its recipe says "
            f"{part.recipe.instrument.pixels}: simulate it again"
        )
    if not _is_counted(part.params):
        raise InputError(
            f"'{part.folder}/params.parquet' must hold numbers alone, and count the images in 'index': simulate again"
        )


def _is_counted(params: pd.DataFrame) -> bool:
    """Whether all columns are of numbers, as numpy has them, and `index` goes up by one."""
    numbers = all(isinstance(kind, np.dtype) and kind.kind in "iufb" for kind in params.dtypes)
    if not numbers or "index" not in params or params["index"].dtype.kind not in "iu":
        return False
    return bool((params["index"].diff()[1:] == 1).all())


def _start(part: DataSet) -> int:
    return int(part.params["index"].iloc[0])


def _batches(parts: Sequence[DataSet]) -> Batches:
    for part in parts:
        for first in range(0, len(part), _ROWS):
            rows = part.params.iloc[first : first + _ROWS].drop(columns="index")
            columns = {name: torch.from_numpy(rows[name].to_numpy(copy=True)) for name in rows}
            yield torch.from_numpy(part.images[first : first + _ROWS].copy()), columns
