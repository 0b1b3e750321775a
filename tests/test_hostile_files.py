"""No file of anyone's making does more than be read or be refused in one line: nothing in it is run, and no name in it
leads out of its folder. `tests/fuzz.py` is the same for hours."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import fuzz
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lenslib import dataset
from lenslib.cosmosim import read_cosmosim
from lenslib.dataset import open_dataset
from lenslib.errors import InputError
from lenslib.image_files import read_images
from lenslib.inference import load_classifier
from lenslib.models import create_model
from lenslib.npy_files import read_npy, read_npz
from lenslib.recipe import load_recipe, parse_recipe
from lenslib.records import load_run, run_folder, write_run
from lenslib.seals import check_beside
from lenslib.untrusted import parse_json, parse_yaml

LIBRARY = sorted((Path(__file__).parents[1] / "lenslib").rglob("*.py"))
# what can run what a file says; each with the only modules that may name it, whose tests show that they run nothing
DANGEROUS = {
    "pickle": {"npy_files"},
    "dill": set(),
    "joblib": set(),
    "shelve": set(),
    "marshal": set(),
    "cloudpickle": set(),
}


class Trap:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def bait(tmp_path):
    """A path, and what would create a file there; after the test there is none."""
    path = tmp_path / "sprung"
    yield Trap(path)
    assert not path.exists()
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.exists()  # the trap does work


def calls(path: Path):
    """Every call in a module: its name with the dots, and its keywords."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.name)
def test_no_module_unpickles_or_makes_objects_of_yaml(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert path.stem in DANGEROUS.get(name.split(".")[0], {path.stem})
    for name, words in calls(path):
        assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "pd.read_pickle", "yaml.unsafe_load")
        assert words.get("allow_pickle", "False") == "False"
        if name == "torch.load":
            assert words.get("weights_only") == "True"
        if name in ("yaml.load", "yaml.load_all", "yaml.full_load"):
            assert path.stem == "untrusted"


@pytest.mark.parametrize("kind", ["images", "parameters", "predictions", "weights", "array", "bare", "deeplense"])
def test_a_pickle_is_refused_in_words(bait, tmp_path, kind):
    path, trap = tmp_path / "given", np.array([bait], object)
    if kind in ("images", "parameters"):
        name = {"images": "images.npy", "parameters": "params.parquet"}[kind]
        np.save(tmp_path / "a.npy", trap, allow_pickle=True)
        content = (tmp_path / "a.npy").read_bytes() if kind == "images" else pickle.dumps(bait)
        read, said = lambda: fuzz.READERS[kind.replace("parameters", "params")].read(content, tmp_path), name
    elif kind == "predictions":
        np.savez(tmp_path / "given.npz", scores=trap)
        read, said = lambda: read_npz(tmp_path / "given.npz"), "pickled objects, which are refused"
    elif kind == "weights":
        path.write_bytes(pickle.dumps(bait))
        read, said = lambda: load_classifier(path), "pickled weights are refused"
    elif kind == "deeplense":
        np.save(tmp_path / "a.npy", trap, allow_pickle=True)
        content = (tmp_path / "a.npy").read_bytes()
        read, said = lambda: fuzz.READERS["deeplense"].read(content, tmp_path), r"io\.open.*is refused"
    else:
        path = tmp_path / "a.npy"
        path.write_bytes(pickle.dumps(bait))
        if kind == "array":
            np.save(path, trap, allow_pickle=True)
        read, said = lambda: read_images(path, 16), "pickled objects"
    with pytest.raises(InputError, match=said) as error:
        read()
    assert "\n" not in str(error.value)


def test_weights_given_to_a_network_are_no_pickle_either(bait, tmp_path):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(bait))
    with pytest.raises(InputError, match="pickled weights are refused"):
        create_model("small_cnn", 3, 16, weights=tmp_path / "w.pt")


def test_a_number_in_a_pickle_takes_no_memory(tmp_path):
    """Python's unpickler makes room for as many things as one of them is numbered: here 34 GB for 9 bytes."""
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        file.write(b"\x80\x02Nr\xff\xff\xff\x7f.")
    with pytest.raises(InputError, match="not a whole"):
        read_npy(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "a: !!python/object/new:os.system [true]",
        "a: 2001-99-99",
        "a: !!bool maybe",
        "a: !!timestamp x",
        "[" * 5000,
        "a: &a [x]\nb: *a",
        "a: &a {x: 1}\nb: {<<: [*a, *a]}",
    ],
)
def test_yaml_is_plain_values_or_one_error(text):
    with pytest.raises(ValueError) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="not valid YAML"):
        parse_recipe(text)


