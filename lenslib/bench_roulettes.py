"""`lenslib bench roulettes`: CosmoSim's images, Fisher matrices and the bound, measured.

Images a second of this library and of the CosmoSim package 2.6.8, of the same scenes in one run; Fisher matrices a
second of 64 x 64 images with 14 parameters; with --refits, the scatter of maximum-likelihood refits over the bound.
"""

import json
import time
from statistics import median

import numpy as np
import torch

from lenslib.bench_options import add_output
from lenslib.errors import InputError

# options of the command that are numbers of things
COUNTS = ("count", "cosmosim", "matrices", "refits")
NAMES = ("roulette_sis", "roulette_pm", "raytrace_sis", "raytrace_pm", "raytrace_sie")
# recipe, and what makes its images small enough to be fitted hundreds of times
FITTED = {
    "roulette_sis": {"instrument.pixels": 128, "instrument.noise_sd": 2.0, "instrument.centring": "none"},
    "raytrace_pm": {"instrument.pixels": 128, "instrument.noise_sd": 2.0, "instrument.centring": "none"},
    "raytrace_sie": {"instrument.pixels": 128, "instrument.noise_sd": 2.0, "instrument.centring": "none"},
    # without the clipping at zero and the second Poisson draw, which no likelihood of pixels describes
    "deeplense_1": {"instrument.pixels": 64, "instrument.pixel_scale": 0.08, "instrument.noise.poisson_again": False},
    "matched_hst": {"instrument.pixels": 64, "instrument.pixel_scale": 0.065},
}


def add_parser(commands) -> None:
    """Add `roulettes` to the subparsers of `lenslib bench`."""
    summary = (
        "roulette images a second beside the CosmoSim package, Fisher matrices a second, and the bound beside refits"
    )
    parser = commands.add_parser("roulettes", help=summary, description=summary)
    parser.set_defaults(handler=_bench)
    parser.add_argument("--count", type=int, default=96, help="images of each recipe")
    parser.add_argument("--cosmosim", type=int, default=8, help="images that CosmoSim draws of each; 0: none")
    parser.add_argument("--matrices", type=int, default=64, help="Fisher matrices; 0: none")
    parser.add_argument("--refits", type=int, default=0, help="refits of each of five scenes; the bar is at 500")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)


def _bench(options) -> None:
    from lenslib.tables import print_table

    for name in COUNTS:
        if getattr(options, name) < (name == "count"):
            raise InputError(f"--{name} must be at least {int(name == 'count')}, not {getattr(options, name)}")
    found = {"images": [images_per_second(name, options.count, options.cosmosim, options.seed) for name in NAMES]}
    if options.matrices:
        found["matrices"] = [matrices_per_second(options.matrices, options.seed)]
    if options.refits:
        found["refits"] = [row for name in FITTED for row in scatter(name, options.refits, options.seed)]
    run = record_bench(options.results, options.profile, found, options)
    if options.json:
        print(json.dumps(found | {"record": str(run.folder)}, indent=1))
        return
    for rows in found.values():
        print_table(rows, False)
        print()
    print(run.folder)


def record_bench(results_folder, profile: str, found: dict[str, list[dict]], options):
    """Write the run record: of each recipe its rate, its ratio to CosmoSim's and the share of pixels within 2 levels;
    matrices a second; of each scene the least and the largest scatter of refits over the bound."""
    from lenslib.records import run_folder, write_run

    metrics = {}
    for row in found["images"]:
        kept = {name: row[name] for name in ("images_per_second", "ratio", "within_2") if row[name] != ""}
        metrics |= {f"{row['recipe']}_{name}": value for name, value in kept.items()}
    for row in found.get("matrices", []):
        metrics["matrices_per_second"] = row["matrices_per_second"]
    for scene in dict.fromkeys(row["scene"] for row in found.get("refits", [])):
        ratios = [row["scatter_over_bound"] for row in found["refits"] if row["scene"] == scene]
        metrics |= {f"{scene}_least_scatter": min(ratios), f"{scene}_largest_scatter": max(ratios)}
    place = {"profile": profile, "task": "bench", "recipe": NAMES[0], "model": "roulettes", "seed": options.seed}
    parameters = {name: getattr(options, name) for name in COUNTS}
    return write_run(run_folder(results_folder, **place), **place, parameters=parameters, metrics=metrics)


