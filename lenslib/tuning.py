"""Settings searched for by Optuna: one study a network, each with the same budget, kept in a file and gone on with.

study = Study("tuning.db", "polar_cnn", sampler="tpe", facts={"recipe": "deeplense_1"})
study.run(lambda settings, report: train_classifier(..., settings, report=report), Settings(epochs=4), trials=16)
study.best.settings
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
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
    A trial is cut short where its best score so far is below the median of earlier ones at that epoch; it counts.
    Raises InputError for an unknown sampler or setting, a file that holds no studies, and a study that was begun
    otherwise.
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
            raise unknown("sampler", sampler, SAMPLERS)
        for key, values in space.items():
            _check_values(key, values)
        self.space, self.sampler, self.seed = dict(space), sampler, seed
        self._study = _opened(Path(file), name)
        self._whose = f"'{file}' has a study of {name}"
        self._keep("search", {"sampler": sampler, "seed": seed})
        self._keep("space", {key: list(values) for key, values in space.items()})
        self._keep("facts", dict(facts or {}))

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
            name = self._study.study_name
            raise InputError(f"no trial of {name} ran to its end: allow more trials, or lower learning rates")
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
        study that was killed goes on to the same trials. InputError for other settings than those it was begun with.
        """
        self._keep("settings", asdict(settings))
        for left in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            self._study.tell(left.number, state=TrialState.FAIL)
        done, grid = len(self.trials), self._grid() if self.sampler == "grid" else []
        wanted, label = min(trials, len(grid)) if grid else trials, self._study.study_name
        for number in tqdm(range(done, wanted), desc=label, unit="trial", disable=None if progress else True):
            # a seed a trial: how often the study was gone on with does not matter
            seed = (1009 * self.seed + number) % 2**32
            kind = optuna.samplers.TPESampler if self.sampler == "tpe" else optuna.samplers.RandomSampler
            self._study.sampler = kind(seed=seed)
            if grid:
                self._study.enqueue_trial(grid[number])
            self._study.optimize(lambda trial: self._score(trial, fit, settings), n_trials=1)

    def _score(self, trial: optuna.Trial, fit: Callable, settings: Settings) -> float:
        best = -math.inf

        def report(row: dict) -> None:
            nonlocal best
            if not math.isfinite(row["val_score"]):
                raise FloatingPointError
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

    def _grid(self) -> list[dict[str, Any]]:
        """All points, in an order that the seed decides, so that the first few are not all of one corner."""

        def points(low: float, high: float) -> list[float]:
            return [low, *(low * (high / low) ** (k / (_POINTS - 1)) for k in range(1, _POINTS - 1)), high]

        axes = [points(*part) if isinstance(part, tuple) else part for part in self.space.values()]
        grid = [dict(zip(self.space, point, strict=True)) for point in product(*axes)]
        random.Random(self.seed).shuffle(grid)
        return grid

    def _keep(self, what: str, told: dict[str, Any]) -> None:
        """Write down what decides the scores; InputError where the study was begun with something else."""
        known = self._study.user_attrs.get(what, told)
        if changed := [key for key in {**known, **told} if known.get(key) != told.get(key)]:
            raise InputError(f"{self._whose} with another {', '.join(changed)}: name another file")
        self._study.set_user_attr(what, told)


def _check_values(key: str, values: Sequence) -> None:
    if key not in Settings.__dataclass_fields__:
        raise unknown("setting", key, Settings.__dataclass_fields__)
    if key in ("epochs", "seed"):
        raise InputError(f"{key} is every trial's own: it cannot be searched")
    if not isinstance(values, tuple | list) or not values:
        raise InputError(f"{key}: give two bounds in a tuple, or choices in a list, not {values!r}")
    if isinstance(values, tuple):
        if not isinstance(getattr(Settings(), key), float):
            raise InputError(f"{key} has no scale between two bounds: give choices in a list")
        if not (len(values) == 2 and 0 < values[0] < values[1]):
            raise InputError(f"{key}: a logarithmic scale needs two bounds above 0, the lower one first, not {values}")
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
