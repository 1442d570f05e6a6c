"""Which arguments `VectorQuantizerEMA` takes."""

from __future__ import annotations

__all__ = ["check_arguments"]

_CHOICES = {
    "init": ("kmeans", "normal", "uniform"),
    "ema_start": ("one", "zero", "debiased"),
    "gradient": ("straight_through", "rotation"),
    "update": ("forward", "step"),
    "metric": ("euclidean", "cosine"),
}


def check_arguments(
    num_embeddings: int,
    embedding_dim: int,
    decay: float,
    restart: float,
    quantize_after: int,
    **chosen: str,
) -> None:
    """Raise ValueError unless the arguments of `VectorQuantizerEMA` fit one another."""
    for name, value in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
        if value < 1:
            raise ValueError(f"VectorQuantizerEMA: expected {name} >= 1, got {value}.")
    for name, choice in chosen.items():
        if choice not in _CHOICES[name]:
            raise ValueError(
                f"VectorQuantizerEMA: expected {name} to be one of "
                f"{', '.join(_CHOICES[name])}, got {choice!r}."
            )
    if not 0 <= decay < 1:
        raise ValueError(f"VectorQuantizerEMA: expected decay in [0, 1), got {decay}.")
    if not 0 <= restart < 1:
        raise ValueError(f"VectorQuantizerEMA: expected restart in [0, 1), got {restart}.")
    if quantize_after < 0:
        raise ValueError(f"VectorQuantizerEMA: expected quantize_after >= 0, got {quantize_after}.")
    init, update = chosen["init"], chosen["update"]
    if quantize_after and (init != "kmeans" or update != "step"):
        raise ValueError(
            'VectorQuantizerEMA: expected init="kmeans" and update="step" with quantize_after='
            f"{quantize_after}, got init={init!r} and update={update!r}."
        )
