"""One simulator in a process of its own: `python -m lenslib.bench_worker NAME`, in a folder that holds job.json.

What it measures is left there as result.json. Only what the simulator needs is imported, so that the peak memory is its
own.
"""

import json
import sys
import tempfile
import time
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lenslib.errors import InputError
from lenslib.provenance import peak_memory_mb

# seconds; a peer that would take longer for a repeat draws fewer scenes, as many of each class
LONGEST = 10.0


def _work(name: str) -> None:
    job = json.loads(Path("job.json").read_text())
    worker = {"lenslib": _lenslib, "again": _again, "scaling": _scaling}.get(name, _peer)
    try:
        result = worker(job, name)
    except InputError as error:
        result = {"refused": str(error)}
    Path("result.json").write_text(json.dumps(result))


def _recipe(job: dict):
    from lenslib.recipe import parse_recipe

    return parse_recipe(job["recipe"])


def _draw(recipe, job: dict, count: int) -> None:
    """Images with noise, let go of as they come."""
    import torch

    from lenslib.simulate import sample_chunks

    for _ in sample_chunks(recipe, count, job["seed"], device=job["device"]):
        pass
    if job["device"].startswith("cuda"):
        torch.cuda.synchronize()


def _again(job: dict, name: str) -> dict:
    start = time.perf_counter()
    recipe = _recipe(job)
    _draw(recipe, job, recipe.chunk_size)
    return {"startup_seconds": time.perf_counter() - start}


def _lenslib(job: dict, name: str) -> dict:
    result = _again(job, name)
    recipe, seconds = _recipe(job), []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        _draw(recipe, job, job["count"])
        seconds.append(time.perf_counter() - start)
    result |= {"images": job["count"], "seconds": seconds, "peak_memory_mb": peak_memory_mb("cpu")}
    _hand_over(recipe, job)
    return result


def _hand_over(recipe, job: dict) -> None:
    """The scenes for the peers, and this library's noise-free images of the first."""
    batch = recipe.sample(job["count"], job["seed"], noise=False)
    order = _in_turn(batch.labels.numpy())
    np.save("clean.npy", batch.images[order[: job["compared"]], 0].numpy())
    arrays = {f"params.{key}": value for key, value in batch.params.items()}
    arrays |= {f"substructure.{key}": value for key, value in batch.substructure.items()}
    np.savez("drawn.npz", **{key: value.numpy() for key, value in arrays.items()})
    instrument = recipe.instrument
    said = {
        "order": order,
        "labels": batch.labels.tolist(),
        "classes": len(recipe.classes),
        "kernel": instrument.psf.kernel(instrument.pixel_scale),
        "noise": instrument.noise.model_dump(mode="json"),
        "exposures": [
            {key: float(batch.params[key][i]) for key in ("background_rms", "exposure_time") if key in batch.params}
            for i in range(len(batch))
        ],
    }
    try:
        said["scenes"] = [batch.to_lenstronomy(i)._asdict() for i in range(len(batch))]
    except InputError as error:
        said["refused"] = str(error)
    Path("scenes.json").write_text(json.dumps(said, default=lambda array: array.tolist()))


def _in_turn(labels: np.ndarray) -> np.ndarray:
    """Scenes with the classes taking turns, so that the first few are as hard as all."""
    turn = np.empty(len(labels), int)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        turn[mine] = np.arange(len(mine))
    return np.lexsort((labels, turn))


