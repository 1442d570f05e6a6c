"""Checks of codes, coarser maps, labels, priors and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vqvae2_fast.modules.index_range import check_range, may_read
from vqvae2_fast.ops._checks import check_int64, check_tensor, given, type_in_words

__all__ = [
    "as_maps",
    "check_known",
    "check_labels",
    "check_levels",
    "check_map",
    "check_maps",
    "check_pixels",
    "check_prior_fits",
    "check_priors_fit",
    "describe_maps",
    "is_list",
    "listed_maps",
]

Size = tuple[int, int]
# What scaling and decoders add to [-1, 1] stays far below this; bytes as floats exceed it.
_LARGEST_PIXEL = 2.0


class _ModelsAMap(Protocol):
    """A prior's configuration, or its interface to the samplers."""

    @property
    def size(self) -> Size: ...
    @property
    def num_embeddings(self) -> int: ...
    @property
    def condition_sizes(self) -> tuple[Size, ...]: ...


def as_maps(condition: Sequence[Tensor] | Tensor | None) -> list[Tensor]:
    """The list of coarser maps that a `condition` argument stands for."""
    if condition is None:
        return []
    return [condition] if isinstance(condition, Tensor) else list(condition)


def listed_maps(condition: Sequence[Tensor] | Tensor | None) -> list[Tensor]:
    """`as_maps`, after a check that `condition` is a tensor or a list."""
    if not (condition is None or isinstance(condition, Tensor) or is_list(condition)):
        raise TypeError(
            "expected condition to be a tensor or a list of them, coarse to fine, got "
            f"{given('condition', condition)}."
        )
    return as_maps(condition)


