"""The codes that a training forward used, for backward and for a checkpoint's recomputation."""

from __future__ import annotations

import torch
from torch import Tensor

from vqvae2_fast.ops._registry import transforms_are_active

__all__ = ["LatestForward"]

_SAMPLE = 64  # numbers by which the vectors of a forward are known again


class LatestForward:
    """A copy of the codebook of the latest forward, whose end may move the codebook itself."""

    def __init__(self) -> None:
        self._codebook: Tensor | None = None
        self._sample: Tensor | None = None

    def codebook_for(self, codebook: Tensor, z: Tensor, *, recomputing: bool) -> Tensor:
        """The codes `[K, D]` for a forward of vectors z `[..., D]`, or for its recomputation.

        Raises:
            RuntimeError: A recomputation of another forward than the latest.
        """
        if transforms_are_active():  # no checkpoint recomputes there, and none may keep its tensors
            return codebook.clone()
        z = z.detach()
        sample = z.take(torch.arange(0, z.numel(), max(1, z.numel() // _SAMPLE), device=z.device))
        if not recomputing or self._codebook is None or self._sample is None:
            self._codebook, self._sample = codebook.clone(), sample
        elif not _alike(sample, self._sample):
            raise RuntimeError(
                "VectorQuantizerEMA: a checkpoint recomputes another forward than the latest, and "
                "update='forward' has moved the codebook since. Use update='step' with a call of "
                "update_codebook_ after each step, or compute the gradients of each forward before "
                "the next."
            )
        return self._codebook


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two samples are of the same vectors, which may have been computed twice."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return torch.allclose(a, b, rtol=0.01, atol=0.01 * float(b.abs().mean()), equal_nan=True)
