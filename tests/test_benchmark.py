"""A user's model beside a recorded network: equal to it where it is the same, harmless where it is bad."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lenslib.benchmark import benchmark, figure
from lenslib.benchmark_process import Submitted
from lenslib.classification import classify, record_run, train_classifier
from lenslib.comparison import compare
from lenslib.dataset import write_dataset
from lenslib.errors import InputError
from lenslib.recipe import changed
from lenslib.records import Records, load_run, run_folder, write_run
from lenslib.redraw import drawing, redraw
from lenslib.settings import Settings

BLIND = "import numpy as np\ndef model(recipe):\n    return lambda images: np.full((len(images), 3), 1 / 3)\n"
CENTRE = """
import numpy as np
def model(recipe):
    assert recipe.classes == ("no_sub", "cdm", "vortex") and recipe.shape == (1, 32, 32)
    def predict(images):
        x = images.mean((1, 2, 3)) / images.max((1, 2, 3))
        scores = np.exp(np.stack([0 * x, x, -x], 1))
        return scores / scores.sum(1, keepdims=True)
    return predict
"""


@pytest.fixture(scope="module")
def trained(training_data, tmp_path_factory):
    """A results folder with one trained network, and a data set of another seed that it was judged on."""
    results, data = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("data")
    test = write_dataset(training_data.recipe, 90, 7, data / "test/deeplense_1/test", progress=False)
    settings = Settings(epochs=1, seed=0)
    network = train_classifier(training_data, "small_cnn", 24, settings, "cpu")
    scores, rate = classify(network, test, "small_cnn", 24)
    run = record_run(results, "test", "small_cnn", 24, settings, network, training_data, test, scores, rate)
    return results, data, run


@pytest.fixture
def judge(trained, tmp_path):
    """Judges a Python text or an ONNX file beside the recorded network, with the workflow's data at hand."""
    results, data, _ = trained

    def call(content, **options):
        path = content
        if isinstance(content, str):
            path = tmp_path / "mine.py"
            path.write_text(content)
        limits = {key: options.pop(key) for key in ("logits", "timeout", "memory", "batch_size") if key in options}
        (one,) = benchmark(
            Submitted(path, **limits), results, data=options.pop("data", data), progress=False, **options
        )
        return one

    return call


def test_a_network_that_we_export_is_no_better_than_itself(trained, judge, tmp_path):
    pytest.importorskip("onnx", reason="needs the extra `demo`")
    from lenslib.export import export

    results, _, run = trained
    one = judge(export(run.folder / "weights.safetensors", tmp_path / "same.onnx"))
    assert (one.failed, one.exact) == ("", True)
    pair = one.pairs.iloc[0]
    assert (pair["first"], pair["second"]) == ("yours: same", "small_cnn")
    assert (pair["difference"], pair["low"], pair["high"]) == pytest.approx((0, 0, 0), abs=1e-12)
    assert pair[["p_bootstrap_holm", "p_mcnemar_holm"]].tolist() == [1, 1]
    yours = load_run(run_folder(results, "test", "benchmark", "deeplense_1", "same", 0))
    np.testing.assert_allclose(yours.predictions()["scores"], run.predictions()["scores"], atol=1e-5)
    assert yours.metrics["macro_auc"] == pytest.approx(run.metrics["macro_auc"], abs=1e-12)
    # batch normalisation is folded into weights, or its statistics are counted
    assert yours.metrics["weight_count"] == pytest.approx(run.metrics["weight_count"], rel=0.05)
    # the chapter pairs the two by their records
    assert compare([run, yours]).iloc[0]["difference"] == pytest.approx(0, abs=1e-12)


def test_a_python_file_is_judged_by_its_scores(trained, judge):
    results, data, run = trained
    one = judge(CENTRE, batch_size=7)
    images = np.load(data / "test/deeplense_1/test/images.npy")
    x, labels = images.mean((1, 2, 3)) / images.max((1, 2, 3)), run.predictions()["labels"]
    expected = np.exp(np.stack([0 * x, x, -x], 1))
    expected /= expected.sum(1, keepdims=True)
    value = next(row for row in one.rows if row["model"] == "yours: mine")["value"]
    assert value == pytest.approx(roc_auc_score(np.eye(3)[labels], expected))
    found = load_run(run_folder(results, "test", "benchmark", "deeplense_1", "mine", 0)).predictions()
    # in the order of the test set, whatever order the images were shown in
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-4)


def test_a_torch_network_with_logits(judge):
    text = """
import torch
def model(recipe):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.drop = torch.nn.Linear(1, 3), torch.nn.Dropout(0.9)
        def forward(self, images):
            return self.drop(self.layer(images.mean((2, 3))) * 40)
    return Net()
"""
    one = judge(text, logits=True)
    assert one.failed == ""
    assert next(row for row in one.rows if row["model"] == "yours: mine")["weights"] == 6
    # without a word they are taken for what they are: no probabilities
    assert "say --logits" in judge(text).failed


