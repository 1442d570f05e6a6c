"""Converts NumPy files to code stores and back, a few records at a time, without ever unpickling.

A .npz file holds one array `[N, h, w]` for each level, named `top`, ..., `bottom` as the levels
are; then, where there are some, `labels` int64 `[N]` and `class_names`; and `num_embeddings`. A
single level may also be a .npy file.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from numpy.lib import format as npy

from vqvae2_fast.data.code_writer import CodeWriter
from vqvae2_fast.files.durable import explained, new_folder, renamed_into_place, sync_folder
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import FREE_BYTES, MAX_RATIO, open_untrusted
from vqvae2_fast.models.configs import level_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.data.code_store import CodeStore

__all__ = ["codes_from_numpy", "codes_to_numpy"]

_STEP = 1024  # records
_STEP_BYTES = 2**23  # of one level in the file
_MAX_WHOLE_BYTES = 2**20  # of class_names and num_embeddings
_MAX_HEADER_BYTES = 2**16  # of an array's header; NumPy's parser accepts no more
# What Python's zipfile raises for damaged archives, as found by damaging 20,000 of them.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)
# NumPy parses headers as Python, whose parser raises MemoryError on deep nesting, and those that
# fail once more, as tokens of Python 2.
_HEADER_ERRORS = (TypeError, SyntaxError, TokenError, MemoryError, OverflowError, Warning)
_LABELS, _CLASSES, _K = "labels", "class_names", "num_embeddings"


def codes_to_numpy(store: CodeStore, path: str | os.PathLike[str]) -> None:
    """Writes the codes as an uncompressed .npz, int16 (int32 where K > 32,768); replaces a file."""
    target = Path(path)
    dtype = np.dtype("<i2" if store.num_embeddings <= 2**15 else "<i4")
    sizes = store.level_sizes
    small = {_LABELS: store.labels.numpy().astype("<i8"), _K: np.array(store.num_embeddings)}
    if store.class_names:
        small[_CLASSES] = np.array(store.class_names, dtype=np.str_)
    with (
        renamed_into_place(target) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        for level, name in enumerate(level_names(len(sizes))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, (len(store), *sizes[level]), dtype)
                for part_indices in torch.arange(len(store)).split(_STEP):
                    maps = store.batch(part_indices)[0][level]
                    member.write(maps.numpy().astype(dtype).tobytes())
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)


def codes_from_numpy(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    num_embeddings: int | None = None,
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    checkpoint_hash: str = "",
) -> None:
    """Makes the code store `path` from a .npz file, or from .npy files, one for each level. Leaves
    nothing if that fails.

    Args:
        source: The .npz file, or the .npy files of the levels, coarse to fine.
        num_embeddings: K; not needed for a .npz file that holds it.
        labels: Used instead of the file's labels, `[N]`, -1 where there is none.
        class_names: Used instead of the file's names.

    Raises:
        ValueError: A file that is not a NumPy file, was cut, holds objects or less than it says;
            levels of different lengths; codes or labels out of range; no num_embeddings; or `path`
            is not a new or an empty folder.
        OSError: The disk is full or fails.
    """
    target = Path(path)
    free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not target.name or not free:
        raise ValueError(
            f"codes_from_numpy: expected path to be a new or an empty folder, got {short(target)}. "
            "Remove what is there, or name another folder."
        )
    with ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)) and Path(source).suffix != ".npy":
            archive = _open_archive(stack, Path(source))
            names = [info.filename for info in archive.infolist()]
            levels = _levels_of(Path(source), names)
            arrays = [_Rows.member(stack, archive, Path(source), level) for level in levels]
            given = {
                key: _Rows.member(stack, archive, Path(source), key)
                for key in (_LABELS, _CLASSES, _K)
                if f"{key}.npy" in names
            }
        else:
            files = [source] if isinstance(source, (str, os.PathLike)) else source
            arrays = [_Rows.file(stack, Path(file)) for file in files]
            given = {}
        if num_embeddings is None:
            if _K not in given:
                raise ValueError(
                    f"codes_from_numpy: pass num_embeddings, {short(source)} has none."
                )
            k = given[_K].whole()
            if k.shape or k.dtype.kind not in "iu":
                raise ValueError(f"codes_from_numpy: num_embeddings in {source} is not an integer.")
            num_embeddings = int(k)
        if class_names is None:
            class_names = (
                [str(name) for name in given[_CLASSES].whole().ravel()]
                if (_CLASSES in given)
                else []
            )
        label_rows = given.get(_LABELS) if labels is None else _Rows.array(labels)
        try:
            _write(arrays, target, num_embeddings, label_rows, class_names, checkpoint_hash)
        except ValueError as error:
            where = ", ".join(rows.name for rows in arrays)
            raise ValueError(f"{error} (read from {where})") from error


def _write(
    arrays: list[_Rows],
    path: Path,
    num_embeddings: int,
    labels: _Rows | None,
    class_names: Sequence[str],
    checkpoint_hash: str,
) -> None:
    for rows in arrays:
        if len(rows.shape) != 3 or rows.dtype.kind not in "iu":
            raise ValueError(
                f"codes_from_numpy: expected {rows.name} to be integers [N, h, w], got "
                f"{rows.dtype} {list(rows.shape)}."
            )
    counts = {rows.shape[0] for rows in arrays}
    if len(counts) != 1:
        raise ValueError(
            "codes_from_numpy: all levels must have the same number of records, got "
            + ", ".join(f"{rows.shape[0]} in {rows.name}" for rows in arrays)
            + "."
        )
    count = counts.pop()
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"codes_from_numpy: expected integer labels [{count}], got {labels.dtype} "
            f"{list(labels.shape)}."
        )
    with (
        _new_store(path) as folder,
        CodeWriter(
            folder,
            num_embeddings,
            [(rows.shape[1], rows.shape[2]) for rows in arrays],
            class_names=class_names,
            checkpoint_hash=checkpoint_hash,
            source_records=count,
            first=0,
        ) as writer,
    ):
        largest = max(math.prod(rows.shape[1:]) * rows.dtype.itemsize for rows in arrays)
        step = max(1, min(_STEP, _STEP_BYTES // largest))
        for first in range(0, count, step):
            size = min(step, count - first)
            maps = [torch.from_numpy(rows.next(size).astype(np.int64)) for rows in arrays]
            part = None if labels is None else torch.from_numpy(labels.next(size).astype(np.int64))
            writer.add(maps, part)


@contextmanager
def _new_store(path: Path) -> Iterator[Path]:
    """A hidden folder for a store, which gets its name at the end of the block; nothing is left of
    it after an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(path) as part:
            yield part
            sync_folder(part)
            os.rename(part, path)
        sync_folder(path.parent)
    except OSError as error:  # of the disk: those of the files that are read are ValueErrors
        with explained(f"codes_from_numpy: cannot write {path}", then="start again"):
            raise (error.__cause__ or error) from None  # the cause lacks the hidden name


