"""The audit: what it measures, how often it errs, that it finds planted leaks, and what it says of the recipes."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lenslib import leaks, load_recipe
from lenslib.dataset import open_dataset, write_dataset
from lenslib.errors import InputError

CLASSES = ("no_sub", "cdm", "vortex")


def rings(count, seed=0, theta_E=1.2, size=40, scale=0.1, noise=0.02):
    """Noisy images [count, 1, size, size] of rings of light of radius theta_E arcsec."""
    rng, (y, x) = np.random.default_rng(seed), (np.mgrid[:size, :size] - (size - 1) / 2) * scale
    radius = rng.normal(theta_E, 0.1, count)[:, None, None]
    light = np.exp(-((np.hypot(x, y) - radius) ** 2) / 0.02) + noise * rng.normal(size=(count, size, size))
    return light[:, None]


def labels_of(count, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(count) % 3)


def audited(images, labels, **more):
    return leaks.audit(labels, leaks.image_features(images, 0.1), CLASSES, **more)


def names(found):
    return set(found.leaking.feature)


def columns(**features):
    return pd.DataFrame({("trivial", name, 0): values for name, values in features.items()})


@pytest.mark.parametrize("theta_E", [0.7, 1.1, 1.5])
def test_the_ring_gives_the_einstein_radius(theta_E):
    """Of a closed form, a ring displaced and squeezed as a source off the axis and a shear do to first order."""
    y, x = (np.mgrid[:80, :80] - 39.5) * 0.05
    phi = np.arctan2(y, x)
    curve = theta_E + 0.08 * np.cos(phi - 1) + 0.05 * np.cos(2 * phi - 0.4)
    image = np.exp(-((np.hypot(x, y) - curve) ** 2) / 0.005)
    # a thick ring has more light outside the curve than inside: by its width squared over the radius
    assert leaks.ring_radius(image[None], 0.05)[0] == pytest.approx(theta_E + 0.0025 / theta_E, abs=0.004)


def test_the_ring_follows_the_lens_of_a_recipe():
    batch = load_recipe("matched_hst").sample(96, seed=4)
    found = leaks.ring_radius(batch.images[:, 0].numpy(), 0.05)
    assert np.corrcoef(found, batch.params["theta_E"].numpy())[0, 1] > 0.9


def test_the_radial_profile_adds_up_and_knows_no_units():
    images = rings(5, noise=0)[:, 0]
    found = leaks.radial_profile(images, 0.1)
    assert found.sum(1) == pytest.approx(1)
    assert leaks.radial_profile(7 * images, 0.3) == pytest.approx(found)
    assert found.argmax(1) == pytest.approx(5, abs=1)  # rings of 0.2 arcsec: 1.2 lies in the sixth


def test_intervals_of_useless_features_hold_one_half_as_often_as_they_say():
    """Over shuffled labels. A binomial of 95 % gives fewer than 54 of 60 once in 60 times."""
    rng, held = np.random.default_rng(1), 0
    for seed in range(60):
        found = leaks.cross_validated_auc(labels_of(300, seed) > 0, rng.normal(size=(300, 3)), seed)
        held += found["low"] <= 0.5 <= found["high"]
    assert held >= 54


def test_a_known_auc_lies_in_its_interval():
    """Two normals a deviation apart: Phi(1 / sqrt 2) = 0.760, which trees come near to."""
    labels = labels_of(3000)
    feature = np.random.default_rng(0).normal(size=3000) + (labels > 0)
    found = leaks.cross_validated_auc(labels > 0, feature[:, None])
    assert found["low"] < 0.760 < found["high"]


def test_images_whose_labels_are_shuffled_leak_nothing():
    found = audited(rings(3000), labels_of(3000))
    assert found.verdict == "clear", found.words
    assert not found.table.leaks.any()
    assert "3,000 images" in found.words


@pytest.mark.parametrize("count", [30, 120])
def test_few_images_are_too_few_to_tell(count):
    assert audited(rings(count), labels_of(count)).verdict == "too few to tell"


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("background level", lambda images, sub: images + 0.02 * sub),
        (
            "background noise",
            lambda images, sub: images + 0.02 * sub * np.random.default_rng(9).normal(size=images.shape),
        ),
        ("total flux", lambda images, sub: images * (1 + 0.1 * sub)),
        ("peak", lambda images, sub: images + 2 * sub * (np.arange(40 * 40) == 820).reshape(40, 40)),
    ],
)
def test_a_planted_leak_is_found_and_named(feature, change):
    labels = labels_of(600)
    images = change(rings(600), (labels > 0)[:, None, None, None])
    found = audited(images, labels)
    assert found.verdict == "leaks"
    assert feature in names(found)
    assert feature in found.words


def test_a_larger_ring_is_found_as_morphology():
    labels = labels_of(600)
    images = np.where((labels > 0)[:, None, None, None], rings(600, 0, 1.3), rings(600, 1))
    found = audited(images, labels)
    assert {"Einstein radius", "radial profile", "mean radius"} <= names(found)
    assert "morphology" in set(found.leaking.kind)


def test_a_class_that_lies_between_the_others_is_found():
    """A threshold has an AUC of one half there."""
    labels = labels_of(600)
    feature = np.random.default_rng(0).normal(size=600) + np.array([0, -3, 3])[labels]
    assert leaks.audit(labels, columns(level=feature), CLASSES).verdict == "leaks"


@pytest.mark.parametrize("labels", [np.arange(600) // 200, np.arange(600) % 3, (np.arange(600) // 200 + 2) % 3])
def test_an_order_by_class_is_found(labels):
    data = SimpleNamespace(params=pd.DataFrame({"index": np.arange(600)}))
    assert leaks.audit(labels, leaks.file_features(data), CLASSES).verdict == "leaks"


def test_what_files_say_is_found(tmp_path):
    """As DeepLenseSim writes them: axion images as objects with their mass, the others as plain arrays."""
    rng = np.random.default_rng(0)
    for k, (name, numbers) in enumerate((("no_sub", range(30)), ("axion", range(30, 60)))):
        (tmp_path / name).mkdir()
        for number in numbers:
            image = rng.normal(5, 1, (16, 16))
            array = image
            if k:
                array = np.empty(2, object)
                array[:] = [image, 1e-23]
            np.save(tmp_path / name / f"sim_{number}.npy", array, allow_pickle=bool(k))
    found = leaks.audit_dataset(open_dataset(tmp_path))
    assert {"file order", "file size", "dtype"} <= names(found)
    assert not names(found) & {"peak", "total flux", "background level"}


def test_names_that_say_nothing_do_not_leak(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("no", "sphere"):
        (tmp_path / name).mkdir()
        for number in range(30):
            np.save(tmp_path / name / f"{number}.npy", rng.normal(5, 1, (16, 16)))
    found = leaks.audit_dataset(open_dataset(tmp_path))
    assert names(found) == set()
    table = found.table.set_index("feature")
    assert table.value["dtype"] == table.value["file size"] == 0.5


def test_one_file_a_class_is_audited_by_its_images(tmp_path):
    for k, name in enumerate(("no", "sphere", "vort")):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(k).normal(5 + k, 1, (20 + k, 16, 16)))
    found = leaks.audit_dataset(open_dataset(tmp_path))
    assert "background level" in names(found)
    assert "file order" not in set(found.table.feature)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_dataset(load_recipe("deeplense_1"), 480, 404, tmp_path_factory.mktemp("leaks") / "set", progress=False)


def test_the_benchmark_leaks_by_its_einstein_radius(benchmark):
    found = leaks.audit_dataset(benchmark)
    table = found.table.set_index(["kind", "feature"])
    assert {"Einstein radius", "radial profile", leaks.ALL} <= names(found)
    assert table.low["morphology", leaks.ALL] > 0.8
    assert not table.leaks["trivial"].any()
    # all of a kind tell the same without an audit of each
    assert {kind: leaks.auc_of_kind(benchmark, kind) for kind in leaks.KINDS} == {
        kind: found.metrics()[kind] for kind in leaks.KINDS
    }


def test_the_matched_recipe_leaks_nothing(tmp_path):
    found = leaks.audit_dataset(write_dataset(load_recipe("matched_hst"), 1440, 404, tmp_path / "set", progress=False))
    assert not len(found.leaking), found.words
    trivial = found.table[found.table.kind == "trivial"]
    assert ((trivial.low <= 0.5) & (trivial.high >= 0.5)).all()


def test_part_of_a_set_is_audited_and_another_class_held_against_the_rest(benchmark):
    found = leaks.audit_dataset(benchmark, count=240, against="vortex")
    assert (found.count, found.against) == (240, "vortex")
    assert "vortex against the rest" in found.words


@pytest.mark.parametrize("channels", [1, 2])
def test_every_channel_is_measured(channels):
    found = leaks.image_features(np.tile(rings(4), (1, channels, 1, 1)), 0.1)
    assert len(found.columns) == channels * len(leaks.image_features(rings(4), 0.1).columns)
    assert np.isfinite(found.to_numpy()).all()


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        (np.zeros(60, int), {}, "needs two classes"),
        (np.arange(12) % 3, {}, "too few to audit"),
        (labels_of(60), {"against": "axion"}, "no images of 'axion'"),
    ],
)
def test_bad_input_is_refused_in_words(labels, more, said):
    with pytest.raises(InputError, match=said):
        leaks.audit(labels, columns(level=np.arange(len(labels))), CLASSES, **more)


def test_the_command_prints_a_table_and_the_verdict(run, benchmark):
    code, out, errors = run("audit", benchmark.folder, "--count", 300)
    assert (code, errors) == (0, [])
    assert "Einstein radius" in out
    assert out.splitlines()[-1].startswith("leaks: ")
    code, out, _ = run("audit", benchmark.folder, "--count", 300, "--json")
    *rows, last = json.loads(out)
    assert code == 0
    assert last["verdict"] == "leaks"
    assert {row["kind"] for row in rows} == set(leaks.KINDS)
    code, out, errors = run("audit", benchmark.folder, "--count", 0)
    assert (code, out) == (2, "")
    assert "count must be at least 1" in errors[0]
