"""The search for settings: an honest optimiser, gone on with after a crash, and cut short where that is fair."""

import math
import os
import signal
import subprocess
import sys

import pytest

from lenslib.errors import InputError
from lenslib.settings import Settings
from lenslib.tuning import SPACE, Study

RATE = {"learning_rate": (1e-4, 1e-2)}
GRID = RATE | {"augment": ["none", "flips", "d4"]}


def closeness(settings):
    """A score that is best, 1, at a learning rate of 0.003."""
    return 1 - abs(math.log10(settings.learning_rate / 3e-3))


def fit(settings, report):
    for epoch in range(1, settings.epochs + 1):
        report({"epoch": epoch, "val_score": closeness(settings) - 1 / epoch})


def chosen(study):
    return [trial.settings for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_every_sampler_ends_near_the_best_settings(tmp_path, sampler):
    study = Study(tmp_path / "s.db", "m", RATE, sampler)
    study.run(fit, Settings(epochs=2), 16)
    # a grid of three points a factor of ten apart has one at 0.001 and one at 0.01
    assert closeness(Settings(**study.best.settings)) > (0.45 if sampler == "grid" else 0.9)
    assert study.best.score == max(trial.score for trial in study.trials if not trial.cut_short)


def test_tpe_looks_where_it_was_good(tmp_path):
    """After its random start, most of what it tries is better than most of what chance tries."""
    late = {}
    for sampler in ("tpe", "random"):
        study = Study(tmp_path / f"{sampler}.db", "m", RATE, sampler)
        study.run(fit, Settings(epochs=1), 26)
        late[sampler] = sorted(closeness(Settings(**trial)) for trial in chosen(study)[10:])[8]
    assert late["tpe"] > late["random"] + 0.1


def test_a_grid_is_tried_whole_and_once(tmp_path):
    study = Study(tmp_path / "s.db", "m", RATE | {"augment": ["none", "d4"]}, "grid")

    def failing(settings, report):
        if len(study.trials) == 3:
            raise InputError("the disk is full")
        fit(settings, report)

    with pytest.raises(InputError, match="disk is full"):
        study.run(failing, Settings(epochs=1), 100)
    study.run(fit, Settings(epochs=1), 100)
    tried = {(round(math.log10(one["learning_rate"]), 9), one["augment"]) for one in chosen(study)}
    assert tried == {(power, kind) for power in (-4.0, -3.0, -2.0) for kind in ("none", "d4")}
    assert len(study.trials) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_study_in_parts_tries_what_one_in_one_go_does(tmp_path, sampler):
    whole = Study(tmp_path / "whole.db", "m", SPACE, sampler, seed=3)
    whole.run(fit, Settings(epochs=2), 12)
    for trials in (1, 6, 12):
        parts = Study(tmp_path / "parts.db", "m", SPACE, sampler, seed=3)
        parts.run(fit, Settings(epochs=2), trials)
        assert len(parts.trials) == trials
    assert chosen(parts) == chosen(whole)
    assert [trial.score for trial in parts.trials] == [trial.score for trial in whole.trials]


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_study_killed_amid_a_trial_goes_on_to_the_same_trials(tmp_path, sampler):
    whole = Study(tmp_path / "whole.db", "m", GRID, sampler)
    whole.run(fit, Settings(epochs=2), 13)
    killed_at = len(whole.trials) - 2
    killed = f"""
import os, signal
from lenslib.settings import Settings
from lenslib.tuning import Study
from tests.test_tuning import GRID, fit
study = Study({str(tmp_path / "killed.db")!r}, "m", GRID, {sampler!r})
def dying(settings, report):
    if len(study.trials) == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    fit(settings, report)
study.run(dying, Settings(epochs=2), 13)
"""
    done = subprocess.run([sys.executable, "-c", killed], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    study = Study(tmp_path / "killed.db", "m", GRID, sampler)
    assert len(study.trials) == killed_at
    study.run(fit, Settings(epochs=2), 13)
    assert chosen(study) == chosen(whole)


def test_what_begins_badly_is_cut_short(tmp_path):
    study, epochs = Study(tmp_path / "s.db", "m", RATE, "random"), []

    def counted(settings, report):
        epochs.append(0)
        for epoch in range(1, settings.epochs + 1):
            epochs[-1] += 1
            report({"epoch": epoch, "val_score": closeness(settings)})

    study.run(counted, Settings(epochs=5), 16)
    assert [trial.epochs for trial in study.trials] == epochs
    assert all(trial.epochs == 5 for trial in study.trials[:4])
    short = [trial for trial in study.trials if trial.cut_short]
    assert 4 <= len(short) < 12
    assert max(trial.score for trial in short) <= study.best.score


def test_a_trial_that_diverges_counts_and_never_wins(tmp_path):
    study = Study(tmp_path / "s.db", "m", RATE, "random")

    def diverging(settings, report):
        if settings.learning_rate > 1e-3:
            raise FloatingPointError("the loss is nan")
        fit(settings, report)

    study.run(diverging, Settings(epochs=1), 12)
    assert len(study.trials) == 12
    study.run(lambda settings, report: report({"epoch": 1, "val_score": math.nan}), Settings(epochs=1), 13)
    assert study.trials[12].cut_short
    assert any(math.isnan(trial.score) and trial.cut_short for trial in study.trials)
    assert study.best.settings["learning_rate"] <= 1e-3


def test_other_errors_are_not_swallowed(tmp_path):
    def broken(settings, report):
        raise InputError("no such folder")

    study = Study(tmp_path / "s.db", "m", RATE)
    with pytest.raises(InputError, match="no such folder"):
        study.run(broken, Settings(), 2)
    with pytest.raises(InputError, match="no trial of m ran to its end"):
        _ = study.best


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sampler": "random"}, "another sampler"),
        ({"seed": 1}, "another seed"),
        ({"space": {"learning_rate": (1e-3, 1e-2)}}, "another learning_rate"),
        ({"facts": {"images": "other"}}, "another images"),
        ({"facts": {}}, "another images"),
        # facts and space do not hide one another
        ({"space": {"learning_rate": (1e-3, 1e-2)}, "facts": {"images": "some", "learning_rate": 1}}, "learning_rate"),
    ],
)
def test_a_study_is_gone_on_with_as_it_was_begun_alone(tmp_path, changed, words):
    begun = {"space": RATE, "facts": {"images": "some"}}
    Study(tmp_path / "s.db", "m", **begun).run(fit, Settings(epochs=1), 1)
    assert len(Study(tmp_path / "s.db", "m", **begun).trials) == 1
    assert not Study(tmp_path / "s.db", "another", **begun).trials
    with pytest.raises(InputError, match=words):
        Study(tmp_path / "s.db", "m", **(begun | changed))
    with pytest.raises(InputError, match="another epochs"):
        Study(tmp_path / "s.db", "m", **begun).run(fit, Settings(epochs=2), 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sampler": "tpee"}, "tpe"),
        ({"space": {"learning_rat": (1e-4, 1e-2)}}, "learning_rate"),
        ({"space": {"learning_rate": (1e-2, 1e-4)}}, "two bounds above 0"),
        ({"space": {"weight_decay": (0.0, 1.0)}}, "two bounds above 0"),
        ({"space": {"augment": []}}, "give two bounds in a tuple, or choices"),
        ({"space": {"learning_rate": 1e-3}}, "give two bounds in a tuple, or choices"),
        ({"space": {"batch_size": (16, 64)}}, "no scale between two bounds"),
        ({"space": {"epochs": [1, 5]}}, "cannot be searched"),
        ({"space": {"augment": ["sideways"]}}, "unknown augment"),
    ],
)
def test_bad_input_is_told_in_words(tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        Study(tmp_path / "s.db", "m", **given)


def test_a_file_that_holds_no_studies_is_told(tmp_path):
    (tmp_path / "s.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(InputError, match="cannot be used as a file of studies"):
        Study(tmp_path / "s.db", "m", RATE)


def test_the_training_loop_tells_every_epoch_and_can_be_ended():
    import torch

    from lenslib.training import train

    images, labels = torch.rand(32, 1, 4, 4), torch.arange(32) % 2
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    settings, rows = Settings(epochs=3, batch_size=8), []
    trained = train(network, (images, labels), (images, labels), settings, lambda *_: 0.5, report=rows.append)
    assert rows == trained.history

    def stop(row):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        train(network, (images, labels), (images, labels), settings, lambda *_: 0.5, report=stop)