def _onnx_file(path, size, batch):
    """A file of someone else: the mean of an image of one size decides, in batches of one size."""
    onnx = pytest.importorskip("onnx", reason="needs the extra `demo`")
    from onnx import TensorProto, helper, numpy_helper

    layers = [("GlobalAveragePool", ["seen"], ["mean"]), ("Flatten", ["mean"], ["flat"])]
    layers += [("MatMul", ["flat", "slopes"], ["raw"]), ("Softmax", ["raw"], ["answer"])]
    graph = helper.make_graph(
        [helper.make_node(*layer) for layer in layers],
        "other",
        [helper.make_tensor_value_info("seen", TensorProto.FLOAT, [batch, 1, size, size])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.array([[0, 1e-3, -1e-3]], np.float32), "slopes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_an_onnx_file_for_batches_of_one_size(trained, judge, tmp_path):
    results, data, run = trained
    one = judge(_onnx_file(tmp_path / "other.onnx", 32, 4), batch_size=50)
    assert one.failed == ""
    row = next(row for row in one.rows if row["model"] == "yours: other")
    assert row["weights"] == 3
    means = np.load(data / "test/deeplense_1/test/images.npy").mean((1, 2, 3))
    expected = np.exp(1e-3 * means[:, None] * [0, 1, -1])
    expected /= expected.sum(1, keepdims=True)
    found = load_run(run_folder(results, "test", "benchmark", "deeplense_1", "other", 0)).predictions()["scores"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_images_of_another_size_than_the_recipes(judge, tmp_path):
    path = _onnx_file(tmp_path / "small.onnx", 16, "n")
    assert "see --image-size" in judge(path).failed
    assert judge(path, image_size=16).failed == ""
    assert "crop must be" in judge(path, image_size=16, crop=15).failed


BAD = {
    "raises": ("def model(recipe):\n    return lambda images: images.nothing", "AttributeError.*line 2"),
    "raises at once": ("1 / 0", "ZeroDivisionError.*line 1"),
    "is no Python": ("def model(:", "SyntaxError"),
    "exits": ("import os\ndef model(recipe):\n    print('so long')\n    os._exit(3)", "exit code 3"),
    "exits politely": ("import sys\ndef model(recipe):\n    sys.exit(0)", "SystemExit"),
    "dies": ("import os, signal\ndef model(r):\n    os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "has no model": ("x = 1", "no function model"),
    "returns none": ("def model(recipe):\n    return 3", "returned int"),
    "gives two classes": (BLIND.replace("3), 1 / 3", "2), 1 / 2"), r"\[90, 2\] for 90 images, not \[90, 3\]"),
    "gives one row": (BLIND.replace("len(images)", "1"), r"shape \[1, 3\]"),
    "gives texts": ("def model(recipe):\n    return lambda images: [['a'] * 3] * len(images)", "not numbers"),
    "gives NaN": (BLIND.replace("1 / 3", "np.nan"), "90 of 90 images are not finite"),
    "gives no probabilities": (BLIND.replace("1 / 3", "1.0"), "sum to one"),
    "takes memory": ("import numpy as np\ndef model(recipe):\n    return np.ones(2 * 10**9).sum()", "memory"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_model_has_a_row_that_says_so(trained, judge, bad):
    content, said = BAD[bad]
    one = judge(content, memory=4)
    assert ([row["model"] for row in one.rows], one.pairs) == (["small_cnn"], None)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(one.failed)
    record = load_run(run_folder(trained[0], "test", "benchmark", "deeplense_1", "mine", 0))
    assert record.metrics == {"failed": one.failed}


def test_what_hangs_is_stopped_with_all_that_it_started(judge, tmp_path):
    alive = tmp_path / "alive"
    text = f"""
import subprocess, sys, time
def model(recipe):
    def predict(images):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5); open({str(alive)!r}, 'w')"])
        time.sleep(60)
    return predict
"""
    assert "longer than 3 s and was stopped: 0 of 90 images" in judge(text, timeout=3).failed
    time.sleep(3)
    assert not alive.exists()


def test_scores_without_a_clue_have_half_in_their_interval(judge):
    text = "import numpy as np\ndef model(recipe):\n    rng = np.random.default_rng(1)\n"
    one = judge(text + "    return lambda images: rng.dirichlet(np.ones(3), len(images))")
    row = next(row for row in one.rows if row["model"] == "yours: mine")
    assert row["low"] < 0.5 < row["high"]
    assert next(row for row in judge(BLIND).rows if row["model"] == "yours: mine")["value"] == 0.5


def test_nothing_that_is_shown_tells_a_label(trained, judge, tmp_path):
    """The order of images is not that of the set, and what the process is told names no seed and no folder of data."""
    seen = tmp_path / "seen.npz"
    text = f"""
import numpy as np, sys
def model(recipe):
    def predict(images):
        np.savez({str(seen)!r}, images=images, told=str(sys.argv) + str(recipe))
        return np.full((len(images), 3), 1 / 3)
    return predict
"""
    assert judge(text, first=40).failed == ""
    shown, images = np.load(seen), np.load(trained[1] / "test/deeplense_1/test/images.npy")
    order = [int(np.flatnonzero((images == one).all((1, 2, 3)))[0]) for one in shown["images"]]
    assert sorted(order) == list(range(40))
    assert order != list(range(40))
    told = str(shown["told"])
    assert not [word for word in ("seed", "label", str(trained[0]), str(trained[1])) if word in told]


def test_without_the_data_the_test_set_is_drawn_again(trained, judge, tmp_path):
    results, data, run = trained
    one = judge(CENTRE, data=tmp_path / "nothing")
    assert (one.failed, one.exact) == ("", True)
    # of a part there is no digest: the recorded network is asked whether these are its images
    again = judge(CENTRE, data=tmp_path / "nothing", first=50)
    assert (again.failed, again.exact) == ("", False)
    assert not (tmp_path / "nothing").exists()


def test_a_set_that_is_another_is_refused(trained, tmp_path):
    results, _, run = trained
    recipe, seed, start = drawing(run)
    assert (seed, start) == (7, 0)

    def altered(**changes):
        return replace(run, record=run.record | {"parameters": run.parameters | changes})

    with pytest.raises(InputError, match="other labels"):
        redraw([altered(test_seed=8)], tmp_path / "a", first=50, progress=False)
    noisier = changed(recipe, {"instrument.noise.background_rms": 0.03}).to_yaml()
    with pytest.raises(InputError, match="drawn again, is another"):
        redraw([altered(test_recipe=noisier)], tmp_path / "b", first=50, progress=False)
    silent = {key: value for key, value in run.parameters.items() if not key.startswith("test_")}
    with pytest.raises(InputError, match="does not say how"):
        drawing(replace(run, record=run.record | {"parameters": silent}))


def test_a_record_of_an_earlier_version_is_completed_by_its_profile():
    """Profiles may name lines and use them again."""
    run = load_run("results/desk/classification/matched_hst_one_percent/small_cnn/seed0")
    recipe, seed, start = drawing(run)
    assert (recipe.name, seed, start) == ("matched_hst_one_percent", 2, 0)
    assert recipe.substructure.mass_fraction.value == 0.01


def test_the_command(trained, tmp_path, run):
    results, data, _ = trained
    (tmp_path / "my model.py").write_text(CENTRE)
    given = ("benchmark", tmp_path / "my model.py", "--results", results, "--data", data, "--out", tmp_path / "out")
    code, said, _ = run(*given)
    assert code == 0
    assert "yours: my_model" in said
    assert "small_cnn" in said
    assert "p_mcnemar_holm" in said
    assert (tmp_path / "out/my model.png").read_bytes()[:4] == b"\x89PNG"
    code, said, _ = run(*given, "--json", "--first", "60")
    (one,) = json.loads(said)["recipes"]
    assert code == 0
    assert {row["model"] for row in one["rows"]} == {"yours: my_model", "small_cnn"}
    (tmp_path / "my model.py").write_text("1 / 0")
    code, said, _ = run(*given)
    assert code == 2
    assert "no scores: it raised ZeroDivisionError" in said
    for more, words in (
        (("--recipe", "matched"), "unknown recipe among the records"),
        (("--timeout", "0"), "--timeout must be above 0"),
        (("--results", tmp_path / "none"), "no records of classification"),
    ):
        code, _, lines = run(*given, *more)
        assert code == 2
        assert words in lines[0]
    code, _, lines = run("benchmark", tmp_path / "absent.onnx")
    assert code == 2
    assert "is no model" in lines[0]


def test_one_recipe_that_fails_leaves_the_others(trained, judge, tmp_path):
    """A recipe whose test set cannot be drawn is a row of its own."""
    results, data, run = trained
    both = tmp_path / "results"
    shutil.copytree(results / "test/classification", both / "test/classification")
    place = {"profile": "test", "task": "classification", "recipe": "elsewhere", "model": "net", "seed": 0}
    write_run(
        run_folder(both, **place), **place, parameters={"classes": ["a", "b"], "test_count": 2}, metrics={},
        datasets={"test": "x"}, predictions={"labels": np.array([0, 1]), "scores": np.eye(2)},
    )  # fmt: skip
    (tmp_path / "mine.py").write_text(CENTRE)
    judged = benchmark(tmp_path / "mine.py", both, data=data, progress=False)
    assert [bool(one.failed) for one in judged] == [False, True]
    assert "does not say how" in judged[1].failed
    assert [len(one.rows) for one in judged] == [2, 1]
    assert "yours has no scores" in figure(judged).axes[1].get_title(loc="left")
    assert {run.recipe for run in Records(both).runs if run.task == "benchmark"} == {"deeplense_1"}
