"""Which arguments `VectorQuantizerEMA` takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vqvae2_fast.modules.quantizer_interface import check_commitment_cost

if TYPE_CHECKING:
    from vqvae2_fast.modules.quantizer import VectorQuantizerEMA

__all__ = ["check_arguments"]

_CHOICES = {
    "init": ("kmeans", "normal", "uniform"),
    "ema_start": ("one", "zero", "debiased"),
    "gradient": ("straight_through", "rotation"),
    "update": ("forward", "step"),
    "metric": ("euclidean", "cosine"),
}


def check_arguments(quantizer: VectorQuantizerEMA, init: str) -> None:
    """Raise ValueError unless the arguments that a quantiser has kept fit one another."""
    for name in ("num_embeddings", "embedding_dim"):
        if (value := getattr(quantizer, name)) < 1:
            raise ValueError(f"VectorQuantizerEMA: expected {name} >= 1, got {value}.")
    for name, known in _CHOICES.items():
        choice = init if name == "init" else getattr(quantizer, name)
        if choice not in known:
            raise ValueError(
                f"VectorQuantizerEMA: expected {name} to be one of {', '.join(known)}, got "
                f"{choice!r}."
            )
    for name in ("decay", "restart"):
        if not 0 <= (value := getattr(quantizer, name)) < 1:
            raise ValueError(f"VectorQuantizerEMA: expected {name} in [0, 1), got {value}.")
    if not 0 <= quantizer.stream < 1 << 16:  # the bits that `random_words` takes of it
        raise ValueError(
            f"VectorQuantizerEMA: expected stream in [0, 65536), got {quantizer.stream}. Codebook "
            "n of a level's quantiser has the level's stream + 256·n, so there can be 256 of them."
        )
    check_commitment_cost("VectorQuantizerEMA", quantizer.commitment_cost)
    epsilon = quantizer.epsilon
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"VectorQuantizerEMA: expected a finite epsilon >= 0, got {epsilon}.")
    if epsilon == 0 and not quantizer.restart:
        raise ValueError(
            "VectorQuantizerEMA: expected epsilon > 0 with restart=0, got 0: a code that no vector "
            "takes would be divided by a count of 0. Use epsilon=1e-5, or let unused codes restart."
        )
    after, update = quantizer.quantize_after, quantizer.update
    if after < 0:
        raise ValueError(f"VectorQuantizerEMA: expected quantize_after >= 0, got {after}.")
    if after and (init != "kmeans" or update != "step"):
        raise ValueError(
            'VectorQuantizerEMA: expected init="kmeans" and update="step" with quantize_after='
            f"{after}, got init={init!r} and update={update!r}."
        )
