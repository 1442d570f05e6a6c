"""Pickles of arrays: the arrays come back, and nothing that a pickle names is called."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from vqvae2_fast.files.pickled_arrays import PickledArray, unpickled

FLOATS = ("f4", "f8")


class Calls:
    """Its pickle calls a function with arguments of the file's choice."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def array_of(**changes):
    """The pickle of a float32 [2, 3], parts of which are replaced."""
    reconstruct, arguments, state = np.zeros((2, 3), np.float32).__reduce__()
    names = ("version", "shape", "dtype", "fortran", "raw")
    parts = dict(zip(names, state, strict=True)) | changes
    return pickle.dumps(Calls(reconstruct, *arguments, state=tuple(parts.values())))


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
def test_arrays_come_back(protocol, order, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype, order=order)
    found = unpickled(pickle.dumps({"a": [array]}, protocol=protocol))["a"][0]
    assert np.array_equal(found.to_numpy(FLOATS), array)


@pytest.mark.parametrize(
    "value",
    [
        Calls(np.ndarray, (2,), np.dtype("O"), b"A" * 16),  # objects at addresses of the file
        Calls(np.ndarray, (10**13,)),
        np.float32(1),
        OrderedDict(),
        pickle.loads,
    ],
    ids=["addresses", "memory", "scalar", "class", "function"],
)
def test_what_a_pickle_names_is_not_called(value):
    with pytest.raises(ValueError, match=r"it calls numpy\.ndarray|it names "):
        unpickled(pickle.dumps(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw": bytes(23)}, r"an array of shape \(2, 3\) has 23 bytes"),
        ({"shape": (10**9,)}, "has 24 bytes"),
        ({"shape": (-2, -3)}, r"an array has shape \(-2, -3\)"),
        ({"shape": (0, 2**70), "raw": b""}, "an array has shape"),
        ({"shape": ("x",)}, "an array has shape"),
        ({"shape": 6}, "an array has shape 6"),
        ({"dtype": np.dtype("O")}, "an array is of type O8, not one of f4, f8"),
        ({"dtype": "f4"}, "an array is of type f4, not one of"),
        ({"raw": ["x"] * 6}, "the values of an array are not bytes"),
    ],
    ids=["short", "long", "negative", "huge", "text", "number", "objects", "no_dtype", "list"],
)
def test_an_array_whose_parts_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        unpickled(array_of(**changes)).to_numpy(FLOATS)


def test_an_array_without_its_parts_is_refused():
    reconstruct, arguments, _ = np.zeros(1).__reduce__()
    found = unpickled(pickle.dumps(Calls(reconstruct, *arguments)))
    assert isinstance(found, PickledArray)
    with pytest.raises(ValueError, match="an array is of type None"):
        found.to_numpy(FLOATS)


def test_a_type_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"__new__\(\) missing 1 required"):
        unpickled(b"\x80\x02cnumpy\ndtype\n)\x81.")


def test_a_pickle_cannot_change_what_its_names_stand_for():
    name = b"cnumpy\nndarray\n"
    before = np.ndarray.__init__
    with pytest.raises(ValueError, match="it sets the attribute 'x' of a class"):
        unpickled(b"\x80\x02" + name + b"N}X\x01\x00\x00\x00xK\x01s\x86b.")
    assert np.ndarray.__init__ is before


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x05no", pickle.dumps([1])[:-1], b"p999999999\n.", b"\x80\x02\x82\x01."]
)
def test_a_damaged_pickle_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        unpickled(content)
