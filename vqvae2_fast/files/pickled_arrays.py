"""Pickles of plain data and NumPy arrays, read without trusting them.

The names in such a pickle stand for stubs that only keep their arguments; every other name is
refused. Neither NumPy's functions nor any named class is called: even `numpy.ndarray` itself, with
arguments of a file's choice, makes objects out of any address.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vqvae2_fast.files.printable import short

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Frozen", "PickledArray", "unpickled"]

_MAX_MEMO = 1000  # objects that a pickle may refer to again; a file of weights has some 250


class Frozen(type):
    """The type of a stub. A pickle can set attributes of any object that it names; not of these."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it sets the attribute {name!r} of a class")


class _Dtype(metaclass=Frozen):
    __slots__ = ("byte_order", "name")
    byte_order: str
    name: str

    # Not `__init__`, which a pickle can leave out.
    def __new__(cls, name: str, *_: object) -> _Dtype:
        made = super().__new__(cls)
        made.name, made.byte_order = name, "<"
        return made

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = "<" if state[1] == "|" else state[1]


class PickledArray(metaclass=Frozen):
    """An array of a pickle, not yet checked."""

    __slots__ = ("_dtype", "_fortran", "_raw", "_shape")

    def __init__(self) -> None:
        self._shape, self._dtype, self._fortran, self._raw = (None, None, None, None)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # What `numpy.ndarray.__setstate__` is given.
        _, self._shape, self._dtype, self._fortran, self._raw = state

    def to_numpy(self, dtypes: tuple[str, ...]) -> np.ndarray[Any, Any]:
        """A copy of the array.

        Args:
            dtypes: Those that are accepted, by NumPy's short names, such as "f4".

        Raises:
            ValueError: It is of another type, or its parts do not fit each other.
        """
        shape, dtype, raw = self._shape, self._dtype, self._raw
        if not isinstance(dtype, _Dtype) or dtype.name not in dtypes:
            found = dtype.name if isinstance(dtype, _Dtype) else dtype
            raise ValueError(f"an array is of type {short(found)}, not one of {', '.join(dtypes)}")
        if dtype.byte_order not in ("<", ">"):
            raise ValueError(f"an array has byte order {short(repr(dtype.byte_order))}")
        sizes = shape if isinstance(shape, tuple) else (None,)
        if not all(type(size) is int and 0 <= size < 2**31 for size in sizes):
            raise ValueError(f"an array has shape {short(repr(shape))}")
        if not isinstance(raw, (bytes, bytearray)):
            raise ValueError("the values of an array are not bytes")
        if len(raw) != math.prod(sizes) * int(dtype.name[1:]):
            raise ValueError(f"an array of shape {short(repr(shape))} has {len(raw)} bytes")
        flat = np.frombuffer(raw, dtype=dtype.byte_order + dtype.name)
        array = flat.reshape(sizes, order="F" if self._fortran else "C")
        return array.astype(dtype.name)


class _NdarrayName(metaclass=Frozen):
    """Stands for `numpy.ndarray`, which is named as an argument and never called."""

    def __init__(self, *_: object) -> None:
        raise pickle.UnpicklingError("it calls numpy.ndarray")


class _Reconstruct(metaclass=Frozen):
    def __new__(cls, subtype: object, shape: object, typecode: object) -> PickledArray:  # type: ignore[misc]
        return PickledArray()


class _FromBuffer(metaclass=Frozen):
    def __new__(cls, raw: object, dtype: object, shape: object, order: str) -> PickledArray:  # type: ignore[misc]
        array = PickledArray()
        array.__setstate__((1, shape, dtype, order == "F", raw))
        return array


# numpy.core became numpy._core in NumPy 2.
_STUBS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, stubs: Mapping[tuple[str, str], type]) -> None:
        super().__init__(_checked(content))
        self._stubs = {**_STUBS, **stubs}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._stubs:
            return self._stubs[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def unpickled(content: bytes, stubs: Mapping[tuple[str, str], type] = MappingProxyType({})) -> Any:
    """The object of a pickle, in which arrays are `PickledArray`.

    Args:
        stubs: What other names stand for, by module and name; classes of type `Frozen`, which may
            get any arguments.

    Raises:
        ValueError: It is damaged, or names anything else. Nothing of it was run.
    """
    try:
        return _Unpickler(content, stubs).load()
    except (
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        EOFError,
        OverflowError,
        MemoryError,
    ) as error:
        raise ValueError(short(error, 200) or type(error).__name__) from error


def _checked(content: bytes) -> io.BytesIO:
    """Opens a pickle for reading, but refuses one that asks for memory that it does not fill."""
    for operation, argument, _ in pickletools.genops(content):
        # The memo of the unpickler is an array, which grows to any index that a pickle names.
        if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > _MAX_MEMO:
            raise ValueError(f"it keeps an object under the number {argument}")
    return io.BytesIO(content)
