"""A training that was killed goes on to the same weights; other files are left alone, and nothing in them is run."""

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lenslib.checkpoints import Keeper
from lenslib.errors import InputError
from lenslib.records import CHECKPOINT, UNFINISHED, load_runs, run_folder, write_run
from lenslib.settings import Settings
from lenslib.training import train


def test_a_killed_run_goes_on_to_the_same_predictions(run, threads, training_data, test_data, tmp_path):
    threads(1)
    options = ["--epochs", 9, "--image-size", 24, "--profile", "test", "--device", "cpu", "--checkpoint", 2]
    options += ["--shift", 2, "--dropout", 0.2, "--label-smoothing", 0.1, "--seed", 5]
    options += ["--train", training_data.folder, "--test", test_data.folder]
    command = ["train", "small_cnn", *map(str, options), "--results"]
    assert run(*command, tmp_path / "whole")[0] == 0

    results = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([sys.executable, "-m", "lenslib.cli", *command, str(results)], env=environment)
    folder = run_folder(results, "test", "classification", "deeplense_1", "small_cnn", 5)
    while started.poll() is None and _epochs(folder) < 3:
        time.sleep(0.002)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert 3 <= _epochs(folder) < 9
    assert not (folder / "record.json").exists()

    code, _, errors = run(*command, results)
    assert code == 0
    assert len(errors) == 1
    assert "goes on" in errors[0]
    (whole,), (killed,) = load_runs(tmp_path / "whole"), load_runs(results)
    assert killed.path("predictions.npz").read_bytes() == whole.path("predictions.npz").read_bytes()
    # bytes of this file differ in the order of its metadata
    weights, expected = (load_file(found.path("weights.safetensors")) for found in (killed, whole))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    columns = ["epoch", "train_loss", "val_loss", "val_score", "learning_rate"]
    assert killed.history()[columns].equals(whole.history()[columns])
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


def _epochs(folder) -> int:
    """Rows of the live history, which is replaced whole."""
    try:
        return len((folder / "history.csv").read_text().splitlines()) - 1
    except FileNotFoundError:
        return 0


def _images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    return torch.randn(n, 1, 8, 8, generator=generator) + labels[:, None, None, None], labels


def _train(folder, score=lambda labels, probabilities: probabilities.mean(), training=None, **changes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    settings = Settings(**{"epochs": 4, "batch_size": 16, "seed": 1} | changes)
    return train(network, training or _images(32, 0), _images(8, 1), settings, score, "cpu", folder=folder)


def test_the_history_grows_with_the_epochs_and_a_finished_run_keeps_its_own(tmp_path):
    folder, seen = tmp_path / "test/classification/a/linear/seed1", []

    def score(labels, probabilities):
        seen.append(_epochs(folder))
        return 0.5

    _train(folder, score)
    assert seen == [0, 1, 2, 3]
    assert _epochs(folder) == 4
    place = {"profile": "test", "task": "classification", "recipe": "a", "model": "linear", "seed": 1}
    over = write_run(folder, **place, parameters={}, metrics={}, history=[{"epoch": 1}])
    assert {path.name for path in folder.iterdir()} == {"record.json", "history.csv"}
    _train(folder)
    assert len(over.history()) == 1  # as its record says
    assert (folder / UNFINISHED).is_file()
    write_run(folder, **place, parameters={}, metrics={}, history=[{"epoch": 1}])
    assert {path.name for path in folder.iterdir()} == {"record.json", "history.csv"}


def test_what_ended_is_not_trained_again(tmp_path, capsys):
    first, calls = _train(tmp_path), []
    again = _train(tmp_path, lambda *_: calls.append(1))
    assert not calls
    assert again.history == first.history
    assert torch.equal(first.model[1].weight, again.model[1].weight)
    assert "goes on" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"learning_rate": 0.01}, {"epochs": 5}, {"seed": 2}, {"training": _images(32, 7)}])
def test_a_checkpoint_of_another_run_is_left_alone(tmp_path, capsys, changes):
    _train(tmp_path)
    expected = _train(None, **changes)
    found = _train(tmp_path, **changes)
    said = capsys.readouterr().err
    assert "of another run" in said
    assert CHECKPOINT in said
    assert len(said.splitlines()) == 1
    assert [row["train_loss"] for row in found.history] == [row["train_loss"] for row in expected.history]


class _Trap:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _half(content: bytes, _) -> bytes:
    return content[: len(content) // 2]


def _one_bit(content: bytes, _) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _sealed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


def _sealed_trap(_, bait) -> bytes:
    return _sealed(pickle.dumps({"start": "", "state": _Trap(bait)}, protocol=2))


def _sealed_nothing(content: bytes, _) -> bytes:
    """A pickle that ends before it has said anything: an IndexError of torch's."""
    return _sealed(content[32:].replace(b"\x80\x02}", b"\x80\x02.", 1))


@pytest.mark.parametrize("spoil", [_half, _one_bit, _sealed_trap, _sealed_nothing, lambda content, bait: b""])
def test_a_torn_checkpoint_is_left_alone_and_nothing_in_it_is_run(tmp_path, capsys, spoil):
    _train(tmp_path)
    path, bait = tmp_path / CHECKPOINT, tmp_path / "sprung"
    path.write_bytes(spoil(path.read_bytes(), bait))
    trained = _train(tmp_path)
    said = capsys.readouterr().err
    assert "is torn, or no checkpoint" in said
    assert len(said.splitlines()) == 1
    assert not bait.exists()
    assert len(trained.history) == 4
    # it is replaced by a good one
    assert Keeper(tmp_path, "").load() is None
    assert "of another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        *({"model": {}}, {"optimizer": 3}, {"optimizer": {"state": {}, "param_groups": []}}, {"generator": "x"}),
        *({"random": []}, {"history": [{"epoch": 1}]}, {"history": 3}, {"best": ()}, {"best_state": {}}),
    ],
)
def test_a_sealed_checkpoint_that_does_not_fit_changes_nothing(tmp_path, capsys, changes):
    expected = _train(None)
    _train(tmp_path)
    content = torch.load(io.BytesIO((tmp_path / CHECKPOINT).read_bytes()[32:]), weights_only=True)
    Keeper(tmp_path, content["start"]).save(content["state"] | changes)
    capsys.readouterr()
    found = _train(tmp_path)
    said = capsys.readouterr().err
    assert "is torn, or no checkpoint: training starts anew" in said
    assert len(said.splitlines()) == 1
    assert torch.equal(found.model[1].weight, expected.model[1].weight)
    assert [row["train_loss"] for row in found.history] == [row["train_loss"] for row in expected.history]


def test_no_checkpoint_where_none_is_wanted(tmp_path):
    _train(tmp_path, checkpoint=0)
    assert {path.name for path in tmp_path.iterdir()} == {"history.csv"}


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        _train(tmp_path / "file" / "run", lambda *_: pytest.fail("trained"))


def test_the_best_epoch_before_the_crash_is_kept(tmp_path):
    """Scores fall from the second epoch on; the run stops in the fourth, and what goes on knows the best."""
    scores = iter([0.5, 0.9, 0.4])
    with pytest.raises(StopIteration):
        _train(tmp_path, lambda *_: next(scores))
    found = _train(tmp_path, lambda *_: 0.1)
    assert found.best["epoch"] == 2
    kept = iter([0.5, 0.9, 0.4, 0.1])
    expected = _train(None, lambda *_: next(kept))
    np.testing.assert_array_equal(found.model[1].weight.detach(), expected.model[1].weight.detach())