def _scaling(job: dict, name: str) -> dict:
    from lenslib.dataset import write_dataset

    recipe = _recipe(job)
    _draw(recipe, job, recipe.chunk_size)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        start = time.perf_counter()
        write_dataset(recipe, job["size"], job["seed"], Path(folder) / "set", device=job["device"], progress=False)
        return {"seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb("cpu")}


def _peer(job: dict, name: str) -> dict:
    if find_spec(name) is None:
        raise InputError("not installed: pip install 'lenslib[oracles]'")
    start = time.perf_counter()
    said = json.loads(Path("scenes.json").read_text())
    read = time.perf_counter() - start
    if "refused" in said and name != "caustics":
        raise InputError(said["refused"])
    draw = {"lenstronomy": _lenstronomy, "autolens": _autolens, "caustics": _caustics}[name](job, said)
    rng = np.random.default_rng(job["seed"])
    draw(said["order"][0])
    result = {"startup_seconds": time.perf_counter() - start - read}
    start, order = time.perf_counter(), said["order"]
    result["largest_difference"] = _largest_difference(draw, order, np.array(said["kernel"]))
    each = (time.perf_counter() - start) / min(job["compared"], len(order))
    turns = max(1, int(LONGEST / each / said["classes"]))
    shown, seconds = order[: turns * said["classes"]], []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        for i in shown:
            _expose(draw(i), said["noise"], said["exposures"][i], rng)
        seconds.append(time.perf_counter() - start)
    return result | {"images": len(shown), "seconds": seconds, "peak_memory_mb": peak_memory_mb("cpu")}


def _lenstronomy(job: dict, said: dict):
    from lenslib.interop import lenstronomy_model

    scenes = _scenes(said)
    # a model serves all scenes of as many lenses
    model = lru_cache(lambda lenses: lenstronomy_model(next(s for s in scenes if tuple(s.lens_model_list) == lenses)))

    def draw(i: int) -> np.ndarray:
        scene = scenes[i]
        return model(tuple(scene.lens_model_list)).image(scene.kwargs_lens, scene.kwargs_light, scene.kwargs_lens_light)

    return draw


def _autolens(job: dict, said: dict):
    from lenslib.interop import autolens_image

    scenes, kernel = _scenes(said), np.array(said["kernel"])
    return lambda i: autolens_image(scenes[i], kernel)


def _scenes(said: dict) -> list:
    from lenslib.interop import Scene

    scenes = [Scene(**scene) for scene in said["scenes"]]
    for scene in scenes:
        for arrays, name in ((scene.kwargs_psf, "kernel_point_source"), (scene.kwargs_light[0], "image")):
            if name in arrays:
                arrays[name] = np.array(arrays[name])
    return scenes


def _caustics(job: dict, said: dict):
    import torch

    from lenslib.simulate import render
    from lenslib.substructure import PROFILE_NEEDS

    recipe, arrays = _recipe(job), np.load("drawn.npz")
    drawn = {"params": {}, "substructure": {}}
    for key in arrays.files:
        kind, name = key.split(".")
        drawn[kind][name] = torch.from_numpy(arrays[key])

    @torch.no_grad()
    def draw(i: int) -> np.ndarray:
        one = {name: value[i : i + 1] for name, value in drawn["params"].items()}
        present = drawn["substructure"]["theta_E"][i] > 0
        population = recipe.substructure.populations.get(recipe.classes[said["labels"][i]])
        if population is None or not present.any():
            return render(recipe, one)[0, 0].numpy()
        names = ("x", "y", "theta_E", *PROFILE_NEEDS[population.profile])
        return render(recipe, one, {name: drawn["substructure"][name][i : i + 1, present] for name in names})[
            0, 0
        ].numpy()

    return draw


def _largest_difference(draw, order: list[int], kernel: np.ndarray) -> float:
    """Over the pixels that do not see beyond the edge where the kernel has long wings: there each has its own sky."""
    clean, edge = np.load("clean.npy"), len(kernel) // 2
    inner = slice(edge, clean.shape[-1] - edge)
    pairs = zip(order[: len(clean)], clean, strict=True)
    return max(float(np.abs(draw(i) - ours)[inner, inner].max() / ours.max()) for i, ours in pairs)


def _expose(image: np.ndarray, noise: dict, exposure: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """The recipe's noise (see `lenslib.instruments`) in plain numpy."""
    if noise["kind"] == "none":
        return image
    background, seconds = exposure["background_rms"], exposure["exposure_time"]
    if noise["kind"] == "deeplense":
        deviation = np.sqrt(np.abs(image) / seconds + background**2)
        counts = (image + deviation * rng.standard_normal(image.shape)) * seconds
        return rng.poisson(np.maximum(counts, 0)) if noise["poisson_again"] else counts
    image = np.maximum(image, 0)
    if noise["kind"] == "photon":
        return rng.poisson(image * seconds) / seconds + background * rng.standard_normal(image.shape)
    if noise["kind"] == "sky":
        sky = background**2 * seconds
        return rng.poisson((image + sky) * seconds) / seconds - sky
    raise InputError(f"no numpy form of the noise '{noise['kind']}' for this simulator")


if __name__ == "__main__":
    _work(sys.argv[1])
