"""Exported networks: the same answers as the weights they came from, in onnxruntime, and files that are refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lenslib.errors import InputError
from lenslib.inference import classifier_metadata, estimator_metadata, load_classifier, load_estimator
from lenslib.models import create_model
from lenslib.recipe import load_recipe
from lenslib.targets import find_targets, fit_targets

onnx = pytest.importorskip("onnx", reason="needs the extra `demo`")
export = pytest.importorskip("lenslib.export")
SIZE = 32


def save(path, model, crop=None, image_size=24, **metadata):
    """Weights of an untrained network for images of 32 pixels."""
    torch.manual_seed(0)
    recipe = load_recipe("deeplense_1", {"instrument.pixels": SIZE, "instrument.pixel_scale": 0.15})
    network = create_model(model, 3, image_size).eval()
    for layer in network.modules():  # statistics as after training
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
    said = classifier_metadata(model, recipe, image_size, crop) | metadata
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path, said)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(5, 2, (5, 1, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize(
    ("model", "crop", "image_size", "units"),
    [
        ("small_cnn", None, 24, "light"),
        ("polar_cnn", 26, 24, "light"),
        ("small_cnn", None, SIZE, "deviations"),
        ("c8_steerable", 30, 25, "light"),
        ("vit_tiny", None, 32, "light"),
    ],
)
def test_raw_images_get_the_answers_of_the_weights(model, crop, image_size, units, images, tmp_path):
    path = save(tmp_path / "weights.safetensors", model, crop, image_size, units=units)
    exported = export.load_exported(export.export(path, tmp_path / "deep/network.onnx"))
    classifier = load_classifier(path)
    assert exported.names == classifier.classes
    for count in (1, 5):
        expected = classifier.probabilities(images[:count])
        np.testing.assert_allclose(exported.answers(images[:count]), expected, atol=1e-5)
    np.testing.assert_allclose(exported.answers(300 * images + 20).sum(1), 1, atol=1e-5)


def test_a_temperature_makes_answers_less_sure(images, tmp_path):
    path = save(tmp_path / "weights.safetensors", "small_cnn")
    warm = export.load_exported(export.export(path, tmp_path / "network.onnx", 2.5)).answers(images)
    logits = np.log(load_classifier(path).probabilities(images))
    expected = np.exp(logits / 2.5)
    np.testing.assert_allclose(warm, expected / expected.sum(1, keepdims=True), atol=1e-5)


def test_an_estimator_gives_its_numbers(images, tmp_path):
    torch.manual_seed(0)
    recipe = load_recipe("raytrace_sis", {"instrument.pixels": SIZE})
    drawn = {name: value.numpy() for name, value in recipe.sample(24, seed=1).params.items()}
    targets = find_targets(recipe, "parameters")
    targets = fit_targets(targets, targets.label(drawn), recipe)
    path = tmp_path / "weights.safetensors"
    network = create_model("moments", len(targets.columns), SIZE)
    save_file(network.state_dict(), path, estimator_metadata("moments", recipe, targets, SIZE))
    exported = export.load_exported(export.export(path, tmp_path / "network.onnx"))
    np.testing.assert_allclose(exported.answers(images), load_estimator(path).answers(images), rtol=1e-4, atol=1e-4)


def test_the_command_line_predicts_the_same_with_either(images, tmp_path, run):
    import json

    save(tmp_path / "weights.safetensors", "small_cnn")
    np.save(tmp_path / "stack.npy", images)
    assert run("export", tmp_path / "weights.safetensors", tmp_path / "network.onnx")[0] == 0
    rows = [
        json.loads(run("predict", tmp_path / name, tmp_path / "stack.npy", "--json")[1])
        for name in ("weights.safetensors", "network.onnx")
    ]
    assert [row["class"] for row in rows[0]] == [row["class"] for row in rows[1]]
    for one, other in zip(*rows, strict=True):
        assert one["cdm"] == pytest.approx(other["cdm"], abs=1e-5)


def test_what_is_no_exported_network_is_refused(images, tmp_path):
    path = save(tmp_path / "weights.safetensors", "small_cnn")
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        export.export(path, tmp_path / "network.pt")
    judge = save(tmp_path / "fits.safetensors", "small_cnn", units="deviations", fitted_recipe="name: x")
    with pytest.raises(InputError, match="what a smooth fit leaves"):
        export.export(judge, tmp_path / "network.onnx")
    whole = export.export(path, tmp_path / "network.onnx")
    exported = export.load_exported(whole)
    with pytest.raises(InputError, match="shape"):
        exported.answers(images[:, :, :16])
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:-500])
    for name, said in (("cut.onnx", "not a whole ONNX file"), ("absent.onnx", "no file")):
        with pytest.raises(InputError, match=said):
            export.load_exported(tmp_path / name)


def test_weights_in_another_file_are_refused(tmp_path):
    """Its path could be that of any file."""
    program = onnx.load(export.export(save(tmp_path / "w.safetensors", "small_cnn"), tmp_path / "network.onnx"))
    onnx.save(program, tmp_path / "apart.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    with pytest.raises(InputError, match="in another file|not a whole"):
        export.load_exported(tmp_path / "apart.onnx")
