"""Reads pickles of dictionaries, lists and numpy arrays, and refuses all others."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_arrays"]

# All that numpy writes for an array: a function that makes an empty one, its class, and the class
# of its type.
_RECONSTRUCT = np.ndarray((0,)).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it names {module}.{name}, which is not part of an array")
        return _ALLOWED[module, name]


def load_arrays(path: Path) -> Any:
    """The content of a pickle of numpy arrays in dictionaries and lists.

    Raises:
        ValueError: It is damaged, or names anything but the three globals of an array. Nothing that
            it names is then called.
    """
    try:
        return _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except (ValueError, pickle.UnpicklingError, EOFError, IndexError, KeyError) as error:
        raise ValueError(
            f"{path}: expected a pickle that holds numpy arrays only: {error}."
        ) from error
