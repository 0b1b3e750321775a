"""Two processes train as one does, whole or dealt out, and go on from checkpoints. As a program, this file is them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lenslib import processes
from lenslib.errors import InputError
from lenslib.records import CHECKPOINT, load_runs
from lenslib.settings import Settings
from lenslib.training import train

# 83 images in batches of 9: ten steps an epoch, the last with two images
COMMON = {"epochs": 5, "batch_size": 9, "augment": "d4", "shift": 1, "seed": 3}
STOPPED = 2
JOBS = {"ddp": {"devices": 2}, "fsdp": {"devices": 2, "strategy": "fsdp", "epochs": 3}}


def _images(n, seed):
    """Noise, brighter on the left in the second of two classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    images = torch.randn(n, 1, 10, 10, generator=generator)
    images[..., :5] += 0.5 * labels[:, None, None, None]
    return images, labels


def _train(folder: Path, kept: Path | None = None, **changes):
    """A network without batch statistics or dropout. The checkpoint of an early epoch is copied to `kept`."""

    def report(row):
        if kept and row["epoch"] == STOPPED and not processes.is_helper():
            kept.mkdir()
            shutil.copy(folder / CHECKPOINT, kept)

    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.GELU())
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.GELU(), block, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2)
    )
    settings = Settings(**COMMON | changes)
    images = _images(83, 0), _images(21, 1)
    return train(network, *images, settings, _confidence, "cpu", True, folder=folder, report=kept and report)


def _confidence(labels, probabilities):
    return float(probabilities[labels == 1, 1].mean())


def _program(folder: Path) -> None:
    processes.LARGE = 100  # a block of this small network is large
    for name, changes in JOBS.items():
        for place, kept in ((folder / name, folder / f"{name}_resumed"), (folder / f"{name}_resumed", None)):
            trained = _train(place, kept, **changes)
            if not processes.is_helper():
                weights = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
                save_file(weights, place / "weights.safetensors")
    _train(folder / "exploded", learning_rate=1e38, optimizer="sgd", clip_norm=0.0, devices=2)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What two processes wrote, how they ended, and what they said."""
    folder = tmp_path_factory.mktemp("processes")
    over = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=600, check=False
    )
    return folder, over


def _history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_as_one(launched, tmp_path, name):
    """But for float32 rounding, which fifty steps may magnify to 1e-4 and no more."""
    folder, over = launched
    assert (folder / name / "weights.safetensors").is_file(), over.stderr
    alone = _train(tmp_path / "alone", **JOBS[name] | {"devices": 1, "strategy": "auto"})
    expected, found = _history(tmp_path / "alone"), _history(folder / name)
    assert len(found) == {"ddp": 5, "fsdp": 3}[name]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    weights = load_file(folder / name / "weights.safetensors")
    for key, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", JOBS)
def test_what_goes_on_from_a_checkpoint_ends_the_same(launched, name):
    folder, over = launched
    resumed = folder / f"{name}_resumed"
    assert over.stderr.count(f"'{resumed / CHECKPOINT}': training goes on") == 1
    pd.testing.assert_frame_equal(_history(resumed), _history(folder / name))
    weights = load_file(resumed / "weights.safetensors")
    for key, value in load_file(folder / name / "weights.safetensors").items():
        assert torch.equal(weights[key], value)


def test_all_end_where_the_loss_is_not_finite(launched):
    folder, over = launched
    assert over.returncode == 2
    assert "lower learning_rate" in over.stderr
    assert not (folder / "exploded").exists()


def test_a_command_with_two_devices_writes_one_run(training_data, test_data, tmp_path):
    options = ["--train", training_data.folder, "--test", test_data.folder, "--results", tmp_path, "--device", "cpu"]
    options += ["--epochs", 1, "--image-size", 24, "--devices", 2]
    command = [sys.executable, "-m", "lenslib.cli", "train", "small_cnn", *map(str, options)]
    over = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert over.returncode == 0, over.stderr
    (found,) = load_runs(tmp_path)
    assert found.parameters["devices"] == 2
    assert len(over.stdout.splitlines()) == 1
    assert over.stderr == ""


def test_a_notebook_is_told_how_to_train_on_several_devices(monkeypatch):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with pytest.raises(InputError, match="lenslib train ... --devices 3"):
        processes.open_fabric(Settings(devices=3), "cpu", "32-true")
    assert processes.open_fabric(Settings(), "cpu", "32-true").world_size == 1


def test_the_gpu_that_is_asked_for_is_the_one_that_trains(monkeypatch):
    monkeypatch.setattr("lightning.fabric.Fabric", lambda **given: given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = {name: processes.open_fabric(Settings(), name, "32-true")["devices"] for name in ("cuda", "cuda:1")}
    assert devices == {"cuda": 1, "cuda:1": [1]}
    for name, settings, said in (("cuda:2", Settings(), "no device"), ("cuda:1", Settings(devices=2), "one device")):
        with pytest.raises(InputError, match=said):
            processes.open_fabric(settings, name, "32-true")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_mean_over_processes_is_the_mean_over_the_batch(size, count):
    values, found = torch.rand(size, generator=torch.Generator().manual_seed(0)), []
    for rank in range(count):
        team = object.__new__(processes.Processes)
        team.count, team.rank = count, rank
        mine, weight = team.part(size)
        found.append(weight * values[mine].mean())
    assert sum(found) / count == pytest.approx(float(values.mean()), rel=1e-6)


if __name__ == "__main__":
    try:
        _program(Path(sys.argv[1]))
    except FloatingPointError as error:
        print(json.dumps(str(error)), file=sys.stderr)
        sys.exit(2)
