"""`lenslib bench train`: this library's training and steerable networks beside what people run today.

Every row is a process of its own, on the same images in the same batches. The loop of today is that of the DeepLense
notebooks: float32, a DataLoader over .npy files, Adam. An epoch is timed with its validation, the first one is left
out, which compiles and warms up. Steerable networks are also run by e2cnn as its example has them.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from lenslib.bench_options import add_output, check_counts, say
from lenslib.errors import InputError

COUNTS = ("count", "batch_size", "repeats", "threads")
NETWORKS = ("small_cnn:64", "resnet18:64", "resnet18:150", "c8_steerable:65")
WORKER = "lenslib.bench_training_worker"
EXAMPLE = "c8_steerable_cnn"  # of e2cnn
# ways to judge images by one trained steerable network
JUDGES = {
    "e2cnn": "e2cnn, float32",
    "convolutions": "exported to plain convolutions, float32",
    "convolutions_bf16": "exported, bf16, compiled",
}


def add_parser(commands) -> None:
    """Add `train` to the subparsers of `lenslib bench`."""
    summary = "images per second of this library's training and of the loops people use, on the same images in one run"
    parser = commands.add_parser("train", help=summary, description=summary)
    parser.set_defaults(handler=_bench)
    parser.add_argument("--recipe", default="deeplense_1", help="a name or the path of a YAML file")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="MODEL:PIXELS", help="what is trained")
    parser.add_argument("--count", type=int, default=640, help="images of an epoch; a fifth as many are for validation")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="epochs that are timed; their median is shown")
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], metavar="N", help="processes that read files for the loop"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)


def _bench(options) -> None:
    from lenslib.recipe import load_recipe
    from lenslib.tables import print_table

    recipe = load_recipe(options.recipe)
    given = {name: getattr(options, name) for name in (*COUNTS, "networks", "workers", "seed")}
    rows = bench_training(recipe, **given, step=say)
    run = record_bench(options.results, options.profile, recipe, rows, given)
    if options.json:
        print(json.dumps({"rows": rows, "record": str(run.folder)}, indent=1))
        return
    print_table([{key: "" if value is None else value for key, value in _shown(row).items()} for row in rows], False)
    print(f"\n{run.folder}: medians of {options.repeats}")


def _shown(row: dict) -> dict:
    numbers = {key: f"{row[key]:.1f}" for key in ("images_per_second", "low", "high", "peak_memory_mb")}
    found = {key: "" if row[key] is None else f"{row[key]:.3g}" for key in ("ratio", "largest_difference", "macro_auc")}
    return {"network": row["network"], "pixels": row["pixels"], "what": row["what"]} | numbers | found


def bench_training(
    recipe,
    networks: list[str],
    count: int,
    batch_size: int,
    repeats: int,
    threads: int,
    workers: list[int],
    seed: int = 0,
    step: Callable[[str], None] = print,
) -> list[dict]:
    """Rows, one a process: `network`, `pixels`, `key` and `what` (in words), `images_per_second` with `low` and `high`
    over repeats, `ratio` of lenslib's rate to this row's (of a row of inference: of its rate to e2cnn's),
    `peak_memory_mb`; of inference also `macro_auc` on the validation images and `largest_difference` of the outputs
    from e2cnn's, relative to the largest.

    Raises InputError for counts below 1, a recipe without classes, and networks that are unknown or cannot take a size.
    """
    from lenslib.models import model_info

    counts = {"count": count, "batch_size": batch_size, "repeats": repeats, "threads": threads}
    check_counts(counts)
    if recipe.kind == "roulette" or min(workers) < 0:
        raise InputError(
            f"{recipe.name} has no classes: name another recipe" if min(workers) >= 0 else "workers below 0"
        )
    rows, asked = [], [_network(text) for text in networks]
    job = counts | {"seed": seed, "classes": len(recipe.classes)}
    with tempfile.TemporaryDirectory(prefix="lenslib-bench-") as folder:
        step("simulating")
        _write_images(Path(folder), recipe, max(2, count // 5), job)
        for model, size in asked:
            info, network = model_info(model), job | {"model": model, "size": size}
            runs = {"lenslib": ("lenslib", network)}
            if info.compile:
                runs["lenslib_compiled"] = ("lenslib, compiled", network | {"compile": True})
            for number in workers:
                what = f"a loop over files, {number} more processes" if number else "a loop over files"
                runs[f"loop_{number}"] = (what, network | {"workers": number})
            if model == "c8_steerable" and model_info(EXAMPLE).takes_size(size):
                example = network | {"model": EXAMPLE, "workers": workers[0]}
                runs["example"] = ("the example of e2cnn at its width, a loop over files", example)
            rows += _measured(Path(folder), runs, "lenslib" if info.family == "equivariant" else None, step)
    return rows


def _network(text: str) -> tuple[str, int]:
    from lenslib.models import model_info

    model, _, size = text.partition(":")
    info = model_info(model)
    if not size.isdigit() or not info.takes_size(int(size)):
        raise InputError(f"'{text}': give MODEL:PIXELS, where {model} takes {info.size_rule}")
    if info.family == "autoencoder":
        raise InputError(f"'{text}': an autoencoder gives back images, not classes")
    return model, int(size)


def _measured(folder: Path, runs: dict[str, tuple[str, dict]], judged: str | None, step) -> list[dict]:
    """Rows of one network: its trainings, and the ways to judge images where it is steerable."""
    from lenslib.bench import measure

    rows = []
    for key, (what, job) in runs.items():
        step(f"{job['model']} at {job['size']} pixels, {what}")
        rows.append(_row(key, what, job, measure(folder, key, job, WORKER)))
    for row in rows[1:]:
        row["ratio"] = rows[0]["images_per_second"] / row["images_per_second"]
    if judged:
        job, results = runs[judged][1], {}
        for key, what in JUDGES.items():
            step(what)
            results[key] = measure(folder, key, job, WORKER)
            rows.append(_row(f"inference_{key}", f"inference: {what}", job, results[key]))
            rows[-1]["ratio"] = rows[-1]["images_per_second"] / rows[len(runs)]["images_per_second"]
    return rows


def _row(key: str, what: str, job: dict, found: dict) -> dict:
    rates = [found["images"] / seconds for seconds in found["seconds"]]
    row = {"network": job["model"], "pixels": job["size"], "key": key, "what": what}
    row |= {"images_per_second": median(rates), "low": min(rates), "high": max(rates), "ratio": None}
    return row | {key: found.get(key) for key in ("peak_memory_mb", "largest_difference", "macro_auc")}


def _write_images(folder: Path, recipe, validation: int, job: dict) -> None:
    """The recipe's images at its own size, from which every process prepares those of its network."""
    import numpy as np

    batch = recipe.sample(job["count"] + validation, job["seed"])
    np.savez(folder / "images.npz", images=batch.images.numpy(), labels=batch.labels.numpy())


def record_bench(results_folder, profile: str, recipe, rows: list[dict], given: dict):
    """Write the run record: each row's numbers as `<network>_<pixels>_<key>_<number>`."""
    from lenslib.records import run_folder, write_run

    metrics = {}
    for row in rows:
        start = f"{row['network']}_{row['pixels']}_{row['key']}"
        rate = {"value": row["images_per_second"], "low": row["low"], "high": row["high"]}
        metrics[f"{start}_images_per_second"] = rate
        for key in ("ratio", "peak_memory_mb", "largest_difference", "macro_auc"):
            if row[key] is not None:
                metrics[f"{start}_{key}"] = row[key]
    place = {"profile": profile, "task": "bench", "recipe": recipe.name, "model": "train", "seed": given["seed"]}
    parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return write_run(run_folder(results_folder, **place), **place, parameters=parameters, metrics=metrics)
