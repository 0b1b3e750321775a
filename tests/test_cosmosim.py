"""CosmoSim's CSV and PNG files, written here by hand and by Pillow, and CSV files that CosmoSim reads."""

import csv

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lenslib.cosmosim import read_cosmosim, write_cosmosim_csv
from lenslib.dataset import open_dataset
from lenslib.errors import InputError

# the columns of CosmoSim 2.0.3's Scripts/datasetgen.py, of 3.3's src/CosmoSim/dataset.py, and of 3.3's roulette output
HEADERS = {
    "2.0.3": "index,filename,source,lens,chi,R,phi,einsteinR,sigma,sigma2,theta,nterms,x,y",
    "3.3": "index,filename,model,einsteinradius,ellipseratio,orientation,lens,source,R,phi,sigma,sigma2,theta,"
    "n_sersic,luminosity,x,y",
    "roulette": "filename,source,x,y,sigma,sigma2,theta,centreX,centreY,reletaX,reletaY,offsetX,offsetY,xiX,xiY,"
    "alpha[0][1],beta[0][1],alpha[1][0],beta[1][0]",
}
TEXTS = {"source": "s", "lens": "SIS", "model": "Raytrace"}


def write(folder, header="2.0.3", count=3, size=8, images=".", dtype=np.uint8):
    """A data set of `count` random images; column j of row i is 100 i + j."""
    levels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, size, size), dtype, endpoint=True)
    (folder / images).mkdir(parents=True, exist_ok=True)
    lines = [HEADERS[header]]
    for i in range(count):
        name = f"image-{i + 1:06}.png"
        Image.fromarray(levels[i]).save(folder / images / name)
        known = TEXTS | {"index": i + 1, "filename": name}
        lines.append(",".join(str(known.get(key, 100 * i + j)) for j, key in enumerate(HEADERS[header].split(","))))
    (folder / "dataset.csv").write_text("\n".join(lines) + "\n")
    return levels


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("images", [".", "images"])
def test_images_and_parameters_of_every_version(tmp_path, header, images):
    levels = write(tmp_path, header, images=images)
    for path in (tmp_path, tmp_path / "dataset.csv"):
        found = read_cosmosim(path)
        assert found.images.shape == (3, 1, 8, 8)
        assert found.images[:].dtype == np.float32
        np.testing.assert_array_equal(found.images[:, 0], levels[:, ::-1])
        names = HEADERS[header].split(",")
        assert list(found.params) == names
        np.testing.assert_array_equal(found.params["x"], 100 * np.arange(3) + names.index("x"))
        assert (found.params["source"] == "s").all()


def test_rows_go_up(tmp_path):
    """A source above the middle (y > 0, which CosmoSim draws in the upper half) is in rows of high index."""
    write(tmp_path, count=1)
    levels = np.zeros((8, 8), np.uint8)
    levels[1, 6] = 255  # x = 6 - 4 = 2, y = 4 - 1 = 3
    Image.fromarray(levels).save(tmp_path / "image-000001.png")
    row, column = np.argwhere(read_cosmosim(tmp_path).images[0, 0] == 255)[0]
    assert (column - 4, row - (4 - 1)) == (2, 3)


def test_grey_levels_of_other_forms(tmp_path):
    levels = write(tmp_path / "deep", dtype=np.uint16)
    np.testing.assert_array_equal(read_cosmosim(tmp_path / "deep").images[:, 0], levels[:, ::-1])
    levels = write(tmp_path / "rgb")
    for i in range(3):
        Image.fromarray(levels[i]).convert("RGB").save(tmp_path / "rgb" / f"image-{i + 1:06}.png")
    np.testing.assert_array_equal(read_cosmosim(tmp_path / "rgb").images[:, 0], levels[:, ::-1])


def colour(path):
    Image.fromarray(np.dstack([np.full((8, 8), level, np.uint8) for level in (1, 2, 3)])).save(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "no image"),
        (lambda path: Image.new("L", (8, 9)).save(path), "9 x 8 pixels, those before it 8 x 8"),
        (lambda path: Image.new("L", (10, 10)).save(path), "10 x 10"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "whole PNG"),
        (lambda path: path.write_text("no image"), "whole PNG"),
        (colour, "in colour"),
    ],
)
def test_a_spoiled_image_is_named(tmp_path, spoil, said):
    write(tmp_path)
    spoil(tmp_path / "image-000002.png")
    with pytest.raises(InputError, match=said) as error:
        read_cosmosim(tmp_path)
    assert "image-000002.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_images_that_are_not_square_are_refused(tmp_path):
    write(tmp_path, count=1)
    Image.new("L", (8, 9)).save(tmp_path / "image-000001.png")
    with pytest.raises(InputError, match=r"image-000001\.png.*square"):
        read_cosmosim(tmp_path)


