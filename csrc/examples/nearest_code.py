"""The nearest code of each vector, from Python without PyTorch: by ctypes and NumPy.

python nearest_code.py PREFIX/lib/libvqvae2_fast_c.so
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np


def load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    size = ctypes.c_int64
    floats, integers = (
        np.ctypeslib.ndpointer(dtype, flags="C_CONTIGUOUS") for dtype in (np.float32, np.int64)
    )
    library.vq2_nearest_code.argtypes = [floats, size, floats, size, size, integers, floats]
    library.vq2_last_error.restype = ctypes.c_char_p
    return library


def nearest_code(
    library: ctypes.CDLL, z: np.ndarray, codebook: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Indices `[N]` and squared distances `[N]` of z `[N, D]` for codebook `[K, D]`."""
    (num_vectors, dim), (num_codes, _) = z.shape, codebook.shape
    if codebook.shape[1] != dim:
        raise ValueError(f"expected codebook [K, {dim}], got {codebook.shape}.")
    indices, sqdist = np.empty(num_vectors, np.int64), np.empty(num_vectors, np.float32)
    if library.vq2_nearest_code(z, num_vectors, codebook, num_codes, dim, indices, sqdist):
        raise ValueError(library.vq2_last_error().decode())
    return indices, sqdist


if __name__ == "__main__":
    random = np.random.default_rng(0)
    z = random.standard_normal((10_000, 64), np.float32)
    codebook = random.standard_normal((512, 64), np.float32)
    indices, sqdist = nearest_code(load(sys.argv[1]), z, codebook)
    print(f"{len(np.unique(indices))} of {len(codebook)} codes used, mean {sqdist.mean():.4f}")