def test_a_plan_of_the_workflow_may_repeat_itself():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", aliases=True) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{", "nul", b"\xff\xfe", "9" * 5000])
def test_json_is_plain_values_or_one_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"files": []}', '{"files": {"w": 3}}', "{", b"\xff\xfe"])
def test_a_record_beside_a_file_speaks_for_it_or_is_refused(tmp_path, text):
    (tmp_path / "w").write_bytes(b"x")
    (tmp_path / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        check_beside(tmp_path / "w")
    assert "\n" not in str(error.value)


# paths


@pytest.fixture
def record(tmp_path):
    """Writes a run with some fields changed, in a folder of the given name, and returns the folder."""
    place = {"profile": "test", "task": "t", "recipe": "r", "model": "m", "seed": 0}
    run = write_run(run_folder(tmp_path, **place), **place, parameters={}, metrics={"a": 1.0}, predictions={"s": [1]})

    def change(name="seed0", **fields):
        folder = run.folder.with_name(name)
        if folder != run.folder:
            shutil.copytree(run.folder, folder)
        (folder / "record.json").write_text(json.dumps(run.record | fields))
        return folder

    return change


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b", "..", "..\\x", ""])
def test_files_of_a_record_lie_in_its_folder(record, name):
    with pytest.raises(InputError, match="outside its folder"):
        load_run(record(files={name: "ab"}))
    with pytest.raises(InputError, match="lie in its folder"):
        load_run(record()).path(name)


@pytest.mark.parametrize("field", ["profile", "task", "recipe", "model"])
@pytest.mark.parametrize("name", ["..", "../../x", "a/b", "/tmp/x", "a.b", ""])
def test_names_of_a_run_lead_nowhere_else(record, tmp_path, field, name):
    with pytest.raises(InputError, match=field):
        load_run(record(**{field: name}))
    place = {"profile": "test", "task": "t", "recipe": "r", "model": "m", "seed": 0} | {field: name}
    with pytest.raises(InputError, match=field):
        run_folder(tmp_path, **place)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": "0"}, "whole number"),
        ({"started": 3}, "started"),
        ({"seconds": {"train": "x"}}, "seconds"),
        ({"files": ["predictions.npz"]}, "files"),
        ({"metrics": {"a": 10**400}}, "finite"),
    ],
)
def test_fields_of_a_record_are_what_they_are_used_as(record, fields, said):
    with pytest.raises(InputError, match=said):
        load_run(record(**fields))


def test_a_seed_is_a_number(record):
    """It is part of a link in the book, as is the name of its folder."""
    markup = "<img src=x onerror=alert(1)>"
    with pytest.raises(InputError, match="whole number"):
        load_run(record(f"seed{markup.replace('/', '')}", seed=markup))


def test_a_manifest_names_no_files(tmp_path, test_data):
    """Whatever it says of other files, those beside it are read and no others."""
    folder = shutil.copytree(test_data.folder, tmp_path / "set")
    said = json.loads((folder / "dataset.json").read_text())
    said["sha256"] = said["sha256"] | {"../../secret": "ab"}
    (folder / "dataset.json").write_text(json.dumps(said | {"seal": dataset._seal(said)}))
    assert open_dataset(folder).digest == test_data.digest
    shutil.move(folder / "images.npy", tmp_path / "images.npy")
    said["sha256"] = {"../images.npy": said["sha256"]["images.npy"]} | said["sha256"]
    (folder / "dataset.json").write_text(json.dumps(said | {"seal": dataset._seal(said)}))
    with pytest.raises(InputError, match=r"lacks images\.npy"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "a b", "..", "x\n"])
def test_a_recipe_s_name_is_no_path(name):
    for recipe in ("deeplense_1", "roulette_sis"):
        with pytest.raises(InputError, match="name"):
            load_recipe(recipe, {"name": name})


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "images/../../out.png"])
def test_images_of_a_table_lie_in_its_folder(tmp_path, name):
    (tmp_path / "set" / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "out.png")
    row = {"filename": name, "source": "s", "x": 1, "y": 1, "sigma": 1}
    pd.DataFrame([row]).to_csv(tmp_path / "set" / "a.csv", index=False)
    with pytest.raises(InputError, match="outside its folder"):
        read_cosmosim(tmp_path / "set")


# damage


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_read_or_refused(name, tmp_path_factory):
    reader, folder = fuzz.READERS[name], tmp_path_factory.mktemp(name)
    seeds = reader.seeds()
    for seed in seeds:
        reader.read(seed, folder)

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False), st.sampled_from(range(len(seeds))))
    def check(rng, which):
        assert fuzz.fault(reader, fuzz.damage(rng, seeds[which], reader.words), folder) == ""

    check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(fuzz.ONCE_FAILED.glob("*")), ids=lambda path: path.name)
def test_what_once_failed_is_read_or_refused(path, tmp_path):
    assert fuzz.fault(fuzz.READERS[path.name.split("-")[0]], path.read_bytes(), tmp_path) == ""