def images_per_second(name: str, count: int, peers: int, seed: int = 0) -> dict:
    """One row: rates of both programs on the same scenes, and the share of pixels within 2 grey levels."""
    from lenslib.cosmosim import cosmosim_images
    from lenslib.recipe import load_recipe

    recipe = load_recipe(name)
    batch = recipe.sample(max(peers, 1), seed)
    rate = _rate(lambda: recipe.sample(count, seed), count)
    row = {"recipe": name, "images_per_second": rate, "cosmosim": "", "ratio": "", "within_2": ""}
    if peers:
        params = {key: value[:peers].numpy() for key, value in batch.params.items()}
        theirs, start = [], time.perf_counter()
        try:
            theirs = list(cosmosim_images(recipe, params))
        except InputError as error:
            return row | {"cosmosim": str(error)}
        theirs_rate = peers / (time.perf_counter() - start)
        close = np.abs(np.stack(theirs) - batch.images[:peers, 0].numpy()) <= 2
        row |= {"cosmosim": theirs_rate, "ratio": rate / theirs_rate, "within_2": float(close.mean())}
    return row


def matrices_per_second(count: int, seed: int = 0) -> dict:
    """One row: Fisher matrices a second of smooth lenses of deeplense_1 at 64 x 64 pixels, 14 parameters."""
    from lenslib.information import fisher

    recipe, params, _ = _scene("deeplense_1", count, seed)
    # the first call compiles
    parameters = len(fisher(recipe, params).names)
    rate = _rate(lambda: fisher(recipe, params), count)
    return {"recipe": recipe.name, "parameters": parameters, "matrices_per_second": rate}


def _rate(work, count: int) -> float:
    """Things a second of `work`, which makes `count`: the median of three calls."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / median(seconds)


def _scene(name: str, count: int, seed: int):
    """A recipe on few pixels, the params (float64) of `count` scenes without substructure, and what is to be fitted."""
    from lenslib.recipe import load_recipe

    recipe = load_recipe(name, FITTED[name])
    if recipe.kind == "lens":
        batch = recipe.sample(recipe.chunk_size * -(-count * len(recipe.classes) // recipe.chunk_size), seed)
        smooth = batch.labels == recipe.classes.index("no_sub")
        return recipe, {key: value[smooth][:count].double() for key, value in batch.params.items()}, None
    given = {"x": 60.0, "y": 20.0, "chi": 50.0, "einstein_radius": 12.0, "sigma1": 9.0, "sigma2": 6.0, "theta": 20.0}
    given |= {"axis_ratio": 0.6, "orientation": 30.0, "centre_x": 80.0, "centre_y": 27.0}
    if recipe.lens.profile == "sie":
        # behind the lens, with four images: one arc alone does not tell the shape of an ellipsoid
        given |= {"x": 8.0, "y": 5.0, "einstein_radius": 18.0, "sigma1": 7.0, "sigma2": 5.0}
        given |= {"centre_x": 0.0, "centre_y": 0.0}
    params = {key: torch.full((count,), value, dtype=torch.float64) for key, value in given.items()}
    return recipe, params, tuple(key for key in recipe.targets if key != "chi")


def scatter(name: str, copies: int, seed: int = 0) -> list[dict]:
    """Rows, one a parameter: deviation of refits of noisy copies of one scene, over the Cramer-Rao bound."""
    from lenslib.information import ROUNDING_VARIANCE, fisher, refit
    from lenslib.instruments import NumpyNoise
    from lenslib.simulate import render

    recipe, params, names = _scene(name, 1, seed)
    many, rng = {key: value.expand(copies) for key, value in params.items()}, np.random.default_rng(seed)
    if recipe.kind == "roulette":
        image = recipe.render(params)
        deviation = (recipe.instrument.noise_sd**2 + ROUNDING_VARIANCE) ** 0.5
        noisy = image + deviation * torch.from_numpy(rng.standard_normal((copies, *image.shape[1:])))
    else:
        image = render(recipe, params).expand(copies, -1, -1, -1).float()
        scenes = {key: value.float() for key, value in many.items()}
        noisy = recipe.instrument.noise.add(image, scenes, NumpyNoise(rng)).double()
        if recipe.instrument.noise.kind == "deeplense":
            noisy = noisy / many["exposure_time"][:, None, None, None]
    found, bound = refit(recipe, noisy, many, names), fisher(recipe, params, names).bound()
    return [
        {
            "scene": name,
            "parameter": key,
            "bound": float(bound[key][0]),
            "scatter_over_bound": float(value.std() / bound[key][0]),
        }
        for key, value in found.items()
    ]
