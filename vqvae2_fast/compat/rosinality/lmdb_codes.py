"""The port's LMDB store of codes (`extract_code.py`), read without trusting its pickles.

A value is the pickle of `dataset.CodeRow(top, bottom, filename)` with NumPy arrays. The reader here
accepts only that form, by `files.pickled_arrays`.

The store holds no labels, but a filename starts with the folder of its class. Nor does it say what
K is.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.compat.rosinality.lmdb_pages import problem_of_pages
from vqvae2_fast.data.code_format import MANIFEST
from vqvae2_fast.data.code_store import CodeStore
from vqvae2_fast.data.code_writer import CodeWriter
from vqvae2_fast.files.pickled_arrays import Frozen, PickledArray, unpickled
from vqvae2_fast.files.printable import printable, short
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CodeRow", "LMDBDataset", "import_lmdb_codes"]

_STEP = 1024  # records


class CodeRow(NamedTuple):
    """A record of the store.

    It is pickled as the port's `dataset.CodeRow`, so that the port can read it without this
    package. Unpickling needs the port's `dataset.py`; `LMDBDataset` does not.
    """

    top: Any
    bottom: Any
    filename: str

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle writes a class's name only where it can import it, so this pickle is made by hand.
        # Protocol 3 has no frames: the fields' pickle is two bytes, a body and a stop.
        fields = pickle.dumps(tuple(self), protocol=3)
        return pickle.loads, (fields[:2] + b"cdataset\nCodeRow\n" + fields[2:-1] + b"R.",)


_INTEGERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4")


class _Row(tuple[object, ...], metaclass=Frozen):
    __slots__ = ()

    def __new__(cls, top: object, bottom: object, filename: object) -> _Row:
        return super().__new__(cls, (top, bottom, filename))


_ROW: dict[tuple[str, str], type] = {("dataset", "CodeRow"): _Row, (__name__, "CodeRow"): _Row}


class _Inner(metaclass=Frozen):
    """The row in the pickle in a pickle that `CodeRow` makes."""

    def __new__(cls, value: bytes) -> object:  # type: ignore[misc]
        return unpickled(value, _ROW)


def _map(array: PickledArray) -> Tensor:
    """int64 `[h, w]`."""
    codes = array.to_numpy(_INTEGERS)
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"a map has shape {codes.shape}, expected [h, w]")
    return torch.from_numpy(codes.astype(np.int64))


def _read_row(value: bytes, source: str) -> CodeRow:
    try:
        row = unpickled(value, {**_ROW, ("_pickle", "loads"): _Inner})
        if type(row) is not _Row:
            raise ValueError(f"it is a {type(row).__name__}")
        top, bottom, filename = row
        if not (isinstance(top, PickledArray) and isinstance(bottom, PickledArray)):
            raise ValueError("its first fields are not two arrays")
        if type(filename) is not str:
            raise ValueError("its last field is not a string")
        return CodeRow(_map(top), _map(bottom), filename)
    except ValueError as error:
        raise ValueError(
            f"{source}: refused, and nothing of it was run: expected the pickle of a "
            f"dataset.CodeRow with two integer maps and a filename, but {error}."
        ) from error


class LMDBDataset(Dataset[tuple[Tensor, Tensor, str]]):
    """The port's store of codes: item i is top int64 `[h, w]`, bottom int64 `[2h, 2w]`, filename.

    Args:
        path: The folder that `extract_code.py --name` wrote.

    Raises:
        ModuleNotFoundError: The package `lmdb` is not installed.
        ValueError: No such store; and, from an item, a value that is not such a row.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._env = _open(self.path)
        length = self._get(b"length")
        entries = self._env.stat()["entries"]
        if length is None or not length.isdigit() or len(length) > 18 or int(length) > entries:
            raise ValueError(
                "expected a key `length` with the number of records in "
                f"{printable(path)}, which has {entries} entries, got {short(length)}: the store "
                "was not written by extract_code.py, or not to its end."
            )
        self.length = int(length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside 0..{self.length - 1}.")
        value = self._get(str(index).encode("ascii"))
        source = f"record {index} of {printable(self.path)}"
        if value is None:
            raise ValueError(f"{source} is missing; `length` says {self.length}.")
        return tuple(_read_row(value, source))

    def _get(self, key: bytes) -> bytes | None:
        import lmdb

        try:
            with self._env.begin() as transaction:
                value: bytes | None = transaction.get(key)
        except (lmdb.Error, MemoryError) as error:
            raise ValueError(f"{printable(self.path)} is damaged: {short(error)}.") from error
        return value

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, str]]:
        return (self[index] for index in range(self.length))

    def __getstate__(self) -> dict[str, Any]:
        # An LMDB environment does not travel to a worker process; the worker opens its own.
        return {"path": self.path, "length": self.length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._env = _open(self.path)


def _open(path: str) -> Any:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading the port's code stores needs the package lmdb: "
            "pip install 'vqvae2_fast[lmdb]'."
        ) from error
    data = Path(path) / "data.mdb"
    if not data.exists():
        raise ValueError(f"expected a folder with data.mdb, got {printable(path)}.")
    with open_untrusted(data) as file:
        problem = problem_of_pages(file, os.fstat(file.fileno()).st_size)
    if problem:
        raise ValueError(f"{printable(data)} is damaged: {problem}.")
    try:
        return lmdb.open(path, max_readers=32, readonly=True, lock=False, readahead=False)
    except (lmdb.Error, MemoryError) as error:
        raise ValueError(
            f"{printable(path)} does not open as an LMDB store: {short(error)}."
        ) from error


