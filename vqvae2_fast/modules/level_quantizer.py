"""The quantiser of a level of a VQ-VAE, made from a word such as "ema" or "fsq:8,8,8".

Every one of them gives one index below K for a vector, which is what priors, code stores and codecs
take: a residual, grouped or multi-head quantiser gives the joint code of its parts.

Sizes: K codes, D embedding_dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vqvae2_fast.modules.binary import BSQ, LFQ
from vqvae2_fast.modules.fsq import FSQ, ResidualFSQ
from vqvae2_fast.modules.grouped import GroupedResidualVQ, MultiHeadVQ
from vqvae2_fast.modules.learnt_codes import SimVQ, VectorQuantizer
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.residual_vq import ResidualVQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.modules.quantizer_interface import Quantizer

__all__ = ["check_quantizer", "codebook_numbers", "learns_by_averages", "make_quantizer"]


_MOST_PARTS, _MOST_CODES = 64, 2**24
_List = Literal["count", "number", "numbers"]


class _Form(NamedTuple):
    """How a kind of quantiser is written, counted, checked and made.

    Args:
        form: What stands in messages.
        make: K, D, options of `VectorQuantizerEMA`, numbers -> the quantiser.
        lists: What follows the name: a "count" of parts, one "number" of codes, "numbers".
        codes: Numbers -> K, or None where any K will do.
        entries: Numbers, K -> vectors in its codebooks.
        averages: Its codes are moving averages, so that it takes all options.
        powers: K is a power of two.
        divides: The first number divides D.
        least: The least of the numbers of the last list.
    """

    form: str
    make: Callable[..., Quantizer]
    lists: tuple[_List, ...] = ()
    codes: Callable[..., int] | None = None
    entries: Callable[..., int] = lambda k, *_: 0
    averages: bool = False
    powers: bool = False
    divides: bool = False
    least: int = 1


def _all(k: int) -> int:
    return k


def _learnt(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("commitment_cost", "gradient", "seed", "stream")}


_FORMS = {
    "ema": _Form("ema", lambda k, d, o: VectorQuantizerEMA(k, d, **o), entries=_all, averages=True),
    "cosine": _Form(
        "cosine",
        lambda k, d, o: VectorQuantizerEMA(k, d, metric="cosine", **o),
        entries=_all,
        averages=True,
    ),
    "gradient": _Form(
        "gradient", lambda k, d, o: VectorQuantizer(k, d, **_learnt(o)), entries=_all
    ),
    "simvq": _Form("simvq", lambda k, d, o: SimVQ(k, d, **_learnt(o)), entries=_all),
    "lfq": _Form("lfq", lambda k, d, o: LFQ(k, d, o["commitment_cost"]), powers=True),
    "bsq": _Form("bsq", lambda k, d, o: BSQ(k, d, o["commitment_cost"]), powers=True),
    "fsq": _Form(
        "fsq:LEVELS, such as fsq:8,8,8",
        lambda k, d, o, levels: FSQ(levels, d),
        lists=("numbers",),
        codes=math.prod,
        least=3,
    ),
    "residual-fsq": _Form(
        "residual-fsq:QUANTIZERS:LEVELS, such as residual-fsq:2:5,5",
        lambda k, d, o, q, levels: ResidualFSQ(levels, q[0], d, joint_code=True),
        lists=("count", "numbers"),
        codes=lambda q, levels: math.prod(levels) ** q[0],
        least=2,
    ),
    "residual": _Form(
        "residual:CODES of each quantiser, such as residual:16,32",
        lambda k, d, o, codes: ResidualVQ(codes, d, joint_code=True, **o),
        lists=("numbers",),
        codes=math.prod,
        entries=lambda k, codes: sum(codes),
        averages=True,
    ),
    "grouped": _Form(
        "grouped:GROUPS:CODES of each quantiser of a group, such as grouped:2:4,4",
        lambda k, d, o, g, codes: GroupedResidualVQ(g[0], codes, d, joint_code=True, **o),
        lists=("count", "numbers"),
        codes=lambda g, codes: math.prod(codes) ** g[0],
        entries=lambda k, g, codes: sum(codes),
        averages=True,
        divides=True,
    ),
    "heads": _Form(
        "heads:HEADS:CODES of a head, such as heads:2:16",
        lambda k, d, o, h, codes: MultiHeadVQ(h[0], codes[0], d, joint_code=True, **o),
        lists=("count", "number"),
        codes=lambda h, codes: codes[0] ** h[0],
        entries=lambda k, h, codes: codes[0],
        averages=True,
        divides=True,
    ),
}


def _fits(kind: _List, numbers: tuple[int, ...]) -> bool:
    longest = _MOST_PARTS if kind == "numbers" else 1
    largest = _MOST_PARTS if kind == "count" else _MOST_CODES
    return len(numbers) <= longest and all(1 <= number <= largest for number in numbers)


def _parsed(quantizer: str) -> tuple[_Form, list[tuple[int, ...]]]:
    name, *lists = quantizer.split(":")
    if name not in _FORMS:
        raise ValueError(f"expected quantizer to be one of {', '.join(_FORMS)}, got {name[:40]!r}.")
    form = _FORMS[name]
    try:
        numbers = [tuple(int(number) for number in part.split(",")) for part in lists]
    except ValueError:
        numbers = []
    if len(numbers) != len(form.lists) or not all(map(_fits, form.lists, numbers)):
        raise ValueError(f"expected quantizer {form.form}, got {quantizer[:80]!r}.")
    return form, numbers


def check_quantizer(quantizer: str, num_embeddings: int, embedding_dim: int) -> None:
    """Raise ValueError unless the word names a quantiser of K codes for vectors of D numbers."""
    form, numbers = _parsed(quantizer)
    if form.codes is not None:
        codes = form.codes(*numbers)
        if codes != num_embeddings:
            raise ValueError(
                f"expected num_embeddings={codes} with quantizer={quantizer!r}, got "
                f"{num_embeddings}. Set it, or choose other numbers."
            )
    if form.powers and num_embeddings & (num_embeddings - 1):
        raise ValueError(
            f"expected num_embeddings to be a power of two with quantizer={quantizer!r}, got "
            f"{num_embeddings}."
        )
    if numbers and min(numbers[-1]) < form.least:
        raise ValueError(
            f"expected quantizer with levels of at least {form.least} values each, got "
            f"{quantizer!r}."
        )
    if form.divides and embedding_dim % numbers[0][0]:
        raise ValueError(
            f"expected embedding_dim to be a multiple of the {numbers[0][0]} parts of "
            f"quantizer={quantizer!r}, got {embedding_dim}."
        )


def learns_by_averages(quantizer: str) -> bool:
    """Whether the codes of a word's quantiser are moving averages, with restarts and a late start
    (`quantize_after`)."""
    return _parsed(quantizer)[0].averages


def codebook_numbers(quantizer: str, num_embeddings: int, embedding_dim: int) -> int:
    """Numbers in the largest codebooks of the quantiser, at least; 0 if it has none."""
    form, numbers = _parsed(quantizer)
    return form.entries(num_embeddings, *numbers) * embedding_dim


def make_quantizer(
    quantizer: str, num_embeddings: int, embedding_dim: int, **options: Any
) -> Quantizer:
    """The quantiser that a word names.

    Args:
        options: Those of `VectorQuantizerEMA`; a quantiser takes from them what it has.

    Raises:
        ValueError: As `check_quantizer`.
    """
    check_quantizer(quantizer, num_embeddings, embedding_dim)
    form, numbers = _parsed(quantizer)
    return form.make(num_embeddings, embedding_dim, options, *numbers)