@pytest.mark.parametrize("name", ["filename", "source", "x", "y", "sigma"])
def test_a_missing_or_empty_column_is_named(tmp_path, name):
    write(tmp_path)
    path = tmp_path / "dataset.csv"
    frame = pd.read_csv(path)
    frame.drop(columns=name).to_csv(path, index=False)
    with pytest.raises(InputError, match=f"lacks the column {name}"):
        read_cosmosim(path)
    frame.assign(**{name: frame[name].astype(object).where(frame.index != 1)}).to_csv(path, index=False)
    with pytest.raises(InputError, match=f"line 3: {name} is empty"):
        read_cosmosim(path)


def test_columns_can_be_asked_for(tmp_path):
    write(tmp_path)
    assert len(read_cosmosim(tmp_path, columns=("chi", "einsteinR")).params) == 3
    with pytest.raises(InputError, match="lacks the column einsteinradius"):
        read_cosmosim(tmp_path, columns=("chi", "einsteinradius"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not a CSV file"),
        ("\x00\x01\x02", "dataset.csv"),
        (HEADERS["2.0.3"] + "\n", "no rows"),
        (HEADERS["2.0.3"] + "\n1,a.png,s,SIS,50,1,1,wide,1,1,1,16,1,1\n", "line 2: einsteinR is 'wide'"),
        ('index,filename\n1,"a\n', "dataset.csv"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, content, said):
    (tmp_path / "dataset.csv").write_text(content)
    with pytest.raises(InputError, match=said) as error:
        read_cosmosim(tmp_path)
    assert "\n" not in str(error.value)


def test_the_folder_must_hold_one_csv(tmp_path):
    with pytest.raises(InputError, match=r"one \.csv"):
        read_cosmosim(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_cosmosim(tmp_path / "dataset.csv")
    write(tmp_path)
    (tmp_path / "roulette.csv").write_text((tmp_path / "dataset.csv").read_text())
    with pytest.raises(InputError, match=r"dataset\.csv, roulette\.csv"):
        read_cosmosim(tmp_path)
    with pytest.raises(InputError, match="read_cosmosim"):
        open_dataset(tmp_path)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    numbers = {name: rng.uniform(1, 50, 4) for name in ("sigma", "y", "x", "einsteinradius", "theta")}
    return pd.DataFrame(
        numbers | {"source": "e", "lens": ["SIS", "SIS", "SIE", "SIE"], "ellipseratio": [None, None, 0.5, 0.6]}
    )


def test_what_is_written_reads_back(tmp_path, params):
    write_cosmosim_csv(tmp_path / "out.csv", params)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["filename"] for row in rows] == [f"image-00000{k}.png" for k in (1, 2, 3, 4)]
    for name in ("sigma", "x", "y", "einsteinradius", "theta"):
        np.testing.assert_array_equal([float(row[name]) for row in rows], params[name])
    assert [row["ellipseratio"] for row in rows] == ["", "", "0.5", "0.6"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("header", ["2.0.3", "3.3"])
def test_a_data_set_can_be_written_again(tmp_path, header):
    write(tmp_path, header)
    params = read_cosmosim(tmp_path).params
    write_cosmosim_csv(tmp_path / "dataset.csv", params)
    again = read_cosmosim(tmp_path).params
    assert set(again) == set(params)
    pd.testing.assert_frame_equal(again[list(params)], params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.drop(columns="sigma"), "sigma"),
        (lambda p: p.drop(columns="lens"), "lens"),
        (lambda p: p.drop(columns="einsteinradius"), "einsteinradius"),
        (lambda p: p.rename(columns={"einsteinradius": "einsteinRadius"}), "did you mean einsteinradius"),
        (lambda p: p.assign(x=p["x"].where(p.index != 2)), "x in every row: row 2"),
        (lambda p: p.assign(x=p["x"].where(p.index != 2, np.inf)), "finite numbers in x"),
        (lambda p: p.assign(theta="steep"), "theta"),
        # an empty cluster is not-a-number to CosmoSim, which takes it for a cluster
        (lambda p: p.assign(cluster=["SIS/0/0/5;SIS/9/9/5", None, None, None]), "cluster in every row"),
        (lambda p: p[:0], "no rows"),
    ],
)
def test_what_cosmosim_cannot_read_is_not_written(tmp_path, params, change, said):
    with pytest.raises(InputError, match=said) as error:
        write_cosmosim_csv(tmp_path / "out.csv", change(params))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path, params, monkeypatch):
    (tmp_path / "out.csv").write_text("old")

    def full(self, path, **_):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(InputError, match="No space left"):
            write_cosmosim_csv(tmp_path / "out.csv", params)
    assert (tmp_path / "out.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    with pytest.raises(InputError, match="could not write"):
        write_cosmosim_csv(tmp_path / "absent" / "out.csv", params)
