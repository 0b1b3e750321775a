"""The test set that a recorded network was judged on, drawn again: same recipe, seed and indices, so the same lenses.

Its digest is that of the record where processor and libraries are alike. Elsewhere pixels differ by rounding. Then a
recorded network is asked again, and must give the scores of its record: these are then the same images for every
purpose of a comparison. Otherwise they are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lenslib.dataset import DataSet, open_dataset, write_dataset
from lenslib.errors import InputError
from lenslib.recipe import Recipe, load_recipe, parse_recipe
from lenslib.records import Run
from lenslib.residuals import SUFFIX, write_residuals
from lenslib.untrusted import parse_yaml

WORKFLOW = Path(__file__).parents[1] / "workflow"
# images that a recorded network is asked again
_ASKED = 256
# of the scatter of its scores from image to image: the largest difference, of 95 in 100 images
_ROUNDING = 0.02


@dataclass(frozen=True)
class TestSet:
    """data: the images; labels: int64 [n], the recorded ones; exact: whether the digest is the record's."""

    data: DataSet
    labels: np.ndarray
    exact: bool


def redraw(
    runs: Sequence[Run], scratch: Path, folder: Path | None = None, first: int | None = None, progress: bool = True
) -> TestSet:
    """The test set of runs that were judged on the same one, or its `first` images; drawn into the folder `scratch`.

    folder: a data-set folder that is taken instead if its digest is the record's. InputError where the records do not
    say how the set was drawn, and where what is drawn is not what they were judged on.
    """
    run = runs[0]
    recorded, digest = run.predictions()["labels"], run.datasets.get("test")
    count = min(first or len(recorded), len(recorded))
    if folder is not None and (folder / "dataset.json").is_file():
        data = open_dataset(folder)
        if data.digest == digest:
            return TestSet(data, recorded[:count], True)
    recipe, seed, start = drawing(run)
    base = recipe.model_copy(update={"name": recipe.name.removesuffix(SUFFIX)})
    data = write_dataset(base, count, seed, scratch / "test", start, progress=progress)
    if recipe.name.endswith(SUFFIX):
        data = write_residuals(data, scratch / "residual", progress=progress)
    if not np.array_equal(data.labels, recorded[:count]):
        raise InputError(f"{run.folder}: its test set, drawn again, has other labels: train on the recipe as it is now")
    if data.digest == digest:
        return TestSet(data, recorded[:count], True)
    if not any(_agrees(run, data) for run in runs):
        raise InputError(
            f"{run.folder}: its test set, drawn again, is another, or no weights are left that could tell: give the "
            "folder of its data sets with --data, or train on the recipe as it is now"
        )
    return TestSet(data, recorded[:count], False)


def drawing(run: Run) -> tuple[Recipe, int, int]:
    """Recipe, seed and first index of a run's test set: from its record or, where that is of an earlier version, from
    the profile in `workflow/` that it belongs to. InputError where neither says."""
    given = run.parameters
    if "test_recipe" in given:
        return parse_recipe(given["test_recipe"], str(run.folder)), given["test_seed"], given["test_start"]
    name, path = run.recipe.removesuffix(SUFFIX), WORKFLOW / f"{run.profile}.yaml"
    sets = parse_yaml(path.read_text(), aliases=True).get("data_sets", {}) if path.is_file() else {}
    found = next((one for key, one in sets.items() if Path(key).stem == name), None)
    if found is None or found["test"]["count"] != given.get("test_count"):
        raise InputError(f"{run.folder}: its record does not say how its test set was drawn: train again")
    changes = found.get("set", {})
    recipe = load_recipe(found.get("recipe", name), changes | ({"name": name} if changes else {}))
    return recipe.model_copy(update={"name": run.recipe}), found["test"]["seed"], 0


def _agrees(run: Run, data: DataSet) -> bool:
    """Whether the network of a run gives these images the scores of its record, as far as its scores tell images apart
    at all."""
    from lenslib.inference import load_classifier

    try:
        network = load_classifier(run.path("weights.safetensors"))
    except InputError:
        return False
    count = min(_ASKED, len(data))
    recorded = run.predictions()["scores"][:count].astype(np.float64)
    differences = np.abs(network.probabilities(data.images[:count]) - recorded).max(1)
    return bool(np.quantile(differences, 0.95) < _ROUNDING * recorded.std(0).max())
