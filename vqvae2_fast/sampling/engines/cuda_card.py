"""What engine `cuda` draws with: a precision, and what a card offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vqvae2_fast.sampling.engines.cuda_library import Library

__all__ = ["PRECISIONS", "THREADS", "Card", "Precision"]

THREADS = 512  # kMaxThreads of pixel_phase.cuh


@dataclass(frozen=True)
class Precision:
    """How products are computed.

    Args:
        pixel: dtype of the weights of the pixel phase; its sums are float32.
        row: dtype of the weights of the row phase.
        row_mode: `RowMode` of planner.h: 0 float32, 1 tf32, 2 bfloat16 on tensor cores.
    """

    pixel: torch.dtype
    row: torch.dtype
    row_mode: int


PRECISIONS = {
    "cuda": Precision(torch.float32, torch.float32, 0),
    "cuda_tf32": Precision(torch.float32, torch.float32, 1),
    "cuda_bfloat16": Precision(torch.bfloat16, torch.bfloat16, 2),
}


@dataclass(frozen=True)
class Card:
    """What a card offers: how many blocks of the persistent launch fit on it, and their size.

    Args:
        clusters16: How many clusters of 16 blocks it holds at once; 0 without such clusters.
        clusters8: Of 8 blocks.
    """

    blocks: int
    shared_bytes: int
    threads: int = THREADS
    clusters16: int = 0
    clusters8: int = 0

    @staticmethod
    def current(library: Library) -> Card:
        blocks, shared_bytes, clusters16, clusters8 = library.card()
        return Card(blocks, shared_bytes, clusters16=clusters16, clusters8=clusters8)
