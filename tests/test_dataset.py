"""Data-set folders: the same bytes from the same seed, and nothing torn or altered that opens."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lenslib import dataset
from lenslib.dataset import normalise, open_dataset, prepare, resize, write_dataset
from lenslib.errors import InputError

FILES = ("images.npy", "params.parquet", "dataset.json")


@pytest.fixture
def folder(test_data, tmp_path):
    """A whole data-set folder to spoil."""
    return shutil.copytree(test_data.folder, tmp_path / "set")


def test_what_is_written_is_the_sample(small_recipe, test_data):
    data, batch = open_dataset(test_data.folder), small_recipe.sample(100, seed=1)
    np.testing.assert_array_equal(data.images, batch.images.numpy())
    np.testing.assert_array_equal(data.labels, batch.labels.numpy())
    np.testing.assert_array_equal(data.params["index"], np.arange(100))
    for name, value in batch.params.items():
        np.testing.assert_array_equal(data.params[name], value.numpy())
    assert data.recipe == small_recipe
    assert data.classes == small_recipe.classes
    assert data.seed == 1
    assert isinstance(data.images, np.memmap)


def test_the_same_seed_is_the_same_digest(small_recipe, test_data, tmp_path, threads):
    threads(1)
    assert write_dataset(small_recipe, 100, 1, tmp_path / "again", progress=False).digest == test_data.digest
    assert write_dataset(small_recipe, 100, 2, tmp_path / "other", progress=False).digest != test_data.digest
    assert open_dataset(test_data.folder).digest == test_data.digest


def test_start_goes_on_where_another_set_ended(small_recipe, test_data, tmp_path):
    rest = write_dataset(small_recipe, 10, 1, tmp_path / "rest", start=90, progress=False)
    np.testing.assert_array_equal(rest.images, test_data.images[90:])
    np.testing.assert_array_equal(rest.params["index"], np.arange(90, 100))


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.02, 0.5, 0.93, 1.0])
def test_one_changed_byte_is_refused(folder, name, place):
    _flip(folder / name, place)
    with pytest.raises(InputError, match=name.replace("dataset.json", "set")) as error:
        open_dataset(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_file_cut_short_is_refused(folder, name, kept):
    with open(folder / name, "r+b") as file:
        file.truncate(int(kept * (folder / name).stat().st_size))
    with pytest.raises(InputError):
        open_dataset(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        open_dataset(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"recipe": "x"}'])
def test_a_damaged_seal_is_refused(folder, text):
    (folder / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", {}), ("sha256", []), ("sha256", None), ("recipe", 3), ("recipe", "a: ["), ("count", 99), ("seed", 7)],
)
def test_a_seal_that_does_not_fit_is_refused(folder, key, value):
    seal = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(seal | {key: value}))
    with pytest.raises(InputError):
        open_dataset(folder)


def test_what_is_no_data_set_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="lenslib simulate"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="lenslib simulate"):
        open_dataset(tmp_path / "file")
    with pytest.raises(InputError, match="not a data-set folder"):
        open_dataset(tmp_path)


def test_other_files_beside_do_no_harm(folder, test_data):
    (folder / ".snakemake_timestamp").write_text("")
    assert open_dataset(folder).digest == test_data.digest


def test_a_folder_in_use_is_left_alone(small_recipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="exists"):
            write_dataset(small_recipe, 3, 0, taken, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert len(write_dataset(small_recipe, 3, 0, tmp_path / "empty", progress=False)) == 3


def test_a_full_disk_is_refused_before_anything_is_written(small_recipe, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    # room for half of the pixels
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50 * 32 * 32 * 4))
    with pytest.raises(InputError, match="free"):
        write_dataset(small_recipe, 100, 0, tmp_path / "deep" / "set", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["_sha256", "sample_chunks"])
def test_a_write_error_leaves_nothing_behind(small_recipe, tmp_path, monkeypatch, failing):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dataset, failing, full)
    with pytest.raises(InputError, match="No space left on device"):
        write_dataset(small_recipe, 3, 0, tmp_path / "set", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(small_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_dataset(small_recipe, 3, 0, tmp_path / "file" / "set", progress=False)


@pytest.mark.parametrize("given", [{"count": 0}, {"count": -5}, {"seed": -1}, {"start": -1}])
def test_bad_numbers_leave_nothing_behind(small_recipe, tmp_path, given):
    arguments = {"count": 3, "seed": 0, "folder": tmp_path / "set"} | given
    with pytest.raises(InputError, match=next(iter(given))):
        write_dataset(small_recipe, progress=False, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_nothing_that_opens(small_recipe, tmp_path):
    recipe, out = tmp_path / "small.yaml", tmp_path / "data" / "set"
    recipe.write_text(small_recipe.to_yaml())
    command = [sys.executable, "-m", "lenslib.cli", "simulate", recipe, "--count", "200000", "--out", out]
    # without a compiler on the path the renderer starts at once
    process = subprocess.Popen(command, env=os.environ | {"PATH": "/nonexistent", "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 1e5 for path in tmp_path.glob("data/.set-*/images.npy")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    remains = list((tmp_path / "data").iterdir())
    assert remains
    for path in [out, *remains]:
        with pytest.raises(InputError):
            open_dataset(path)
    # and what remains is in nobody's way
    assert len(write_dataset(small_recipe, 3, 0, out, progress=False)) == 3


@pytest.mark.parametrize(("before", "after"), [(150, 64), (100, 75), (37, 50), (64, 64)])
def test_resize_commutes_with_the_square(before, after):
    images = torch.randn(3, 1, before, before, generator=torch.Generator().manual_seed(0))
    small = resize(images, after)
    assert small.shape == (3, 1, after, after)
    for turns in range(4):
        for moved, expected in (
            (images.rot90(turns, (2, 3)), small.rot90(turns, (2, 3))),
            (images.rot90(turns, (2, 3)).flip(3), small.rot90(turns, (2, 3)).flip(3)),
        ):
            torch.testing.assert_close(resize(moved, after), expected, rtol=0, atol=1e-5 * float(images.max()))


def test_resize_keeps_brightness():
    torch.testing.assert_close(resize(torch.full((1, 1, 150, 150), 3.5), 64), torch.full((1, 1, 64, 64), 3.5))


@pytest.mark.parametrize(
    ("gain", "offset"), [(1.0, 0.0), (1e-6, 0.0), (2000.0, 50.0), (0.01, -3.0), (1e-16, 0.0), (1e15, 0.0)]
)
def test_networks_are_blind_to_positive_affine_changes(test_data, gain, offset):
    images = torch.from_numpy(test_data.images[:20] / test_data.images[:20].std())
    torch.testing.assert_close(prepare(images * gain + offset, 24), prepare(images, 24), rtol=0, atol=2e-3)


def test_an_image_of_one_grey_level_says_nothing():
    for level in (0.0, 0.1, -3e-8, 1e6):
        images = normalise(torch.full((1, 1, 50, 50), level))
        assert images.abs().max() < 0.2


def test_normalised_images_have_mean_0_and_deviation_1(test_data):
    images = normalise(torch.from_numpy(test_data.images[:20].copy()))
    torch.testing.assert_close(images.mean((2, 3)), torch.zeros(20, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((2, 3)), torch.ones(20, 1), rtol=1e-4, atol=0)


def test_prepared_images_are_those_of_the_rows(test_data):
    images, labels = test_data.prepared(24, slice(10, 30))
    torch.testing.assert_close(images, prepare(test_data.images[10:30], 24))
    np.testing.assert_array_equal(labels, test_data.labels[10:30])
