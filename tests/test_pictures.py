"""Sources that are pictures: read, cleaned of their sky, placed, and refused in words."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lenslib import pictures
from lenslib.dataset import write_dataset
from lenslib.errors import InputError
from lenslib.pictures import PictureGalaxy, interpolated


def _galaxy(folder, **given):
    given = {"angle": 0.0, "center": {"x": 0.0, "y": 0.0}, "pixel_scale": 0.01} | given
    return PictureGalaxy(profile="picture", folder=str(folder), **given)


def test_a_picture_has_a_flux_of_one_in_each_band(galaxy_pictures):
    light = _galaxy(galaxy_pictures).pictures()
    assert light.shape == (3, 3, 128, 128)
    torch.testing.assert_close(light.sum((2, 3)) * 0.01**2, torch.ones(3, 3), rtol=1e-5, atol=0)
    # of a corner without galaxy, nothing is left
    assert light[..., :25, :25].median().abs() < 1e-3 * light.amax()


def _place(x, y, light, angle=0.0, center=(0.0, 0.0)):
    params = {"source_picture": 0.0, "amp": 2.0, "source_angle": angle}
    params |= {"source_center_x": center[0], "source_center_y": center[1]}
    params = {name: torch.tensor([value], dtype=torch.float64) for name, value in params.items()}
    return interpolated(params, x[None], y[None], light, 0.1)[0, 0]


def test_a_picture_is_read_at_its_pixel_centres_and_bilinearly_between():
    light = torch.arange(20.0, dtype=torch.float64).reshape(1, 1, 4, 5)
    y, x = torch.meshgrid(torch.arange(4.0) - 1.5, torch.arange(5.0) - 2, indexing="ij")
    x, y = x.double() * 0.1, y.double() * 0.1
    torch.testing.assert_close(_place(x, y, light), 2 * light[0, 0])
    torch.testing.assert_close(_place(x[:, :-1] + 0.05, y[:, :-1], light), (light[0, 0, :, :-1] + light[0, 0, :, 1:]))
    # moved with its centre, and turned counter-clockwise by its angle
    torch.testing.assert_close(_place(x + 0.3, y - 0.2, light, center=(0.3, -0.2)), 2 * light[0, 0])
    torch.testing.assert_close(_place(-y, x, light, angle=np.pi / 2), 2 * light[0, 0])
    assert _place(x + 10, y, light).abs().max() == 0


def test_grey_pictures_serve_every_band_and_colours_a_single_one(tmp_path, galaxy_pictures, shipped_recipe):
    grey = np.asarray(Image.open(galaxy_pictures / "galaxy0.png").convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.save(tmp_path / "same.npy", grey.astype(np.float32))
    small = {"instrument.pixels": 16, "source.folder": str(tmp_path)}
    assert shipped_recipe("deeplense_4", small).sample(2).images.shape == (2, 3, 16, 16)
    light = _galaxy(tmp_path).pictures()
    torch.testing.assert_close(light[0], light[1])
    single = {"instrument.pixels": 16, "bands": None}
    assert shipped_recipe("deeplense_4", single).sample(2).images.shape == (2, 1, 16, 16)


def test_pictures_can_be_picked(galaxy_pictures):
    every = _galaxy(galaxy_pictures).pictures()
    assert torch.equal(_galaxy(galaxy_pictures, only=[2, 0]).pictures(), every[[2, 0]])
    with pytest.raises(InputError, match=r"source\.only: there are 3 pictures"):
        _galaxy(galaxy_pictures, only=[3]).pictures()


def _corrupt(folder):
    (folder / "a.png").write_bytes(b"not a picture")


def _truncated(folder):
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(file, "PNG")
        (folder / "a.png").write_bytes(file.getvalue()[:300])


def _not_finite(folder):
    np.save(folder / "a.npy", np.full((32, 32), np.nan, np.float32))


def _dark(folder):
    np.save(folder / "a.npy", np.ones((32, 32), np.float32))


def _pickled(folder):
    np.save(folder / "a.npy", np.array([print], dtype=object), allow_pickle=True)


def _of_other_colours(folder):
    np.save(folder / "a.npy", np.eye(32, dtype=np.float32)[::-1])
    np.save(folder / "b.npy", np.stack([np.eye(32, dtype=np.float32)] * 3))
    np.save(folder / "c.npy", np.stack([np.eye(32, dtype=np.float32)] * 2))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: None, "holds no pictures"),
        (lambda folder: folder.rmdir(), "no folder"),
        (_corrupt, "a.png' is not a picture"),
        (_truncated, "a.png' is not a picture"),
        (_not_finite, "finite numbers"),
        (_dark, "no light above its corner"),
        (_pickled, "a.npy"),
        (_of_other_colours, "2 colours"),
    ],
)
def test_a_folder_that_will_not_do_is_named_before_anything_is_written(tmp_path, shipped_recipe, spoil, said):
    folder = tmp_path / "sources"
    folder.mkdir()
    spoil(folder)
    recipe = shipped_recipe("deeplense_4", {"source.folder": str(folder)})
    with pytest.raises(InputError, match=said) as error:
        write_dataset(recipe, 3, 0, tmp_path / "set", progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_galaxy10_out_of_reach_says_what_to_do(monkeypatch):
    import pooch

    def unreachable(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(pooch, "retrieve", unreachable)
    with pytest.raises(InputError, match=r"Galaxy10 could not be had.*source\.folder=PATH"):
        _galaxy("galaxy10").pictures()


def test_galaxy10_gives_near_tight_spirals(tmp_path, monkeypatch):
    import h5py
    import pooch

    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "galaxies.h5", "w") as file:
        images = rng.integers(0, 5, (6, 20, 20, 3)).astype(np.uint8)
        images[:, 8:12, 8:12] = 200
        images[:, 9, 9] = (np.arange(6) * 10)[:, None]
        file["images"], file["ans"] = images, np.array([6, 1, 6, 6, 6, 2])
        file["redshift"] = np.array([0.01, 0.01, 0.03, np.nan, 0.015, 0.01])
    monkeypatch.setattr(pooch, "retrieve", lambda url, known_hash, **options: str(tmp_path / "galaxies.h5"))
    pictures._read_pictures.cache_clear()
    light = _galaxy("galaxy10").pictures()
    assert len(light) == 2
    # the first and the fifth: the darker their marked pixel, the less light it has
    assert light[0, 0, 9, 9] < light[1, 0, 9, 9]
    pictures._read_pictures.cache_clear()
