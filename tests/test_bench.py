"""The benchmark: it measures what it says, its peers draw the same images, and a missing one is a line of its table."""

import contextlib
import json

import numpy as np
import pytest

from lenslib import bench, bench_roulettes, bench_training_worker
from lenslib.bench_worker import _expose, _in_turn
from lenslib.cli import main
from lenslib.errors import InputError
from lenslib.records import load_run, load_runs


def test_all_simulators_draw_the_same_scenes(small_recipe, tmp_path, capsys, monkeypatch):
    # compiling takes longer than a test
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(small_recipe.to_yaml())
    options = ["--recipe", recipe, "--count", 6, "--repeats", 2, "--scaling", 5, "--profile", "test"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in ["bench", "simulate", *options, "--json", "--results", tmp_path / "results"]])
    assert stop.value.code == 0
    said = json.loads(capsys.readouterr().out)
    rows = {row["simulator"]: row for row in said["simulators"]}
    assert list(rows) == ["lenslib", "lenstronomy", "PyAutoLens", "caustics, uncompiled"]
    for name, row in rows.items():
        assert row["low"] <= row["images_per_second"] <= row["high"]
        # Python and numpy alone take 30 MB; a process that held all four would take more than 4 GB
        assert 30 < row["peak_memory_mb"] < 4000
        assert row["startup_seconds"] > 0
        if name != "lenslib":
            assert row["largest_difference"] < 1e-3
            assert row["note"] == ""
    assert rows["lenstronomy"]["ratio_to_lenstronomy"] == 1
    assert [row["images"] for row in said["scaling"]] == [5]
    (found,) = load_runs(tmp_path / "results")
    assert (found.task, found.recipe, found.model, found.profile) == ("bench", "deeplense_1", "simulate", "test")
    assert found.metrics["autolens_largest_difference"] == rows["PyAutoLens"]["largest_difference"]
    assert found.metrics["lenslib_images_per_second"]["value"] == rows["lenslib"]["images_per_second"]
    assert found.metrics["scaling_5_seconds"] == said["scaling"][0]["seconds"]


def _results(**changes):
    measured = {"images": 40, "startup_seconds": 2.0, "peak_memory_mb": 100.0}
    results = {
        "lenslib": measured | {"seconds": [1.0, 0.5, 4.0]},
        "again": {"startup_seconds": 1.0},
        "lenstronomy": measured | {"seconds": [10.0, 8.0, 20.0], "largest_difference": 1e-5},
        "autolens": {"note": "not installed"},
        "caustics": measured | {"images": 20, "seconds": [2.5, 2.5, 2.5], "largest_difference": 1e-7},
        "scaling": {200: {"seconds": 4.4, "peak_memory_mb": 9.0}, 100: {"seconds": 2.0, "peak_memory_mb": 8.0}},
    }
    return results | changes


def test_the_table_has_medians_ratios_and_gaps():
    ours, lenstronomy, autolens, caustics = bench.table(_results())
    assert (ours["images_per_second"], ours["low"], ours["high"]) == (40, 10, 80)
    assert [row["ratio_to_lenstronomy"] for row in (ours, lenstronomy, caustics)] == [10, 1, 2]
    assert autolens["note"] == "not installed"
    assert {autolens[name] for name in ("images_per_second", "ratio_to_lenstronomy", "peak_memory_mb")} == {None}
    without = bench.table(_results(lenstronomy={"note": "not installed"}))
    assert [row["ratio_to_lenstronomy"] for row in without] == [None] * 4


def test_the_record_says_how_cost_grows(small_recipe, tmp_path):
    given = {"count": 40, "compared": 6, "repeats": 3, "seed": 0, "device": "cpu", "scaling": [100, 200]}
    run = bench.record_bench(tmp_path, "test", small_recipe, _results(), given)
    # 200 images take 4.4 s and 100 take 2 s: a tenth more each
    assert run.metrics["scaling_cost_ratio"] == pytest.approx(1.1, rel=1e-2)
    assert run.metrics["scaling_200_peak_memory_mb"] == 9
    assert run.images_per_second == 40
    assert not [name for name in run.metrics if name.startswith("autolens")]


def test_a_missing_library_is_a_line(tmp_path, monkeypatch):
    (tmp_path / "scenes.json").write_text("{}")
    monkeypatch.setitem(bench.PEERS, "no_such_library", "No such library")
    assert "not installed" in bench.measure(tmp_path, "no_such_library", {})["note"]


def test_a_peer_that_fails_is_a_line_and_lenslib_that_fails_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "lenstronomy.py").write_text("raise RuntimeError('out of order')")
    (tmp_path / "scenes.json").write_text('{"scenes": [], "kernel": []}')
    # the worker's own folder comes first on its path
    assert bench.measure(tmp_path, "lenstronomy", {"seed": 0})["note"].startswith("failed: ")
    with pytest.raises(InputError, match="benchmark of lenslib failed"):
        bench.measure(tmp_path, "lenslib", {})


def test_classes_take_turns():
    labels = np.array([0, 0, 2, 1, 1, 0, 2, 2, 1, 0])
    order = _in_turn(labels)
    assert sorted(order) == list(range(10))
    assert labels[order].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("given", [["--count", "0"], ["--compared", "0"], ["--repeats", "0"], ["--scaling", "10", "0"]])
