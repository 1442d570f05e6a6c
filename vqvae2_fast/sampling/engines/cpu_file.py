"""Packed weights in a file, which engine `cpu` maps in place of packing them in each process.

A file holds the words of one `SamplerPlan`. It is a safetensors file whose only tensor begins on a
page, so its pages serve every process that maps it, and no process needs memory of its own for
packed weights. It is used only if what it was packed from has the hash of what would be packed
now, so that it never stands in for weights that have changed since.

Nobody should write into a file that is mapped; `pack` and `save` put another in its place. Before
each draw the file's size and time are compared, and if they have changed it is checked again.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from vqvae2_fast.files.durable import explained, renamed_into_place, write_all
from vqvae2_fast.files.json_file import object_in
from vqvae2_fast.files.mapped import MappedFile
from vqvae2_fast.files.untrusted import open_untrusted

if TYPE_CHECKING:
    from pathlib import Path

    from vqvae2_fast.sampling.engines.cpu_description import Description

__all__ = ["is_packed_from", "mapped_plan", "packed_name", "write_packed"]

# Increase this when the same description is packed into other words, or has another digest.
VERSION = "1"

_PAGE = 4096  # the header's size, with which the words begin on a page


def packed_name(engine: str) -> str:
    """The name of the file of an engine, in the folder of a prior's checkpoint."""
    return f"packed-{engine}.safetensors"


def write_packed(path: Path, description: Description, module: Any, threads: int) -> None:
    """Pack a description into a file.

    Raises:
        OSError: The file cannot be written; what was at `path` is unchanged.
    """
    plan = description.packed(module, threads)
    metadata = {
        "version": VERSION,
        "packed_from": description.digest(module, threads),
        "words_hash": _words_hash(plan.words(), module, threads),
    }
    size = plan.weight_bytes
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "words": entry}).encode().ljust(_PAGE - 8)
    with (
        explained(f"cannot write {path}"),
        renamed_into_place(path) as part,
        part.open("wb", buffering=0) as file,
    ):
        write_all(file, (_PAGE - 8).to_bytes(8, "little") + header)
        write_all(file, plan.words())


def is_packed_from(path: Path, description: Description, module: Any, threads: int) -> bool:
    """Whether a file can be read and was packed from this description."""
    try:
        return _read_metadata(path)["packed_from"] == description.digest(module, threads)
    except (OSError, ValueError):
        return False


def mapped_plan(
    path: Path, description: Description, module: Any, threads: int
) -> tuple[Any, MappedFile] | None:
    """A `SamplerPlan` of the description that reads its weights from a file, and the file.

    None if there is no such file, or it was packed from something else. A warning tells of a file
    that is damaged, or of another version of this package.
    """
    if not os.path.exists(path):  # False also where this process may not look
        return None
    try:
        metadata = _read_metadata(path)
        if metadata["packed_from"] != description.digest(module, threads):
            return None
        # The files of a checkpoint may be links.
        file = MappedFile(path.resolve(), _PAGE + 4 * description.num_words)
        words = file.bytes()[_PAGE:].numpy()
        if metadata["words_hash"] != _words_hash(words, module, threads):
            raise ValueError(f"{path} is damaged: its words do not have the hash in its header.")
    except FileNotFoundError:  # removed in the meantime
        return None
    except (OSError, ValueError, RuntimeError) as error:  # the last if PyTorch cannot map it
        reason = str(error).rstrip(".")
        warnings.warn(
            f"{reason if str(path) in reason else f'{path}: {reason}'}. The weights were packed "
            "anew. Have `vqvae2-fast pack` write the file again, or delete it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return description.made(module, threads, words), file


def _read_metadata(path: Path) -> dict[str, str]:
    """The texts in a file's header.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a file of packed weights, or was written by another version.
    """
    with open_untrusted(path) as file:
        start = file.read(_PAGE)
    header = {}
    if start[:8] == (_PAGE - 8).to_bytes(8, "little"):
        header = object_in(start[8:], path)
    metadata = header.get("__metadata__")
    texts = ("version", "packed_from", "words_hash")
    if not isinstance(metadata, dict) or not all(type(metadata.get(n)) is str for n in texts):
        raise ValueError(f"{path} is damaged, or no file of packed weights.")
    if metadata["version"] != VERSION:
        raise ValueError(f"{path} was written by another version of vqvae2_fast.")
    return metadata


def _words_hash(words: Any, module: Any, threads: int) -> str:
    view = np.frombuffer(words, np.uint8)
    (value,) = module.content_hashes([(view.ctypes.data, view.nbytes)], threads)
    return f"{value:016x}"
