"""Faults that the package once had, to be planted again: the operations must find each of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.modules.host import LatestForward
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.sampling import kept, pixelsnail
from vqvae2_fast.sampling.engines import cpu

if TYPE_CHECKING:
    from collections.abc import Callable


def buffers_of_the_default_dtype() -> None:
    """Engine `cpu` writes float32 into buffers of whatever dtype is the default."""

    def zeros(*sizes: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        default = None if dtype == torch.float32 else dtype
        return torch.zeros(*sizes, dtype=default, device=device)

    cpu.torch = SimpleNamespace(**{**vars(torch), "zeros": zeros})


def altered_layers_ignored() -> None:
    """Plans do not look at the types and hooks of layers."""
    pixelsnail.alteration = lambda *_: None


def changes_within_reading_ignored() -> None:
    """Plans are made of the weights themselves, which may change meanwhile, and not of a copy."""
    kept._copy_of = lambda module: module


def any_forward_recomputed() -> None:
    """A checkpoint recomputes an earlier forward with the codebook of the latest."""
    LatestForward.recall = lambda self, *_: self._state


def buffers_kept() -> None:
    """With update="step" codes restart from memory that the caller has written again."""
    VectorQuantizerEMA.lasting = lambda self, z: z


_FAULTS = (
    buffers_of_the_default_dtype,
    altered_layers_ignored,
    changes_within_reading_ignored,
    any_forward_recomputed,
    buffers_kept,
)
PLANTS: dict[str, Callable[[], None]] = {fault.__name__: fault for fault in _FAULTS}
