"""FITS images as astropy writes them, with the pixel scale that their keywords mean."""

import gzip

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lenslib.errors import InputError
from lenslib.fits_files import is_fits, read_fits
from lenslib.image_files import find_images, read_images

SCALE = 0.05  # arcsec


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(5, 2, (8, 6))


def sky(angle=0.0):
    """Tangent-plane coordinates with pixels of SCALE, turned."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    cos, sin = np.cos(angle), np.sin(angle)
    wcs.wcs.cd = np.array([[-cos, sin], [sin, cos]]) * SCALE / 3600
    return wcs.to_header()


@pytest.mark.parametrize("dtype", [">f4", "<f8", "uint8", "uint16", "int32"])
def test_pixels_of_any_type_come_back(tmp_path, image, dtype):
    written = image.round().astype(dtype)
    fits.PrimaryHDU(written).writeto(tmp_path / "cut.fits")
    read, scale = read_fits(tmp_path / "cut.fits")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, written.astype(np.float32))
    assert scale is None


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.5])
def test_the_scale_is_that_of_the_sky(tmp_path, image, angle):
    fits.PrimaryHDU(image, sky(angle)).writeto(tmp_path / "cut.fits")
    assert read_fits(tmp_path / "cut.fits")[1] == pytest.approx(SCALE, rel=1e-9)


@pytest.mark.parametrize(
    ("keywords", "scale"),
    [
        ({"CDELT1": -SCALE / 3600, "CDELT2": SCALE / 3600}, SCALE),
        ({"CD1_1": -SCALE / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": SCALE / 3600}, SCALE),
        ({"CDELT1": SCALE, "CDELT2": SCALE, "CUNIT1": "arcsec", "CUNIT2": "arcsec"}, SCALE),
        (
            {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -SCALE, "CDELT2": SCALE}
            | {"CUNIT1": "arcsec", "CUNIT2": "arcsec"},
            SCALE,
        ),
        ({"CDELT1": 4 * SCALE / 3600, "CDELT2": SCALE / 3600}, 2 * SCALE),  # the root of the area
        ({"CDELT1": 2.0, "CDELT2": 2.0, "CUNIT1": "nm", "CUNIT2": "nm"}, None),
        ({"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0}, None),
        ({"EXPTIME": 100.0}, None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_scale_of_bare_keywords(tmp_path, image, keywords, scale):
    unit = fits.PrimaryHDU(image)
    unit.header.update(keywords)
    unit.writeto(tmp_path / "cut.fits")
    read, found = read_fits(tmp_path / "cut.fits")
    np.testing.assert_allclose(read, image, rtol=1e-6)
    assert found == (None if scale is None else pytest.approx(scale, rel=1e-9))


def table():
    return fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.zeros(3))])


def test_the_first_image_of_two_dimensions_is_taken(tmp_path, image):
    units = [fits.PrimaryHDU(), table(), fits.ImageHDU(np.zeros((3, 4, 5))), fits.ImageHDU(image[None], sky())]
    fits.HDUList([*units, fits.ImageHDU(image + 1)]).writeto(tmp_path / "many.fits")
    read, scale = read_fits(tmp_path / "many.fits")
    np.testing.assert_allclose(read, image, rtol=1e-6)
    assert scale == pytest.approx(SCALE, rel=1e-9)


def test_compressed_files_are_read(tmp_path, image):
    written = image.round().astype(np.int16)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(written)]).writeto(tmp_path / "cut.fits.fz")
    np.testing.assert_array_equal(read_fits(tmp_path / "cut.fits.fz")[0], written)
    fits.PrimaryHDU(written).writeto(tmp_path / "cut.fits")
    (tmp_path / "cut.fits.gz").write_bytes(gzip.compress((tmp_path / "cut.fits").read_bytes()))
    np.testing.assert_array_equal(read_fits(tmp_path / "cut.fits.gz")[0], written)


@pytest.mark.parametrize(
    "units",
    [
        [fits.PrimaryHDU()],
        [fits.PrimaryHDU(), table()],
        [fits.PrimaryHDU(np.zeros((3, 4, 5)))],
        [fits.PrimaryHDU(np.zeros(9))],
    ],
    ids=["empty", "table", "cube", "line"],
)
def test_a_file_without_pixels_is_named(tmp_path, units):
    fits.HDUList(units).writeto(tmp_path / "bare.fits")
    with pytest.raises(InputError, match=r"bare\.fits.*pixels") as error:
        read_fits(tmp_path / "bare.fits")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 1, 80, 1000, 2880, 3000])
@pytest.mark.filterwarnings("error")
def test_a_damaged_file_is_named(tmp_path, image, kept):
    fits.PrimaryHDU(np.tile(image, (20, 20))).writeto(tmp_path / "cut.fits")
    (tmp_path / "cut.fits").write_bytes((tmp_path / "cut.fits").read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.fits"):
        read_fits(tmp_path / "cut.fits")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_fits(tmp_path / "cut.fits")


def test_prediction_takes_them(tmp_path, image):
    fits.PrimaryHDU(image[:6]).writeto(tmp_path / "cut.fits")
    fits.PrimaryHDU(image).writeto(tmp_path / "tall.fits")
    np.testing.assert_allclose(read_images(tmp_path / "cut.fits", 6)[0], image[None, :6], rtol=1e-6)
    with pytest.raises(InputError, match="trained on 6 x 6"):
        read_images(tmp_path / "tall.fits", 6)
    blank = image[:6].copy()
    blank[0, 0] = np.nan
    fits.PrimaryHDU(blank).writeto(tmp_path / "blank.fits")
    with pytest.raises(InputError, match="1 pixels that are NaN"):
        read_images(tmp_path / "blank.fits", 6)
    np.save(tmp_path / "a.npy", image)
    (tmp_path / "notes.txt").write_text("")
    assert [path.name for path in find_images([tmp_path])] == ["a.npy", "blank.fits", "cut.fits", "tall.fits"]
    assert not is_fits("notes.txt")
