"""Reads `.npy` files of anyone's making. Nothing in them is ever run: an object array goes through an unpickler that
knows arrays and numbers, builds them itself, and refuses every other name."""

import io
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from tokenize import TokenError

import numpy as np

from lenslib.errors import InputError

# what numpy's header parser and the pickle machine raise on damaged bytes
_DAMAGE = (ValueError, OSError, EOFError, MemoryError, SyntaxError, TokenError, RecursionError)
_DAMAGE += (TypeError, LookupError, AttributeError, OverflowError)
_DAMAGED_PICKLE = (*_DAMAGE, pickle.UnpicklingError, struct.error)
_DAMAGED_ZIP = (*_DAMAGE, zipfile.BadZipFile, zlib.error, RuntimeError, struct.error)
# bytes of all arrays of an .npz file, which a file of a thousandth of that can claim
MOST_BYTES = 8e9


class _Refused(Exception):
    """Why a pickle is not read on."""


class _StandIn:
    """Takes the place of a numpy name, so that numpy's own code never sees what a pickle says of types and memory.

    Classes, not functions: a pickle can set attributes on whatever has no `__setstate__`.
    """

    def __setstate__(self, state):
        raise _Refused("an object with a state of its own")


class _DType(_StandIn):
    """numpy.dtype, of plain numbers or objects."""

    def __init__(self, code, *_):
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|O[48]?", code):
            raise _Refused(f"an array of {code!r:.20}")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        _, order, *structure = state[:5]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in structure):
            raise _Refused("an array of structures")
        self.order = order

    def read(self, data, shape) -> np.ndarray:
        # pickles of Python 2 hold bytes as text
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, np.dtype(self.order.replace("|", "=") + self.code), prod(shape))


class _Array(_StandIn):
    """numpy.ndarray, and the function that makes an empty one: numbers, or a flat list of objects with a shape."""

    def __init__(self, *_):
        self.content, self.shape = None, None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.shape, self.order = tuple(map(int, shape)), "F" if fortran else "C"
        if dtype.code.startswith("O"):
            self.content = list(data)
        else:
            self.content = dtype.read(data, self.shape).reshape(self.shape, order=self.order)


class _Scalar(_StandIn):
    """numpy's maker of single numbers."""

    def __new__(cls, dtype, data):
        return dtype.read(data, (1,)).item()


class _Bytes(_StandIn):
    """_codecs.encode, by which protocol 2 spells bytes."""

    def __new__(cls, text, encoding):
        if encoding != "latin1":
            raise _Refused(f"text in {encoding!r:.20}")
        return text.encode("latin1")


_KNOWN = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _DType, ("_codecs", "encode"): _Bytes}
# numpy 1 and numpy 2
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _KNOWN |= {(_module, "_reconstruct"): _Array, (_module, "scalar"): _Scalar}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            raise _Refused(f"'{ascii(f'{module}.{name}')[1:-1]:.80}'")
        return _KNOWN[module, name]


def read_npy(path: str | Path, mapped: bool = False) -> np.ndarray:
    """The array in a `.npy` file of any type and shape; with `mapped`, numbers stay on disk until they are used.

    An object array comes back with numeric arrays and numbers as its elements, and nothing else: no name that its
    pickle gives is ever imported or called (pickle can run any code: docs.python.org/3/library/pickle.html).
    InputError names the file and what is wrong with it, for a forbidden name that name, such as `os.system`.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = _header(file)
            if dtype.kind == "O":
                return _read_objects(file, shape)
            if min(shape, default=0) < 0:
                raise ValueError("a side below zero")
            if prod(shape) * dtype.itemsize > os.fstat(file.fileno()).st_size - file.tell():
                raise ValueError("cut short")
        mode = "r" if mapped and prod(shape) else None
        return np.load(path, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"'{path}': no such file") from None
    except _Refused as refused:
        raise InputError(f"'{path}': it holds pickled objects ({refused}) and is refused: save numbers alone") from None
    except _DAMAGE as error:
        pickled = "allow_pickle" in str(error)
        reason = "it holds pickled objects, which are refused" if pickled else "it is not a whole .npy file"
        raise InputError(f"'{path}': {reason}") from None


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of numbers and texts in an `.npz` file, by name.

    InputError for a file that is absent, damaged, larger than `MOST_BYTES`, or holds pickled objects or anything else.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if sum(entry.file_size for entry in arrays.zip.infolist()) > MOST_BYTES:
                raise InputError(f"'{path}': its arrays take more than {MOST_BYTES / 1e9:.0f} GB: split them")
            found = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("something else")
        return found
    except FileNotFoundError:
        raise InputError(f"'{path}': no such file") from None
    except InputError:
        raise
    except _DAMAGED_ZIP as error:
        pickled = "allow_pickle" in str(error)
        reason = "it holds pickled objects, which are refused" if pickled else "it is not a whole .npz file"
        raise InputError(f"'{path}': {reason}") from None


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    if file.peek(1)[:1] == b"\x80":
        raise _Refused("outside any array")
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError("version 3 is for named fields")


def _read_objects(file, shape) -> np.ndarray:
    try:
        content = file.read()
        for operation, number, _ in pickletools.genops(content):
            # the unpickler makes room for as many things as one of them is numbered
            if operation.name.endswith("PUT") and number > len(content):
                raise ValueError("a number beyond reason")
        array = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(array, _Array) or array.shape != shape or not isinstance(array.content, list):
            raise ValueError("not the array of the header")
        content = np.empty(len(array.content), object)
        for k, element in enumerate(array.content):
            content[k] = _element(element)
        return content.reshape(shape, order=array.order)
    except _Refused:
        raise
    except _DAMAGED_PICKLE:
        raise ValueError("damaged pickle") from None


def _element(element):
    if isinstance(element, _Array) and isinstance(element.content, np.ndarray):
        return element.content
    if isinstance(element, (int, float)):
        return float(element)
    raise _Refused("some neither an array of numbers nor a number")