def _sizes(top: Tensor, bottom: Tensor) -> list[tuple[int, int]]:
    return [(maps.shape[0], maps.shape[1]) for maps in (top, bottom)]


def import_lmdb_codes(path: str | Path, out: str | Path, num_embeddings: int) -> CodeStore:
    """Writes the port's store as ours, into the folder `out`; a few records are in memory.

    Args:
        path: The folder that `extract_code.py --name` wrote.
        num_embeddings: K of the VQ-VAE that made the codes, which the store does not say. The
            port's scripts use 512.

    Returns:
        Codes top, bottom; labels by the sorted folders of the filenames, as ImageFolder numbers
        them (all -1 if no filename has a folder).

    Raises:
        ValueError: A value is not a `CodeRow`, maps have different sizes, codes are outside
            0..K−1, or `out` holds codes already.
    """
    if (Path(out) / MANIFEST).exists():
        raise ValueError(f"{out} holds codes already; name another folder.")
    dataset = LMDBDataset(path)
    if not len(dataset):
        raise ValueError(f"{path} holds no records.")
    first = _sizes(*dataset[0][:2])
    # Classes are numbered by their names, so all names are needed before a record is written.
    folders: list[str] = []
    for index, (top, bottom, filename) in enumerate(dataset):
        sizes = _sizes(top, bottom)
        if sizes != first:
            raise ValueError(
                f"expected maps {first} as in record 0, got {sizes} in record {index} of {path}."
            )
        folders.append(filename.partition("/")[0] if "/" in filename else "")
    names = sorted(set(folders) - {""})
    number = {name: label for label, name in enumerate(names)} | {"": -1}
    try:
        with CodeWriter(
            out, num_embeddings, first, class_names=names, source_records=len(dataset)
        ) as writer:
            for rows in torch.arange(len(dataset), device="cpu").split(_STEP):
                levels = zip(*(dataset[int(row)][:2] for row in rows), strict=True)
                labels = torch.tensor(
                    [number[folders[int(row)]] for row in rows], dtype=torch.int64, device="cpu"
                )
                writer.add([torch.stack(maps) for maps in levels], labels)  # [n, h, w], [n, 2h, 2w]
    except ValueError as error:
        raise ValueError(f"{error} (read from {printable(path)})") from error
    return CodeStore(out)
