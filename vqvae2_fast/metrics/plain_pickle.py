"""Pickles that hold dictionaries, lists and numpy arrays, and nothing that runs."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_arrays"]

# All that numpy writes for an array: how to make an empty one, its class, and that of its type.
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
            raise ValueError(f"it asks for {module}.{name}, which is no part of an array")
        return _ALLOWED[module, name]


def load_arrays(path: Path) -> Any:
    """What a pickle of numpy arrays in dictionaries and lists holds.

    Raises:
        ValueError: It names anything else than an array's three globals (nothing of it is then
            called), or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except (ValueError, pickle.UnpicklingError, EOFError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: expected a pickle of numpy arrays alone: {error}.") from error
