"""Editing a module runs again every step that imports it, and no training for a plot."""

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "workflow"))
import sources  # noqa: E402

# Batch.to_lenstronomy is a reader's view of a scene that is already drawn.
HARMLESS = {("lenslib/simulate.py", "lenslib/interop.py")}
# Estimates are refined, and lenses undone, when the network has been trained.
HARMLESS |= {("lenslib/inference.py", f"lenslib/{name}.py") for name in ("refine", "roulette_fit", "delens")}
# Where memory comes from changes no number.
HARMLESS |= {("lenslib/memory.py", "lenslib/allocation.py")}


def imported(path: str) -> set[str]:
    """The library modules that one module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lenslib"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("lenslib")}
    files = {f"{name.replace('.', '/')}.py" for name in names} | {
        f"{name.replace('.', '/')}/__init__.py" for name in names
    }
    return {file for file in files if (REPOSITORY / file).is_file()} - {"lenslib/__init__.py"}


@pytest.mark.parametrize("step", ["simulation", "training"])
def test_a_step_depends_on_all_that_its_modules_import(monkeypatch, step):
    monkeypatch.chdir(REPOSITORY)
    counted = set(getattr(sources, step)())
    missed = {(path, name) for path in counted for name in imported(path) if name not in counted}
    assert missed <= HARMLESS


def test_views_are_chapters_matter_only(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert "lenslib/notebooks.py" not in sources.training()
    assert "lenslib/training.py" not in sources.simulation()
    assert set(sources.simulation()) < set(sources.training()) < set(sources.chapters())
