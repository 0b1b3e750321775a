"""Which library modules a step depends on: editing one runs again what needs it.

Those that cannot change a result are left out by name, so that a new module counts until someone says that it does not.
"""

import hashlib
from fnmatch import fnmatch
from pathlib import Path

# What shows, reads real frames, or only passes arguments on.
VIEWS = ["__init__.py", "allocation.py", "cli.py", "notebooks.py", "plotting.py", "explorer*.py", "scene*.py"]
VIEWS += ["leaks.py", "lens_maps.py", "interactive.py", "interop.py", "frames.py", "lens_light.py", "ringfit.py"]
VIEWS += ["information.py", "cosmosim.py"]
VIEWS += ["bench*.py", "ceiling.py", "comparison.py", "attention.py", "fit_classify.py", "prediction.py", "tables.py"]
VIEWS += ["observable.py", "pathologies.py", "anomaly.py", "roulette_fit.py", "roulette_model.py", "delens.py"]
VIEWS += ["roulette_pixels.py", "roulette_search.py", "tuning.py", "status.py", "shards.py", "faults*.py"]
VIEWS += ["weights.py", "validation.py", "export.py", "demo*.py", "commands_*.py", "redraw.py", "onnx_files.py"]
VIEWS += ["shift.py", "adaptation.py", "stand_ins.py", "equivariance.py", "trials.py", "models/narrow.py"]
VIEWS += ["frame_views.py", "frame_network.py", "injection.py"]
VIEWS += ["blind.py", "wrong_models.py", "network_starts.py"]
# What fits smooth lenses to images that are drawn.
FITTING = ["refine.py", "residuals.py", "mass_maps.py"]
# What begins when the images are drawn.
AFTER_SIMULATION = ["models/*", "training.py", "settings.py", "tasks.py", "augmentation.py", "checkpoints.py"]
AFTER_SIMULATION += ["memory.py", "classification.py", "inference.py", "regression.py", "targets.py", "metrics.py"]
AFTER_SIMULATION += ["fit_classify.py", "resampling.py", "calibration.py", "records.py", "provenance.py", "stream.py"]
AFTER_SIMULATION += ["processes.py", "image_files.py", "hdf5_files.py", "png_files.py"]


def modules(*but: str) -> list[str]:
    """All library modules, by path, except those whose name matches a pattern in `but`."""
    names = (path.relative_to("lenslib").as_posix() for path in sorted(Path("lenslib").rglob("*.py")))
    return [f"lenslib/{name}" for name in names if not any(fnmatch(name, pattern) for pattern in but)]


def simulation() -> list[str]:
    """The modules that a data set depends on."""
    return modules(*VIEWS, *FITTING, *AFTER_SIMULATION)


def fitting() -> list[str]:
    """The modules that a set of residuals depends on, besides the images."""
    return [path for path in modules(*VIEWS, *AFTER_SIMULATION) if path not in simulation()]


def training() -> list[str]:
    """The modules that a training run depends on."""
    return modules(*VIEWS, *FITTING)


def chapters() -> list[str]:
    """What a chapter depends on: all modules and recipes."""
    return modules() + sorted(map(str, Path("lenslib/recipes").glob("*.yaml")))


def digest(paths: list[str]) -> str:
    """SHA-256 over these files and their names, which a step has among its parameters: it runs again when that is
    another. As inputs they would make a plan of 10,000 runs one of half a million, and a file that is written after
    the clock went backwards would look old.
    """
    found = hashlib.sha256()
    for path in paths:
        found.update(path.encode() + b"\0" + Path(path).read_bytes() + b"\0")
    return found.hexdigest()