def test_bad_counts_are_named(given, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "simulate", *given, "--results", str(tmp_path / "results")])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert given[0].removeprefix("--") in said.err
    assert len(said.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("noise", "mean", "variance"),
    [
        # DeepLenseSim: counts of a Poisson draw from an image that has noise of photons and background already
        ({"kind": "deeplense", "poisson_again": True}, 2000, 2 * 2000 + (0.01 * 1000) ** 2),
        ({"kind": "deeplense", "poisson_again": False}, 2000, 2000 + (0.01 * 1000) ** 2),
        ({"kind": "photon"}, 2, 2 / 1000 + 0.01**2),
        ({"kind": "sky"}, 2, 2 / 1000 + 0.01**2),
        ({"kind": "none"}, 2, 0),
    ],
)
def test_the_peers_noise_has_the_moments_of_the_recipes(noise, mean, variance):
    exposure, rng = {"background_rms": 0.01, "exposure_time": 1000.0}, np.random.default_rng(0)
    drawn = _expose(np.full((200, 200), 2.0), noise, exposure, rng)
    assert abs(drawn.mean() - mean) <= 5 * np.sqrt(variance / drawn.size)
    assert abs(drawn.var() - variance) <= 5 * variance * np.sqrt(2 / drawn.size)


def test_the_roulette_bench_shows_and_records_all_that_it_measures(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_roulettes, "NAMES", ("raytrace_sis",))
    monkeypatch.setattr(bench_roulettes, "FITTED", {"deeplense_1": bench_roulettes.FITTED["deeplense_1"]})
    command = ["bench", "roulettes", "--count", "2", "--cosmosim", "0", "--matrices", "2", "--refits", "8", "--json"]
    command += ["--results", str(tmp_path), "--profile", "test"]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"][0]["images_per_second"] > 0
    assert found["matrices"][0]["parameters"] == 14
    assert len(found["refits"]) == 14
    # eight deviations say little: within a factor of three
    assert all(1 / 3 < row["scatter_over_bound"] < 3 for row in found["refits"])
    metrics = load_run(found["record"]).metrics
    assert metrics["raytrace_sis_images_per_second"] == pytest.approx(found["images"][0]["images_per_second"])
    worst = max(row["scatter_over_bound"] for row in found["refits"])
    assert metrics["deeplense_1_largest_scatter"] == pytest.approx(worst)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "roulettes", "--count", "0"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "simulate", "--recipe", "raytrace_sis"])
    assert stopped.value.code == 2
    assert "use lenslib bench roulettes" in capsys.readouterr().err


@pytest.fixture
def in_this_process(monkeypatch):
    """The workers of `bench train` without a process and a compiler each, which take longer than a test."""

    def measure(folder, name, job, module):
        assert module == bench_training_worker.__name__
        (folder / "job.json").write_text(json.dumps(job))
        with contextlib.chdir(folder):
            bench_training_worker._work(name)
        return json.loads((folder / "result.json").read_text())

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr("lenslib.compilation.has_compiler", lambda device: False)


def test_the_training_bench_shows_and_records_all_that_it_measures(
    in_this_process, threads, run, small_recipe, tmp_path
):
    threads(1)  # and back afterwards, as the workers set them
    recipe = tmp_path / "small.yaml"
    recipe.write_text(small_recipe.to_yaml())
    options = ["--recipe", recipe, "--networks", "small_cnn:16", "c4_steerable:17", "--count", 30, "--batch-size", 8]
    options += ["--repeats", 2, "--threads", 1, "--workers", 0, "--results", tmp_path, "--profile", "test"]
    code, out, errors = run("bench", "train", *options, "--json")
    assert (code, errors) == (0, [])
    rows = {(row["network"], row["key"]): row for row in json.loads(out)["rows"]}
    judged = [("c4_steerable", f"inference_{name}") for name in ("e2cnn", "convolutions", "convolutions_bf16")]
    trained = [(name, key) for name in ("small_cnn", "c4_steerable") for key in ("lenslib", "loop_0")]
    assert set(rows) == {*trained, *judged, ("small_cnn", "lenslib_compiled")}
    for row in rows.values():
        assert row["low"] <= row["images_per_second"] <= row["high"]
    for name in ("small_cnn", "c4_steerable"):
        ours, theirs = rows[name, "lenslib"], rows[name, "loop_0"]
        assert theirs["ratio"] == pytest.approx(ours["images_per_second"] / theirs["images_per_second"])
    e2cnn, plain, half = (rows[key] for key in judged)
    assert plain["largest_difference"] < 1e-5
    assert half["largest_difference"] < 0.1
    assert plain["macro_auc"] == pytest.approx(e2cnn["macro_auc"], abs=1e-3)
    (found,) = load_runs(tmp_path)
    assert (found.task, found.recipe, found.model) == ("bench", "deeplense_1", "train")
    assert found.metrics["small_cnn_16_loop_0_ratio"] == rows["small_cnn", "loop_0"]["ratio"]
    assert found.metrics["c4_steerable_17_inference_convolutions_ratio"] == plain["ratio"]
    assert run("bench", "train", *options)[1].splitlines()[0].split()[:3] == ["network", "pixels", "what"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--count", "0"], "count"),
        (["--threads", "0"], "threads"),
        (["--workers", "-1"], "workers"),
        (["--networks", "small_cn:64"], "small_cnn"),
        (["--networks", "small_cnn"], "MODEL:PIXELS"),
        (["--networks", "c8_steerable:64"], "remainder of 1"),
        (["--networks", "vae:64"], "autoencoder"),
        (["--recipe", "roulette_sis"], "no classes"),
    ],
)
def test_a_training_bench_of_nonsense_is_refused(run, tmp_path, given, said):
    code, out, errors = run("bench", "train", *given, "--results", tmp_path / "results")
    assert (code, out, len(errors)) == (2, "", 1)
    assert said in errors[0]
    assert not list(tmp_path.iterdir())