def is_list(value: object) -> bool:
    """Whether a value can be a list of maps; a tensor, an array or a string cannot."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def check_pixels(images: Tensor) -> None:
    """Raise ValueError for images whose values are NaN or far outside [-1, 1].

    On a GPU this is a synchronisation point.
    """
    if images.numel() == 0:
        return
    low, high = torch.stack(images.aminmax()).tolist()
    if not (low >= -_LARGEST_PIXEL and high <= _LARGEST_PIXEL):  # true of NaN too
        raise ValueError(
            f"expected images in [-1, 1], got values from {low:g} to {high:g}. "
            "`to_float` makes such images of bytes."
        )


def check_map(
    name: str, codes: Tensor, shape: tuple[int, ...], num_embeddings: int, *, lowest: int = 0
) -> None:
    """Codes int64 of this shape in lowest..K-1; -1 stands for a code that is not known."""
    check_int64(name, codes)
    if codes.shape != shape:
        raise ValueError(f"expected {name} {list(shape)}, got {list(codes.shape)}.")
    check_range(name, codes, lowest, num_embeddings)


def check_maps(
    maps: Sequence[Tensor],
    sizes: Sequence[Size],
    num_embeddings: int,
    batch_size: int,
    name: str = "condition",
) -> None:
    """The coarser maps of a prior, or others: int64 `[B, h, w]` of the given sizes.

    Args:
        name: Of the argument that holds them.
    """
    if len(maps) != len(sizes):
        raise ValueError(
            f"expected {name} to be {len(sizes)} map(s) of sizes {list(sizes)}, "
            f"coarse to fine, got {len(maps)}."
        )
    for index, (codes, size) in enumerate(zip(maps, sizes, strict=True)):
        check_map(f"{name}[{index}]", codes, (batch_size, *size), num_embeddings)


def check_known(known: Sequence[Tensor | None] | None, num_levels: int) -> None:
    """The `known` maps of a draw of all levels: a list of a map or None for each level, or None."""
    if known is None:
        return
    expected = f"expected known to be a list of {num_levels} maps or None, coarse to fine, got"
    if not is_list(known):
        raise TypeError(
            f"{expected} {type_in_words(known)}; None in the list stands for a level without known "
            "codes."
        )
    if len(known) != num_levels:
        raise ValueError(f"{expected} {len(known)}.")
    for level, codes in enumerate(known):
        if codes is not None:
            check_tensor(f"known[{level}]", codes)


def check_levels(
    codes: Sequence[Tensor],
    names: Sequence[str],
    strides: Sequence[int],
    num_embeddings: int,
) -> None:
    """The maps of all levels of a VQ-VAE: int64 `[B, h, w]`, coarse to fine.

    On a GPU the host waits once, for the least and the largest code of each.

    Args:
        strides: Fine to coarse; all but the first lead from one level's size to the next.
    """
    if len(codes) != len(names):
        raise ValueError(f"expected {len(names)} code maps ({', '.join(names)}), got {len(codes)}.")
    for level, (name, level_codes) in enumerate(zip(names, codes, strict=True)):
        check_int64(f"codes[{level}]", level_codes)
        if level_codes.dim() != 3:
            raise ValueError(
                f"expected codes [B, h, w], got {list(level_codes.shape)} at level {name}."
            )
    size = codes[0].shape
    for level, factor in enumerate(strides[:0:-1], start=1):
        size = torch.Size((size[0], size[1] * factor, size[2] * factor))
        if codes[level].shape != size:
            raise ValueError(
                f"expected codes {list(size)} at level {names[level]} for "
                f"{list(codes[0].shape)} at level top, got {list(codes[level].shape)}."
            )
    if not may_read(codes[0]):
        return
    extremes = [torch.stack(level_codes.aminmax()) for level_codes in codes]
    pairs = torch.stack(extremes).tolist()  # [L, 2], one synchronisation
    for name, (low, high) in zip(names, pairs, strict=True):
        if low < 0 or high >= num_embeddings:
            raise ValueError(
                f"expected codes in 0..{num_embeddings - 1}, got {low}..{high} at level {name}."
            )


def check_labels(
    labels: Tensor | None,
    num_classes: int,
    batch_size: int,
    num_labels: int = 0,
    num_words: int = 0,
) -> None:
    """int64 `[B]` in 0..num_classes, or below num_labels if there are more; none for a prior
    without classes. With words also `[B, 1 + W]`: the last num_words labels are those of words."""
    if num_classes == 0:
        if labels is not None:
            raise ValueError("expected no labels: the prior has no classes.")
        return
    if labels is None:
        raise ValueError(
            f"labels are missing: expected int64 [{batch_size}] in 0..{num_classes}, "
            f'where {num_classes} stands for "no class".'
        )
    check_int64("labels", labels)
    first_word = max(num_classes + 1, num_labels) - num_words
    if num_words and labels.dim() == 2 and labels.shape[1]:
        words = labels[:, 1:]
        # A class among the words would be added to the other.
        check_range("words", torch.where(words == -1, first_word, words), first_word, num_labels)
        labels = labels[:, 0]
    if labels.shape != (batch_size,):
        raise ValueError(f"expected labels [{batch_size}], got {list(labels.shape)}.")
    check_range("labels", labels, 0, first_word)


def describe_maps(num_embeddings: int, sizes: Sequence[Size]) -> str:
    """K and the sizes of code maps, for a message."""
    named = ", ".join(f"{height}x{width}" for height, width in sizes)
    return f"num_embeddings {num_embeddings} and level sizes {named}"


def check_prior_fits(
    name: str,
    prior: _ModelsAMap,
    num_embeddings: int,
    level_sizes: Sequence[Size],
    remedy: str = "",
) -> None:
    """Raise ValueError unless a prior models the last of these maps, conditioned on those before.

    Args:
        name: The argument or file that the prior came as.
        num_embeddings: K of the codes, the same at every level.
        level_sizes: Sizes of the maps, coarse to fine, up to the prior's own level.
        remedy: What to do about it, a sentence.
    """
    sizes = (*prior.condition_sizes, prior.size)
    if prior.num_embeddings == num_embeddings and list(map(tuple, sizes)) == list(
        map(tuple, level_sizes)
    ):
        return
    message = (
        f"expected {name} to be a prior of {describe_maps(num_embeddings, level_sizes)} (coarse to "
        f"fine, its own last), got one of {describe_maps(prior.num_embeddings, sizes)}."
    )
    raise ValueError(f"{message} {remedy}".rstrip())


def check_priors_fit(
    priors: Mapping[str, _ModelsAMap],
    num_embeddings: int,
    level_sizes: Sequence[Size],
    what: str = "priors",
) -> None:
    """Raise ValueError unless there is one prior for each level, and each fits the codes.

    Args:
        priors: Coarse to fine, by the arguments or files that they came as.
        num_embeddings, level_sizes: Of the VQ-VAE.
        what: The priors, for the message.
    """
    if len(priors) != len(level_sizes):
        raise ValueError(
            f"expected {what} to be {len(level_sizes)}, one for each level of the VQ-VAE, coarse "
            f"to fine, got {len(priors)}."
        )
    for level, (name, prior) in enumerate(priors.items()):
        check_prior_fits(name, prior, num_embeddings, level_sizes[: level + 1])
