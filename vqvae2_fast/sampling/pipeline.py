"""A VQ-VAE with the priors of its levels, and images drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vqvae2_fast.models.code_checks import check_prior_fits
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.sampler import evaluating, sample_codes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pipeline", "decoded", "sample_images", "sample_levels"]


class Decoder(Protocol):
    def decode(self, codes: list[Tensor]) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Pipeline:
    """What it takes to draw images.

    Args:
        vqvae: Anything with `decode(codes)`, codes a list of maps, coarse to fine.
        priors: One per level, coarse to fine; each is conditioned on all levels before it.

    Raises:
        ValueError: A prior whose condition sizes are not the sizes of the levels before it.
    """

    vqvae: Decoder
    priors: Sequence[nn.Module]

    def __post_init__(self) -> None:
        object.__setattr__(self, "priors", tuple(self.priors))
        if not self.priors:
            raise ValueError("Pipeline: expected at least one prior, got none.")
        sizes: list[tuple[int, int]] = []
        for level, prior in enumerate(self.priors):
            interface = interface_of(prior)
            sizes.append(interface.size)
            check_prior_fits(
                f"Pipeline: priors[{level}]", interface, interface.num_embeddings, sizes
            )

    @property
    def num_classes(self) -> int:
        """Classes of the priors; 0 if none of them has classes."""
        return max(interface_of(prior).num_classes for prior in self.priors)


_Value = TypeVar("_Value")


def sample_levels(
    pipeline: Pipeline,
    batch_size: int,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    first_sample: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None | Sequence[int | None] = None,
    top_p: float | None | Sequence[float | None] = None,
    guidance_scale: float | Sequence[float] = 1.0,
    known: Sequence[Tensor | None] | None = None,
    engine: str = "auto",
    return_log_prob: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
    window: int | Sequence[int] = 1,
) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Draw the code maps of all levels, coarse to fine; arguments as in `sample_images`.

    Args:
        return_log_prob: Also return float32 `[B, h, w]` per level, as `sample_codes` does.
    """
    num_levels = len(pipeline.priors)
    values = {
        name: _per_level(name, value, num_levels)
        for name, value in (
            ("temperature", temperature),
            ("top_k", top_k),
            ("top_p", top_p),
            ("guidance_scale", guidance_scale),
            ("window", window),
        )
    }
    if known is not None and len(known) != num_levels:
        raise ValueError(
            f"sample_images: expected known to be a list of {num_levels} maps or None, coarse to "
            f"fine, got {len(known)}."
        )
    if pipeline.num_classes == 0:
        if labels is not None:
            raise ValueError("sample_images: expected no labels: no prior has classes.")
        if any(scale != 1.0 for scale in values["guidance_scale"]):
            raise ValueError(
                "sample_images: expected guidance_scale=1: no prior has classes, got "
                f"{guidance_scale}."
            )
    maps: list[Tensor] = []
    log_probs: list[Tensor] = []
    for level, prior in enumerate(pipeline.priors):
        arguments: dict[str, Any] = {name: value[level] for name, value in values.items()}
        if interface_of(prior).num_classes == 0:
            # A level without classes is drawn as it is; the others still take label and guidance.
            arguments["guidance_scale"] = 1.0
            arguments["labels"] = None
        else:
            arguments["labels"] = labels
        codes = sample_codes(
            prior,
            batch_size,
            condition=maps,
            seed=seed,
            first_sample=first_sample,
            stream=level,
            known=None if known is None else known[level],
            engine=engine,
            return_log_prob=return_log_prob,
            progress=None if progress is None else _at_level(progress, level),
            **arguments,
        )
        if isinstance(codes, tuple):
            codes, log_prob = codes
            log_probs.append(log_prob)
        maps.append(codes)
    return (maps, log_probs) if return_log_prob else maps


def sample_images(
    pipeline: Pipeline,
    batch_size: int,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    first_sample: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | None | Sequence[int | None] = None,
    top_p: float | None | Sequence[float | None] = None,
    guidance_scale: float | Sequence[float] = 1.0,
    known: Sequence[Tensor | None] | None = None,
    engine: str = "auto",
    progress: Callable[[int, int, int], None] | None = None,
    window: int | Sequence[int] = 1,
) -> Tensor:
    """Draw images: the code maps level by level, coarse to fine, then decoded.

    Level l draws with noise stream l, conditioned on the maps drawn before. Image n of a seed is
    row `n - first_sample`, whatever the batch.

    Args:
        labels: int64 `[B]`, given to every prior with classes.
        temperature, top_k, top_p, guidance_scale, window: One value, or one per level, coarse to
            fine; see `sample_codes`.
        known: Per level int64 `[B, h, w]` with -1 where a code is to be drawn, or None.
        progress: Called with (level, rows done, rows of its map).

    Returns:
        float `[B, C, H, W]` in [-1, 1].

    Raises:
        ValueError, TypeError: As `sample_codes`, or a list that has not one entry per level.
    """
    maps = sample_levels(
        pipeline,
        batch_size,
        labels=labels,
        seed=seed,
        first_sample=first_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance_scale=guidance_scale,
        known=known,
        engine=engine,
        window=window,
        progress=progress,
    )
    assert isinstance(maps, list)
    return decoded(pipeline, maps)


def decoded(pipeline: Pipeline, maps: list[Tensor]) -> Tensor:
    """Images `[B, C, H, W]` in [-1, 1] of code maps, coarse to fine."""
    with torch.no_grad():
        if not isinstance(pipeline.vqvae, nn.Module):
            return pipeline.vqvae.decode(maps).clamp(-1, 1)
        with evaluating(pipeline.vqvae):
            return pipeline.vqvae.decode(maps).clamp(-1, 1)


def _per_level(name: str, value: _Value | Sequence[_Value], num_levels: int) -> Sequence[_Value]:
    if not isinstance(value, Sequence):
        return [value] * num_levels
    if len(value) != num_levels:
        raise ValueError(
            f"sample_images: expected {name} to be one value or {num_levels}, one per level coarse "
            f"to fine, got {len(value)}."
        )
    return value


def _at_level(progress: Callable[[int, int, int], None], level: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(level, done, total)
