"""`lenslib bench simulate`: this library and its peers on the same scenes, each in a process of its own.

Every simulator draws the same lenses on the same pixels, one ray a pixel, with the same point-spread function and the
same noise; the peers one image at a time, with numpy's noise, from scenes that are handed to them ready. This library
draws its scenes itself. What is imported and compiled before the first image is told apart from the rate.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from lenslib import bench_faults, bench_roulettes, bench_training
from lenslib.bench_options import add_output, check_counts, say
from lenslib.errors import InputError

PEERS = {"lenstronomy": "lenstronomy", "autolens": "PyAutoLens", "caustics": "caustics, uncompiled"}


def add_parser(commands, device=str) -> None:
    """Add `bench simulate` to the subparsers of the command line; `device` checks the name of one."""
    bench = commands.add_parser("bench", help="measure this library", description="measure this library")
    commands = bench.add_subparsers(title="what to measure", required=True, metavar="WHAT")
    bench_faults.add_parser(commands)
    bench_roulettes.add_parser(commands)
    bench_training.add_parser(commands)
    summary = "images per second of this library and of its peers, on the same scenes in one run"
    parser = commands.add_parser("simulate", help=summary, description=summary)
    parser.set_defaults(handler=_bench_simulate)
    parser.add_argument("--recipe", default="deeplense_1", help="a name or the path of a YAML file")
    parser.add_argument("--count", type=int, default=480, help="images that this library draws, and its peers at most")
    parser.add_argument("--compared", type=int, default=30, help="noise-free images that are compared, at most")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is shown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:N, for this library")
    parser.add_argument(
        "--scaling", type=int, nargs="+", default=[], metavar="N", help="write data sets of N images to $TMPDIR as well"
    )
    add_output(parser)


def _bench_simulate(options) -> None:
    from lenslib.recipe import load_recipe
    from lenslib.tables import print_table

    recipe = load_recipe(options.recipe)
    if recipe.kind == "roulette":
        raise InputError(f"the peers cannot draw {recipe.name}: use lenslib bench roulettes")
    given = {name: getattr(options, name) for name in ("count", "compared", "repeats", "seed", "device", "scaling")}
    results = bench_simulate(recipe, **given, step=say)
    run = record_bench(options.results, options.profile, recipe, results, given)
    rows, sizes = table(results), scaling_table(results)
    if options.json:
        print(json.dumps({"simulators": rows, "scaling": sizes, "record": str(run.folder)}, indent=1))
        return
    for row in rows:
        if row["largest_difference"] is not None:
            row["largest_difference"] = f"{row['largest_difference']:.1e}"
    print_table([{name: "" if value is None else value for name, value in row.items()} for row in rows], False)
    if sizes:
        print()
        print_table(sizes, False)
    print(f"\n{run.folder}: medians of {options.repeats}")


def bench_simulate(
    recipe, count: int, compared: int, repeats: int, seed: int = 0, device: str = "cpu", scaling=(), step=print
) -> dict:
    """Measure `lenslib` and its peers on `count` images of a recipe, `repeats` times.

    A peer that would need more than ten seconds draws fewer of them, as many of each class.

    Returns, by simulator, `images` and the `seconds` they took (one a repeat), `startup_seconds`, `peak_memory_mb` and,
    for the peers, `largest_difference`: of noise-free images from this library's, relative to their peak. A peer that
    is not installed or cannot draw the scenes has a `note` instead. For each size in `scaling`, `scaling` has the
    seconds and peak memory of writing a data set of so many images. `step` is told what happens next.
    Raises InputError for counts below 1 and a disk without room for the largest data set.
    """
    check_counts({"count": count, "compared": compared, "repeats": repeats, "scaling": scaling})
    results = {"scaling": {}}
    with tempfile.TemporaryDirectory(prefix="lenslib-bench-") as folder:
        job = {"recipe": recipe.to_yaml(), "count": count, "compared": compared, "repeats": repeats}
        job |= {"seed": seed, "device": device}
        # the largest first: a disk without room is found before anything is measured
        for size in sorted(scaling, reverse=True):
            step(f"writing {size} images")
            results["scaling"][size] = measure(Path(folder), "scaling", job | {"size": size})
        for name, title in ({"lenslib": "lenslib", "again": "the start of lenslib, compiled before"} | PEERS).items():
            step(title)
            results[name] = measure(Path(folder), name, job)
    return results


def measure(folder: Path, name: str, job: dict, module: str = "lenslib.bench_worker") -> dict:
    """What the worker of that name in a module says, run in a fresh process in `folder`."""
    (folder / "job.json").write_text(json.dumps(job))
    places = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # what is compiled is kept here alone, and apart for `scaling`, so that the first start is a first start
    cache = folder / ("cache-scaling" if name == "scaling" else "cache")
    cache.mkdir(exist_ok=True)
    # torch keeps its prepared headers among the temporary files
    kept = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR", "TMPDIR"), str(cache))
    environment = os.environ | kept | {"PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-m", module, name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        if name in PEERS:
            return {"note": f"failed: {said}"}
        raise InputError(f"the benchmark of {name} failed: {said}")
    said = json.loads((folder / "result.json").read_text())
    if "refused" in said and name not in PEERS:
        raise InputError(said["refused"])
    return {"note": said["refused"]} if "refused" in said else said


def table(results: dict) -> list[dict]:
    """One row a simulator: images a second (median, least and most of the repeats), ratio to lenstronomy, costs."""
    timed = {name: result for name, result in results.items() if "seconds" in result}
    rates = {name: [result["images"] / s for s in result["seconds"]] for name, result in timed.items()}
    rows = []
    for name, title in ({"lenslib": "lenslib"} | PEERS).items():
        result = results[name]
        row = {"simulator": title, "images": result.get("images")}
        found = rates.get(name, [])
        middle = round(median(found), 1) if found else None
        row |= {"images_per_second": middle, "low": round(min(found), 1) if found else None}
        row["high"] = round(max(found), 1) if found else None
        both = found and rates.get("lenstronomy")
        row["ratio_to_lenstronomy"] = round(median(found) / median(rates["lenstronomy"]), 2) if both else None
        for key in ("peak_memory_mb", "startup_seconds", "largest_difference"):
            value = result.get(key)
            row[key] = value if value is None or key == "largest_difference" else round(value, 1)
        rows.append(row | {"note": result.get("note", "")})
    rows[0]["note"] = f"starts in {results['again']['startup_seconds']:.1f} s once compiled"
    return rows


def scaling_table(results: dict) -> list[dict]:
    """One row a size: seconds to write so many images, images a second and peak memory."""
    return [
        {"images": size, "seconds": round(found["seconds"], 2), "images_per_second": round(size / found["seconds"], 1)}
        | {"peak_memory_mb": found["peak_memory_mb"]}
        for size, found in sorted(results["scaling"].items())
    ]


def record_bench(results_folder, profile: str, recipe, results: dict, given: dict):
    """Write the run record: each simulator's numbers as `<simulator>_<number>`, the rates with their least and most."""
    from lenslib.records import run_folder, write_run

    metrics = {}
    for name, row in zip(["lenslib", *PEERS], table(results), strict=True):
        if row["images_per_second"] is not None:
            rate = {"value": row["images_per_second"], "low": row["low"], "high": row["high"]}
            metrics[f"{name}_images_per_second"] = rate
        for key in ("images", "ratio_to_lenstronomy", "peak_memory_mb", "startup_seconds", "largest_difference"):
            if row[key] is not None:
                metrics[f"{name}_{key}"] = row[key]
    metrics["lenslib_startup_again_seconds"] = results["again"]["startup_seconds"]
    sizes = scaling_table(results)
    for row in sizes:
        metrics[f"scaling_{row['images']}_seconds"] = row["seconds"]
        metrics[f"scaling_{row['images']}_peak_memory_mb"] = row["peak_memory_mb"]
    if len(sizes) > 1:
        # 1 where cost grows linearly
        metrics["scaling_cost_ratio"] = sizes[0]["images_per_second"] / sizes[-1]["images_per_second"]
    place = {"profile": profile, "task": "bench", "recipe": recipe.name, "model": "simulate", "seed": given["seed"]}
    rate = metrics["lenslib_images_per_second"]["value"]
    device, parameters = given["device"], {name: given[name] for name in ("count", "compared", "repeats", "scaling")}
    folder = run_folder(results_folder, **place)
    return write_run(folder, **place, parameters=parameters, metrics=metrics, images_per_second=rate, device=device)
