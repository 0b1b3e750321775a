"""Object arrays are read as numpy wrote them, and nothing that a file says is ever run."""

import io
import pickle
import struct

import numpy as np
import pytest

from lenslib.errors import InputError
from lenslib.npy_files import read_npy


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(5, 2, (6, 8))


def pair(image, mass):
    array = np.empty(2, object)
    array[:] = [image, mass]
    return array


def save_pickle(path, content: bytes, shape=(2,)):
    """A .npy file with the header of an object array and any bytes behind it."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
        file.write(content)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("home", ["numpy._core.multiarray", "numpy.core.multiarray"])
@pytest.mark.parametrize("number", [1e-23, np.float64(1e-23), np.float32(1e-23), np.array(1e-23)])
def test_image_and_mass_come_back_in_every_spelling(tmp_path, image, protocol, home, number):
    content = pickle.dumps(pair(image, number), protocol)
    if home not in content.decode("latin1"):
        if protocol == 4:  # names are preceded by their lengths, and frames by theirs
            content = pickle.dumps(pair(image, number), 3)
        content = content.replace(b"numpy._core.multiarray", home.encode())
    save_pickle(tmp_path / "axion.npy", content)
    read = read_npy(tmp_path / "axion.npy")
    assert read.shape == (2,)
    np.testing.assert_array_equal(read[0], image)
    assert read[0].dtype == np.float64
    np.testing.assert_allclose(float(read[1]), 1e-23, rtol=1e-6)


@pytest.mark.parametrize("change", [lambda a: a.astype(">f4"), np.asfortranarray, lambda a: a.astype(np.int16)])
def test_numbers_of_every_kind_and_order_come_back(tmp_path, image, change):
    np.save(tmp_path / "axion.npy", pair(change(image), 1.0), allow_pickle=True)
    np.testing.assert_array_equal(read_npy(tmp_path / "axion.npy")[0], change(image))


def test_tables_of_pairs_come_back(tmp_path, image):
    table = np.empty((3, 2), object)
    for k in range(3):
        table[k] = pair(image + k, k)
    np.save(tmp_path / "table.npy", table, allow_pickle=True)
    read = read_npy(tmp_path / "table.npy")
    assert read.shape == (3, 2)
    for k in range(3):
        np.testing.assert_array_equal(read[k, 0], image + k)
        assert read[k, 1] == k


def test_numbers_stay_on_disk_if_asked(tmp_path, image):
    np.save(tmp_path / "image.npy", image)
    assert isinstance(read_npy(tmp_path / "image.npy", mapped=True), np.memmap)
    np.testing.assert_array_equal(read_npy(tmp_path / "image.npy"), image)
    np.save(tmp_path / "none.npy", image[:0])
    assert read_npy(tmp_path / "none.npy", mapped=True).shape == (0, 8)


class Touch:
    """What creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_trap_is_named_and_not_sprung(tmp_path, image):
    marker, path = tmp_path / "sprung", tmp_path / "axion.npy"
    np.save(path, pair(image, Touch(marker)), allow_pickle=True)
    with pytest.raises(InputError, match=r"axion\.npy.*io\.open") as error:
        read_npy(path)
    assert "\n" not in str(error.value)
    assert not marker.exists()
    np.load(path, allow_pickle=True)
    assert marker.exists()  # the trap does work


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cos\nsystem\n(S'touch MARKER'\ntR.", "os.system"),
        (b'c__builtin__\neval\n(S\'open("MARKER", "w")\'\ntR.', "__builtin__.eval"),
        # numpy's own names beyond the few, and a dotted path through one of these
        (b"cnumpy.testing\nrundocs\n.", "numpy.testing.rundocs"),
        (b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__class__.mro\x93.", "numpy.ndarray.__class__.mro"),
        (b"cnumpy\nload\n(S'other.npy'\nI00\nI01\ntR.", "numpy.load"),
        # as an instance, by the extension registry, by a persistent name
        (b"(S'touch MARKER'\nios\nsystem\n.", "os.system"),
        (b"\x80\x02\x82\x01.", "not a whole .npy file"),
        (b"Pname\n.", "not a whole .npy file"),
        # a name of two lines and of any length stays one line
        (b"\x80\x04\x8c\x03a\nb\x8c\xf0" + b"x" * 240 + b"\x93.", r"a\\nb\.xxx"),
        # states set on what has none, and on the types themselves
        (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\ntS'fields'\ntb.", "structures"),
        (b"cnumpy\ndtype\n}S'read'\nI1\nsb.", "not a whole .npy file"),
        (b"c_codecs\nencode\n(S'68656c6c6f'\nS'hex_codec'\ntR.", "hex_codec"),
        (b"cnumpy\ndtype\n(S'V8'\ntR.", "V8"),
    ],
)
def test_names_and_states_beyond_arrays_are_refused(tmp_path, content, said):
    marker = tmp_path / "sprung"
    save_pickle(tmp_path / "crafted.npy", content.replace(b"MARKER", str(marker).encode()))
    with pytest.raises(InputError, match=said) as error:
        read_npy(tmp_path / "crafted.npy")
    assert "crafted.npy" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))
    assert not marker.exists()


