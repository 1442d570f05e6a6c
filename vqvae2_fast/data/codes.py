"""Code maps of a set of images, in memory; code_store.py reads them from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.data.code_layout import MAX_EMBEDDINGS, CodeLayout, checked_codes
from vqvae2_fast.data.code_manifest import MANIFEST, read_manifest
from vqvae2_fast.data.code_store import read_checked_shard
from vqvae2_fast.data.code_writer import SHARD_BYTES, CodeWriter
from vqvae2_fast.data.images import check_labels

if TYPE_CHECKING:
    import os

__all__ = ["CodeDataset"]

_SAVE_STEP = 4096  # records


class CodeDataset(Dataset[tuple[list[Tensor], int]]):
    """Code maps of N images in memory, two bytes a code (four where K > 32,768).

    Args:
        codes: One map a level, coarse to fine, `[N, h, w]`, any integer type.
        num_embeddings: K; every code is in [0, K).
        labels: int64 `[N]`, -1 where there is none; without it all are -1.
        class_names: One name a class, label order; empty for a set without classes.
        checkpoint_hash: Identifies the model that made the codes, or "".

    Raises:
        TypeError: codes are not integers or labels not int64.
        ValueError: No level, shapes that do not fit, codes or labels out of range.
    """

    def __init__(
        self,
        codes: list[Tensor],
        num_embeddings: int,
        labels: Tensor | None = None,
        class_names: tuple[str, ...] = (),
        checkpoint_hash: str = "",
    ) -> None:
        if not 1 <= num_embeddings <= MAX_EMBEDDINGS:
            raise ValueError(
                f"CodeDataset: num_embeddings must be in [1, {MAX_EMBEDDINGS}], "
                f"got {num_embeddings}."
            )
        count = len(codes[0]) if codes else 0
        checked_codes("CodeDataset", codes, count, num_embeddings)
        small = CodeLayout(num_embeddings, ()).storage_dtype is np.int16
        dtype = torch.int16 if small else torch.int32
        self.codes = [maps.to("cpu", dtype) for maps in codes]
        if labels is None:
            labels = torch.full((count,), -1, dtype=torch.int64)
        labels = labels.to("cpu")
        check_labels("CodeDataset", labels, count, len(class_names))
        self.labels = labels
        self.num_embeddings = num_embeddings
        self.class_names = tuple(class_names)
        self.checkpoint_hash = checkpoint_hash

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each map, coarse to fine."""
        return tuple((maps.shape[1], maps.shape[2]) for maps in self.codes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return [maps[index].long() for maps in self.codes], int(self.labels[index])

    def batch(self, indices: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps of the given images, int64 `[B, h, w]` coarse to fine, and labels int64 `[B]`."""
        return [maps[indices].long() for maps in self.codes], self.labels[indices]

    def save(self, path: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES) -> None:
        """Writes the packed store into the folder `path`, which is made.

        Raises:
            ValueError: The folder holds a store already.
        """
        if (Path(path) / MANIFEST).exists():
            raise ValueError(
                f"CodeDataset.save: {path} holds a code store already; remove it or choose "
                "another folder."
            )
        with CodeWriter(
            path, self.num_embeddings, self.level_sizes, class_names=self.class_names,
            checkpoint_hash=self.checkpoint_hash, source_records=len(self),
            shard_bytes=shard_bytes,
        ) as writer:  # fmt: skip
            for part in torch.arange(len(self)).split(_SAVE_STEP):
                writer.add([maps[part] for maps in self.codes], self.labels[part])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CodeDataset:
        """Reads a store whole, checking sizes, checksums, codes and labels.

        Raises:
            ValueError: No store there, a newer version, a damaged manifest or shard, a shard name
                that is not a plain file name, codes or labels out of range.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        layout = manifest.layout
        parts = [
            layout.unpack(records)
            for shard in manifest.shards
            for records in read_checked_shard(folder, layout, shard)
        ]
        if not parts:
            parts = [layout.unpack(np.zeros((0, layout.record_bytes), dtype=np.uint8))]
        codes = [torch.cat(maps) for maps in zip(*(part[0] for part in parts), strict=True)]
        labels = torch.cat([part[1] for part in parts])
        try:
            return cls(
                codes,
                layout.num_embeddings,
                labels,
                manifest.class_names,
                manifest.checkpoint_hash,
            )
        except ValueError as error:
            raise ValueError(f"CodeDataset.load: {folder}: {error}") from error
