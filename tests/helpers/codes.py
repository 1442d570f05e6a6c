"""Artificial codes in memory, to write code stores and to compare them with, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.data import CodeStore, CodeWriter
from vqvae2_fast.data.code_writer import SHARD_BYTES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CodeSet", "random_codes"]


@dataclass(frozen=True)
class CodeSet:
    """Maps int64 `[N, h, w]`, coarse to fine, and labels int64 `[N]`."""

    codes: list[Tensor]
    num_embeddings: int
    labels: Tensor
    class_names: tuple[str, ...] = ()
    checkpoint_hash: str = ""

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple((maps.shape[1], maps.shape[2]) for maps in self.codes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return [maps[index] for maps in self.codes], int(self.labels[index])

    def batch(self, indices: Tensor) -> tuple[list[Tensor], Tensor]:
        return [maps[indices] for maps in self.codes], self.labels[indices]

    def write(self, path: Path, shard_bytes: int = SHARD_BYTES) -> CodeStore:
        """The store of these codes."""
        with CodeWriter(
            path,
            self.num_embeddings,
            self.level_sizes,
            class_names=self.class_names,
            checkpoint_hash=self.checkpoint_hash,
            source_records=len(self),
            shard_bytes=shard_bytes,
        ) as writer:
            writer.add(self.codes, self.labels)
        return CodeStore(path)


def random_codes(
    num_embeddings: int,
    count: int,
    *,
    sizes: tuple[tuple[int, int], ...] = ((3, 2), (5, 7)),
    class_names: tuple[str, ...] = ("a", "b", "ü"),
    seed: int = 0,
) -> CodeSet:
    """Codes that include the smallest and the largest value, some without a label."""
    generator = torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(num_embeddings, (count, h, w), generator=generator, device="cpu")
        for h, w in sizes
    ]
    codes[0][0, 0, 0], codes[-1][-1, -1, -1] = 0, num_embeddings - 1
    labels = torch.randint(-1, len(class_names), (count,), generator=generator, device="cpu")
    return CodeSet(codes, num_embeddings, labels, class_names, "sha256:0f")
