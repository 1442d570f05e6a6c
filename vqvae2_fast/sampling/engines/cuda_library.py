"""The C interface of `csrc/cuda/sampler/sampler.h`, through ctypes.

The compiled module holds it; tests load another build, which runs the kernels on the CPU.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

__all__ = ["Library", "Sizes", "address", "driver_version", "native_library"]


@dataclass(frozen=True)
class Sizes:
    """What a draw takes: bytes on the card, and the shape of the persistent launch."""

    workspace_bytes: int
    program_bytes: int
    blocks: int
    stages: int
    shared_bytes: int


def address(
    name: str, tensor: Tensor | None, device: torch.device, dtype: torch.dtype | None = None
) -> int:
    """Where a tensor lies that a kernel will read or write; 0 for None.

    Raises:
        TypeError: It is on another device, of another dtype, or not contiguous.
    """
    if tensor is None:
        return 0
    fits = tensor.device == device and tensor.is_contiguous() and dtype in (None, tensor.dtype)
    if not fits:
        expected = f"a contiguous {dtype or 'tensor'} on {device}"
        raise TypeError(f"{name}: expected {expected}, got {tensor.dtype} on {tensor.device}.")
    return tensor.data_ptr()


class Library:
    """Calls into a shared library that has the sampler.

    Raises:
        RuntimeError: Any call may raise it, with the library's message.
    """

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        for name in ("sizes", "program", "stages", "row", "card"):
            function = getattr(self._library, f"vq_sampler_{name}", None)
            if function is not None:
                function.restype = ctypes.c_char_p
        # Planning takes 3 ms for a prior of the port's size, and a draw asks several times.
        self._planned_sizes = lru_cache(maxsize=64)(self._sizes)

    @property
    def has_kernels(self) -> bool:
        return hasattr(self._library, "vq_sampler_row")

    def sizes(self, values: Mapping[str, int | float]) -> Sizes:
        """What a draw takes; kept for draws with the same values. No address has any influence."""
        return self._planned_sizes(tuple(values.items()))

    def _sizes(self, values: tuple[tuple[str, int | float], ...]) -> Sizes:
        sizes = (ctypes.c_int64 * 5)()
        self._call("sizes", *_by_name(dict(values)), sizes)
        return Sizes(*sizes)

    def program(self, values: Mapping[str, int | float], address: int) -> None:
        """Writes the program to host memory at `address`."""
        self._call("program", *_by_name(values), ctypes.c_void_p(address))

    def stages(self, values: Mapping[str, int | float]) -> str:
        """The plan's stages, a table separated by semicolons; of a build with VQ_STAGE_TIMES."""
        text = ctypes.create_string_buffer(1 << 16)
        self._call("stages", *_by_name(values), text, ctypes.c_int64(len(text)))
        return text.value.decode()

    @property
    def moments(self) -> int:
        """Times that a block notes of each step; 0 if it was built without VQ_STAGE_TIMES."""
        moments = getattr(self._library, "vq_sampler_moments", None)
        return 0 if moments is None else int(moments())

    def row(self, program: int, on_card: int, i: int, stream: int) -> None:
        """Launches the kernels of row i on a stream."""
        self._call(
            "row",
            ctypes.c_void_p(program),
            ctypes.c_void_p(on_card),
            ctypes.c_int32(i),
            ctypes.c_void_p(stream),
        )

    def card(self) -> tuple[int, int, int, int]:
        """Multiprocessors of the current device, bytes of shared memory that a block may have, and
        how many clusters of 16 and of 8 blocks it holds at once.

        Raises:
            RuntimeError: The device or its driver does not run the kernels; the message says why.
        """
        card = (ctypes.c_int64 * 4)()
        self._call("card", card)
        return card[0], card[1], card[2], card[3]

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._library, f"vq_sampler_{name}")(*arguments)
        if error is not None:
            raise RuntimeError(error.decode())


def _by_name(values: Mapping[str, int | float]) -> tuple[object, object, object]:
    """Names and values, and how many; a float is passed as the bits of a double."""
    count = len(values)
    names = (ctypes.c_char_p * count)(*(name.encode() for name in values))
    bits = (
        struct.unpack("q", struct.pack("d", value))[0]
        if isinstance(value, float)
        else (value + (1 << 63)) % (1 << 64) - (1 << 63)  # as a signed word
        for value in values.values()
    )
    return names, (ctypes.c_int64 * count)(*bits), ctypes.c_int64(count)


@cache
def native_library() -> Library:
    """The library of the compiled module.

    Raises:
        RuntimeError: There is none.
    """
    if _native.module is None:
        raise RuntimeError(_native.MISSING_REASON)
    return Library(str(_native.module.__file__))


def driver_version() -> str:
    """The newest CUDA that the NVIDIA driver supports, such as `12.4`; `unknown` without one."""
    number = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return "unknown"
    failed = driver.cuDriverGetVersion(ctypes.byref(number))
    return "unknown" if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"
