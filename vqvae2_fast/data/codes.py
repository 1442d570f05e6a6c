"""Code maps of a set of images, in memory; code_store.py has their format on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2_fast.data.code_store import (
    MAX_EMBEDDINGS,
    SHARD_BYTES,
    CodeLayout,
    Manifest,
    append_shard,
    create,
    read_manifest,
    read_shard,
    storage_numpy,
)
from vqvae2_fast.data.images import check_labels

if TYPE_CHECKING:
    import os

__all__ = ["CodeDataset"]


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
        if not codes:
            raise ValueError("CodeDataset: expected at least one level of codes, got none.")
        count = len(codes[0])
        if labels is None:
            labels = torch.full((count,), -1, dtype=torch.int64)
        dtype = torch.int16 if storage_numpy(num_embeddings) is np.int16 else torch.int32
        self.codes = [
            _checked(f"codes[{level}]", maps, count, num_embeddings).to("cpu", dtype)
            for level, maps in enumerate(codes)
        ]
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
        folder = Path(path)
        layout = CodeLayout(self.num_embeddings, self.level_sizes)
        manifest = Manifest(layout, self.class_names, self.checkpoint_hash)
        create(folder, manifest)
        step = max(1, shard_bytes // layout.record_bytes)
        for first in range(0, len(self), step):
            part = slice(first, first + step)
            records = layout.pack([maps[part] for maps in self.codes], self.labels[part])
            manifest = append_shard(folder, manifest, records)

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
        parts = [layout.unpack(read_shard(folder, layout, shard)) for shard in manifest.shards]
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


def _checked(name: str, maps: Tensor, count: int, num_embeddings: int) -> Tensor:
    """The maps, if they are integers `[count, h, w]` in [0, num_embeddings)."""
    if maps.is_floating_point() or maps.is_complex() or maps.dtype == torch.bool:
        raise TypeError(f"CodeDataset: expected integer {name}, got {maps.dtype}.")
    if maps.dim() != 3 or len(maps) != count or 0 in maps.shape[1:]:
        raise ValueError(
            f"CodeDataset: expected {name} [{count}, h, w] with h, w >= 1, got {list(maps.shape)}."
        )
    if count:
        low, high = int(maps.min()), int(maps.max())
        if low < 0 or high >= num_embeddings:
            raise ValueError(
                f"CodeDataset: {name} must be in [0, {num_embeddings}) (num_embeddings), "
                f"got values from {low} to {high}."
            )
    return maps
