"""Shards of a data set: together they are the set that one machine would have written, to the byte."""

import json

import numpy as np
import pandas as pd
import pytest

from lenslib import dataset
from lenslib.dataset import FILES, write_dataset
from lenslib.errors import InputError
from lenslib.shards import join_datasets, shard


@pytest.mark.parametrize(("start", "count", "size", "n"), [(0, 10, 4, 3), (3, 40, 8, 3), (7, 900, 96, 8), (0, 5, 9, 1)])
def test_shards_are_whole_chunks_and_every_image_once(start, count, size, n):
    parts = [shard(f"{k}/{n}", count, size, start) for k in range(1, n + 1)]
    images = np.concatenate([np.arange(first, first + many) for first, many in parts])
    np.testing.assert_array_equal(images, np.arange(start, start + count))
    assert all(first % size == 0 for first, _ in parts[1:])
    chunks = [-(-(first + many) // size) - first // size for first, many in parts]
    assert max(chunks) - min(chunks) <= 1


@pytest.mark.parametrize("which", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/5", "", "1/" + "9" * 5000])
def test_what_names_no_shard_is_refused(which):
    with pytest.raises(InputError, match="such as 2/8") as error:
        shard(which, 1000, 96)
    assert len(str(error.value)) < 200


def test_more_shards_than_chunks_are_refused():
    with pytest.raises(InputError, match="2 chunks of 96, too few for 3 shards"):
        shard("1/3", 192, 96)


@pytest.mark.parametrize("start", [0, 5])
def test_three_shards_have_the_digest_of_one(run, small_recipe, tmp_path, threads, start):
    threads(1)
    recipe, count = tmp_path / "mine.yaml", 2 * small_recipe.chunk_size + 7
    recipe.write_text(small_recipe.to_yaml())
    whole = write_dataset(small_recipe, count, 4, tmp_path / "whole", start=start, progress=False)
    folders = [tmp_path / f"shard{k}" for k in (1, 2, 3)]
    for k, folder in enumerate(folders, 1):
        options = ["--count", count, "--seed", 4, "--start", start, "--shard", f"{k}/3", "--out", folder]
        assert run("simulate", recipe, *options)[0] == 0
    code, out, errors = run("join", folders[2], folders[0], folders[1], "--out", tmp_path / "joined")
    assert (code, errors) == (0, [])
    assert whole.digest in out
    for name in (*FILES, "dataset.json"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _index(change):
    return lambda params: params.assign(index=change(params["index"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda params: params.drop(columns="index"), "numbers alone, and count"),
        (_index(lambda index: index.astype(str)), "numbers alone, and count"),
        (_index(lambda index: index.astype(float)), "numbers alone, and count"),
        (_index(lambda index: index[::-1].to_numpy()), "numbers alone, and count"),
        (lambda params: params.assign(more="text"), "numbers alone, and count"),
        (lambda params: params.assign(more=1.0), "differ in the columns"),
        (lambda params: params.astype({"theta_E": float}), "differ in the columns"),
        (4, "holds images of 4 pixels"),
        ("0.0.1", "written by lenslib 0.0.1"),
    ],
)
def test_what_is_no_shard_is_refused_and_nothing_left(small_recipe, test_data, tmp_path, change, said):
    """Sealed as anyone can seal it. test_data holds images 0 to 99 of seed 1."""
    folder = write_dataset(small_recipe, 3, 1, tmp_path / "odd", start=100, progress=False).folder
    content = json.loads((folder / "dataset.json").read_text())
    if isinstance(change, int):
        np.save(folder / "images.npy", np.load(folder / "images.npy")[..., :change, :change])
    elif isinstance(change, str):
        content["library_version"] = change
    else:
        change(pd.read_parquet(folder / "params.parquet")).to_parquet(folder / "params.parquet", index=False)
    content["sha256"] = {name: dataset._sha256(folder / name) for name in FILES}
    (folder / "dataset.json").write_text(json.dumps(content | {"seal": dataset._seal(content)}))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=said) as error:
        join_datasets([test_data.folder, folder], tmp_path / "joined")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_whole_set_is_refused(run, small_recipe, test_data, tmp_path):
    """test_data holds images 0 to 99 of seed 1."""
    for name, seed, start in (("gap", 1, 101), ("twice", 1, 99), ("other", 2, 100)):
        write_dataset(small_recipe, 3, seed, tmp_path / name, start=start, progress=False)
    for name, said in (("gap", "begins at image 101, not 100"), ("twice", "begins at image 99"), ("other", "seed")):
        with pytest.raises(InputError, match=said):
            join_datasets([test_data.folder, tmp_path / name], tmp_path / "joined")
        assert not (tmp_path / "joined").exists()
    code, _, errors = run("join", test_data.folder, tmp_path, "--out", tmp_path / "joined")
    assert code == 2
    assert len(errors) == 1
