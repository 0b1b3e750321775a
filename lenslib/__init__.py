"""Data sets, models and metrics for finding dark-matter substructure in strong gravitational lenses.

recipe = lenslib.load_recipe("deeplense_1")
batch = recipe.sample(96, seed=0)          # images, labels, params, substructure
network = lenslib.create_model("small_cnn", num_outputs=3, image_size=75)
"""

from importlib import import_module

from lenslib.allocation import keep_freed_memory

__version__ = "0.1.0"

keep_freed_memory()

_HOMES = {
    "load_recipe": "recipe",
    "list_recipes": "recipe",
    "open_dataset": "dataset",
    "read_fits": "fits_files",
    "read_cosmosim": "cosmosim",
    "write_cosmosim_csv": "cosmosim",
    "create_model": "models",
    "list_models": "models",
    "InputError": "errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    """Public names, imported on first use so that `import lenslib` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lenslib' has no attribute '{name}'")
    return getattr(import_module(f"lenslib.{_HOMES[name]}"), name)