class _Rows:
    """An array in a file, read from its first row to its last. The file must hold all of it."""

    def __init__(self, stream: IO[bytes], name: str, size: int) -> None:
        self.stream = stream
        self.name = name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # warnings about headers that NumPy finds odd
                self.shape, by_columns, self.dtype = _read_header(stream)
        except (*_ZIP_ERRORS, *_HEADER_ERRORS) as error:
            raise ValueError(
                f"codes_from_numpy: {name} is not an array ({short(error)})."
            ) from error
        if self.dtype.hasobject:
            raise ValueError(
                f"codes_from_numpy: {name} holds Python objects, which are never unpickled."
            )
        if by_columns and len(self.shape) > 1:
            raise ValueError(
                f"codes_from_numpy: {name} is in Fortran order; save np.ascontiguousarray of it."
            )
        if any(n < 0 for n in self.shape):
            raise ValueError(f"codes_from_numpy: {name} has shape {self.shape}.")
        expected = math.prod(self.shape) * self.dtype.itemsize
        if stream.tell() + expected != size:
            raise ValueError(
                f"codes_from_numpy: {name} has {size - stream.tell()} bytes of data, expected "
                f"{expected}; it was cut or its header is wrong."
            )

    @classmethod
    def file(cls, stack: ExitStack, path: Path) -> _Rows:
        file = stack.enter_context(_open(path))
        return cls(file, printable(path), os.fstat(file.fileno()).st_size)

    @classmethod
    def member(cls, stack: ExitStack, archive: zipfile.ZipFile, path: Path, name: str) -> _Rows:
        where = f"{name} in {printable(path)}"
        info = archive.getinfo(f"{name}.npy")
        if info.file_size > FREE_BYTES + MAX_RATIO * info.compress_size:
            raise ValueError(
                f"codes_from_numpy: {where} decompresses to more than {MAX_RATIO} times its size; "
                "if it is what you expect, save it by np.savez."
            )
        try:
            stream = stack.enter_context(archive.open(info))
        except _ZIP_ERRORS as error:
            raise ValueError(f"codes_from_numpy: {where}: {short(error)}.") from error
        return cls(stream, where, info.file_size)

    @classmethod
    def array(cls, values: Sequence[int] | np.ndarray) -> _Rows:
        buffer = io.BytesIO()
        npy.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
        buffer.seek(0)
        return cls(buffer, "labels", len(buffer.getvalue()))

    def next(self, rows: int) -> np.ndarray:
        """The next rows, `[rows, ...]`."""
        return self._read((rows, *self.shape[1:]))

    def whole(self) -> np.ndarray:
        """All of a small array."""
        if math.prod(self.shape) * self.dtype.itemsize > _MAX_WHOLE_BYTES:
            raise ValueError(f"codes_from_numpy: {self.name} exceeds {_MAX_WHOLE_BYTES} bytes.")
        return self._read(self.shape)

    def _read(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape) * self.dtype.itemsize
        try:
            content = self.stream.read(size)
        except _ZIP_ERRORS as error:
            raise ValueError(f"codes_from_numpy: {self.name} is damaged ({error}).") from error
        if len(content) != size:
            raise ValueError(f"codes_from_numpy: {self.name} was cut.")
        return np.frombuffer(content, dtype=self.dtype).reshape(shape)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and type."""
    version = npy.read_magic(stream)
    width = 2 if version == (1, 0) else 4
    size = int.from_bytes(prefix := stream.read(width), "little")
    if size > _MAX_HEADER_BYTES:  # NumPy would read up to 4 GiB of it
        raise ValueError(f"a header of {size} bytes")
    read = npy.read_array_header_1_0 if width == 2 else npy.read_array_header_2_0
    return read(io.BytesIO(prefix + stream.read(size)))


def _open(path: Path) -> IO[bytes]:
    try:
        return open_untrusted(path)
    except FileNotFoundError as error:
        raise ValueError(f"codes_from_numpy: {printable(path)} is not a file.") from error


def _open_archive(stack: ExitStack, path: Path) -> zipfile.ZipFile:
    file = stack.enter_context(_open(path))
    try:
        return stack.enter_context(zipfile.ZipFile(file))
    except _ZIP_ERRORS as error:
        raise ValueError(
            f"codes_from_numpy: {printable(path)} is not an .npz file ({short(error)})."
        ) from error


def _levels_of(path: Path, names: list[str]) -> list[str]:
    """The names of the levels, coarse to fine, that the archive holds."""
    for count in range(16, 0, -1):
        levels = level_names(count)
        if all(f"{name}.npy" in names for name in levels):
            return list(levels)
    raise ValueError(
        f"codes_from_numpy: {printable(path)} holds no array named top (then middle, bottom); it "
        f"holds {short(', '.join(names), 200) or 'nothing'}."
    )


def _write_header(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, header)
    member.write(buffer.getvalue())
