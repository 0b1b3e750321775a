"""Settings searched for by Optuna: one study a network, each with the same budget, kept in a file and gone on with.

study = Study("tuning.db", "polar_cnn", sampler="tpe", facts={"recipe": "deeplense_1"})
study.run(lambda settings, report: train_classifier(..., settings, report=report), Settings(epochs=4), trials=16)
study.best.settings
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError
from tqdm import tqdm

from lenslib.errors import InputError, unknown
from lenslib.settings import Settings

# names of `Settings`: two bounds of a logarithmic scale, or a list of choices
SPACE: dict[str, tuple | list] = {
    "learning_rate": (1e-4, 1e-2),
    "weight_decay": (1e-3, 0.3),
    "label_smoothing": [0.0, 0.1],
    "augment": ["none", "half_turn"],
}
# points of a grid between two bounds, both included
_POINTS = 3
# trials that run to their end before any is cut short, and epochs that each is given
_FULL_TRIALS, _FULL_EPOCHS = 4, 1
SAMPLERS = ("tpe", "random", "grid")
# a line a trial is told by the progress bar
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Trial:
    """One choice of settings: its best validation score (NaN where its first epoch diverged), and whether it was cut
    short."""

    settings: dict[str, Any]
    score: float
    epochs: int
    cut_short: bool
    seconds: float


class Study:
    """A search for the settings that give the best validation score, in an SQLite `file` that may hold several.

    `space` as `SPACE`. `facts`, as JSON has them, are what else decides a score, such as data and network.
    A trial is cut short where its best score so far is below the median of earlier ones at that epoch.
    Raises InputError for an unknown sampler or setting, a file that holds no studies, and a study of other facts.
    """

    def __init__(
        self,
        file: str | Path,
        name: str,
        space: Mapping[str, Sequence] = SPACE,
        sampler: str = "tpe",
        seed: int = 0,
        facts: Mapping[str, Any] | None = None,
    ):
        if sampler not in SAMPLERS:
            raise InputError(unknown("sampler", sampler, SAMPLERS))
        for key, values in space.items():
            _check_values(key, values)
        self.space, self.sampler, self.seed = dict(space), sampler, seed
        self._study = _opened(Path(file), name)
        told = {"sampler": sampler, "seed": seed} | {key: list(values) for key, values in space.items()}
        _check_facts(self._study, told | dict(facts or {}), f"'{file}' has a study of {name}")

    @property
    def trials(self) -> list[Trial]:
        """Those that are over, in the order in which they were tried."""
        over = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
        return [
            Trial(
                trial.params,
                max(trial.intermediate_values.values(), default=math.nan),
                len(trial.intermediate_values),
                trial.state == TrialState.PRUNED,
                trial.duration.total_seconds(),
            )
            for trial in over
        ]

    @property
    def best(self) -> Trial:
        """The best of those that were not cut short; InputError where there is none."""
        whole = [trial for trial in self.trials if not trial.cut_short]
        if not whole:
            raise InputError(f"no trial of {self._study.study_name} has ended: allow more trials")
        return max(whole, key=lambda trial: trial.score)

    def run(
        self,
        fit: Callable[[Settings, Callable[[dict], None]], Any],
        settings: Settings,
        trials: int,
        progress: bool = False,
    ) -> None:
        """Try settings until there are `trials`, or the grid is used up.

        `fit` trains with `settings` as a trial changes them, and gives `report` the row of every epoch, as
        `lenslib.training.train` does. What is tried follows from the seed and from what was tried before, so that a
        study that was killed goes on to the same trials.
        """
        for left in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            self._study.tell(left.number, state=TrialState.FAIL)
        done = len(self.trials)
        wanted = min(trials, self._grid_size) if self.sampler == "grid" else trials
        label = self._study.study_name
        for number in tqdm(range(done, wanted), desc=label, unit="trial", disable=None if progress else True):
            self._study.sampler = self._drawn_from(number)
            self._study.optimize(lambda trial: self._score(trial, fit, settings), n_trials=1)

    def _score(self, trial: optuna.Trial, fit: Callable, settings: Settings) -> float:
        best = -math.inf

        def report(row: dict) -> None:
            nonlocal best
            best = max(best, row["val_score"])
            trial.report(best, row["epoch"])
            if row["epoch"] < settings.epochs and trial.should_prune():
                raise optuna.TrialPruned

        try:
            fit(replace(settings, **self._suggested(trial)), report)
        except FloatingPointError:  # it diverged
            raise optuna.TrialPruned from None
        return best

    def _suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        chosen = {}
        for key, values in self.space.items():
            if isinstance(values, tuple):
                chosen[key] = trial.suggest_float(key, *values, log=True)
            else:
                chosen[key] = trial.suggest_categorical(key, values)
        return chosen

    def _drawn_from(self, number: int) -> optuna.samplers.BaseSampler:
        if self.sampler == "grid":  # its order is the seed's
            return optuna.samplers.GridSampler(self._grid, self.seed)
        kind = optuna.samplers.TPESampler if self.sampler == "tpe" else optuna.samplers.RandomSampler
        # a seed a trial: how often the study was gone on with does not matter
        return kind(seed=(1009 * self.seed + number) % 2**32)

    @property
    def _grid(self) -> dict[str, list]:
        def points(low: float, high: float) -> list[float]:
            return [low * (high / low) ** (k / (_POINTS - 1)) for k in range(_POINTS - 1)] + [high]

        return {key: points(*part) if isinstance(part, tuple) else part for key, part in self.space.items()}

    @property
    def _grid_size(self) -> int:
        return math.prod(map(len, self._grid.values()))


def _check_values(key: str, values: Sequence) -> None:
    if key not in Settings.__dataclass_fields__:
        raise InputError(unknown("setting", key, Settings.__dataclass_fields__))
    if isinstance(values, tuple) and not (len(values) == 2 and 0 < values[0] < values[1]):
        raise InputError(f"{key}: a logarithmic scale needs two bounds above 0, the lower one first, not {values}")
    if not values:
        raise InputError(f"{key}: no choice is given")
    for value in values:
        Settings(**{key: value})


def _opened(file: Path, name: str) -> optuna.Study:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return optuna.create_study(
            storage=f"sqlite:///{file.absolute()}",
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(_FULL_TRIALS, _FULL_EPOCHS),
        )
    except (DatabaseError, OSError):
        raise InputError(f"'{file}' cannot be used as a file of studies: name another, or delete it") from None


def _check_facts(study: optuna.Study, told: dict[str, Any], whose: str) -> None:
    known = study.user_attrs.get("facts", told)
    if changed := [key for key in {**known, **told} if known.get(key) != told.get(key)]:
        raise InputError(f"{whose} with another {', '.join(changed)}: name another file")
    study.set_user_attr("facts", told)
