"""Trained weights by name: those in the repository's records, and a card for each that says what they are good for.

find_weights("classification/deeplense_1/polar_cnn")     # or a path: everything that takes weights takes both
model_card("classification/deeplense_1/polar_cnn")       # Markdown
"""

from pathlib import Path

from lenslib.errors import InputError, unknown
from lenslib.records import PROFILES, Run, load_run

RESULTS = Path(__file__).parents[1] / "results"
WEIGHTS = "weights.safetensors"
# what weights of a task answer, and what is to be known before one believes them
TASKS = {
    "classification": "tells classes of substructure apart",
    "regression": "measures lens and source",
    "amplitudes": "measures roulette amplitudes",
    "axion_mass": "measures the axion mass of a vortex",
    "mass_fraction": "measures the share of mass in substructure",
}
_LIMITS = """\
- It has seen simulated images of this recipe alone. On a frame of another telescope, pixel scale, noise or kind of
  source its answers mean nothing, however sure they look: `lenslib predict` does not know where a frame came from.
- Its figures hold for images drawn as the recipe draws them. Classes are drawn equally often there, and are not in the
  sky: a probability is one given that prior.
- Where the book shows a leak of the recipe, the weights use it (chapters on data and leaks, and on robustness)."""


def list_weights() -> dict[str, Run]:
    """The runs whose weights have a name, `task/recipe/model`: of each the first seed of the best profile."""
    found: dict[str, Run] = {}
    for profile in PROFILES[:2]:
        for path in sorted((RESULTS / profile).glob(f"*/*/*/seed*/{WEIGHTS}")):
            name = "/".join(path.parts[-5:-2])
            if path.parts[-5] in TASKS and name not in found and (path.parent / "record.json").is_file():
                found[name] = load_run(path.parent)
    return found


def find_weights(name: str | Path) -> Path:
    """The path of a weights file, given by path or by name. InputError where there is none of that name."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 3 or path.is_absolute():
        return path
    runs = list_weights()
    if str(name) not in runs:
        raise unknown("weights", str(name), runs)
    return runs[str(name)].folder / WEIGHTS


def model_card(name: str) -> str:
    """What weights are, were trained and judged on, and are not good for, as Markdown."""
    runs = list_weights()
    if name not in runs:
        raise unknown("weights", name, runs)
    return _card(name, runs[name])


def _card(name: str, run: Run) -> str:
    from lenslib.models import model_info
    from lenslib.validation import load_validation

    given, info = run.parameters, model_info(run.model)
    digests = ", ".join(f"{part} `{digest[:12]}`" for part, digest in run.datasets.items())
    counts = " and ".join(f"{given[key]:,}" for key in ("train_count", "test_count") if key in given)
    settings = ", ".join(
        f"{key} {given[key]}" for key in ("epochs", "batch_size", "learning_rate", "augment", "crop", "image_size")
        if given.get(key) not in (None, "")
    )  # fmt: skip
    lines = [
        f"# {name}\n",
        f"A network that {TASKS[run.task]}: `{run.model}` ({info.family}, from {info.source}), "
        f"{run.metrics['weight_count']:,} weights.\n",
        "## Data\n",
        f"Recipe `{run.recipe}`, {counts} images to train and to test on ({digests}).\n",
        "## Protocol\n",
        f"{settings}; the epoch was chosen on validation images, never on the test set. Profile `{run.profile}`, seed "
        f"{run.seed}, commit `{(run.git_commit or 'unknown')[:12]}`, {run.device}.\n",
        "## Figures\n",
        "| on the test images | value | 95 % interval |\n|---|---|---|",
        *(_row(key, metric) for key, metric in run.metrics.items() if isinstance(metric, dict) and "value" in metric),
        "",
    ]
    if (validation := load_validation(run.folder / WEIGHTS)) is not None:
        lines += ["## Calibration\n", validation.words + "\n"]
    return "\n".join([*lines, "## Limits\n", _LIMITS + "\n", "## Licence\n", "MIT, as this repository.\n"])


def _row(name: str, metric: dict) -> str:
    limits = f"{metric['low']:.4g} to {metric['high']:.4g}" if "low" in metric else ""
    return f"| {name.replace('_', ' ')} | {metric['value']:.4g} | {limits} |"


def check_named(weights: str | Path) -> Path:
    """As `find_weights`. InputError where the file is not there."""
    path = find_weights(weights)
    if not path.is_file():
        raise InputError(f"no weights '{weights}': give a file, or a name that `lenslib weights` lists")
    return path