def test_refusals_leave_the_reader_as_it_was(tmp_path, image):
    for content in (b"cnumpy\nndarray\n}S'content'\nI1\nsb.", b"c_codecs\nencode\n}S'x'\nI1\nsb."):
        save_pickle(tmp_path / "crafted.npy", content)
        with pytest.raises(InputError):
            read_npy(tmp_path / "crafted.npy")
    np.save(tmp_path / "good.npy", pair(image, 2.0), allow_pickle=True)
    np.testing.assert_array_equal(read_npy(tmp_path / "good.npy")[0], image)


@pytest.mark.parametrize(
    "element", ["text", None, [1, 2], {"a": 1}, 1j, np.array(["a"]), np.zeros(2, [("a", "f8")]), np.empty(1, object)]
)
def test_elements_that_are_no_numbers_are_refused(tmp_path, image, element):
    np.save(tmp_path / "odd.npy", pair(image, element), allow_pickle=True)
    with pytest.raises(InputError, match=r"odd\.npy"):
        read_npy(tmp_path / "odd.npy")


def test_every_cut_of_a_file_is_refused(tmp_path, image):
    buffer = io.BytesIO()
    np.save(buffer, pair(image, 1e-23), allow_pickle=True)
    whole = buffer.getvalue()
    for length in [*range(0, 140), *range(140, len(whole), 17), len(whole) - 1]:
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.npy"):
            read_npy(tmp_path / "cut.npy")


def test_no_damaged_byte_raises_anything_else(tmp_path, image):
    buffer = io.BytesIO()
    np.save(buffer, pair(image, 1e-23), allow_pickle=True)
    whole, rng = buffer.getvalue(), np.random.default_rng(1)
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] = (damaged[place] + rng.integers(1, 256)) % 256
        (tmp_path / "damaged.npy").write_bytes(bytes(damaged))
        try:
            read_npy(tmp_path / "damaged.npy")
        except InputError:
            refused += 1
    assert refused > 100  # the header's and the names' bytes; a changed pixel is still a pixel


def test_headers_that_lie_are_refused(tmp_path, image):
    np.save(tmp_path / "pair.npy", pair(image, 1.0), allow_pickle=True)
    content = (tmp_path / "pair.npy").read_bytes()
    save_pickle(tmp_path / "lie.npy", content[content.index(b"\n") + 1 :], shape=(3,))
    with pytest.raises(InputError, match="not a whole"):
        read_npy(tmp_path / "lie.npy")
    (tmp_path / "version.npy").write_bytes(b"\x93NUMPY\x09\x00" + struct.pack("<H", 2) + b"{}")
    with pytest.raises(InputError, match="not a whole"):
        read_npy(tmp_path / "version.npy")
    np.save(tmp_path / "fields.npy", np.zeros(2, [("a", object)]), allow_pickle=True)
    with pytest.raises(InputError, match="pickled"):
        read_npy(tmp_path / "fields.npy")
