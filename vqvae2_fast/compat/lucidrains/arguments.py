"""Arguments of the package that are not supported: an error names those that would have an
effect, why they are left out, and what comes nearest."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from vqvae2_fast.ops._checks import dtype_name

__all__ = ["FORWARD_ARGUMENTS", "OTHER_ARGUMENTS", "check_together", "refuse_others"]


class Unsupported(NamedTuple):
    """An argument that is accepted only with values that have no effect.

    Args:
        idle: Those values.
        instead: Why others are refused, and the nearest thing: sentences.
    """

    idle: tuple[Any, ...]
    instead: str


_PACKAGE = "Use the package vector-quantize-pytorch for it."

OTHER_ARGUMENTS = {
    "affine_param": Unsupported(
        (False,),
        "It moves the codes before each search, which then cannot be exact and packed. Normalise "
        "the input (layernorm_after_project_in) or use SimVQ.",
    ),
    "straight_through": Unsupported(
        (False,), "Its gradient is a softmax over all codes. Use rotation_trick=False or SimVQ."
    ),
    "sync_update_v": Unsupported((0,), "It scales a gradient: scale the loss. " + _PACKAGE),
    "vq_bridge": Unsupported(
        (None,),
        "Use VQBridge of vqvae2_fast, or SimVQ with codebook_transform: both learn a module over "
        "the codes.",
    ),
}
# Details of what the arguments above switch on. While those are off, no value of these has an
# effect.
_INACTIVE = frozenset(
    {
        "sync_affine_param",
        "affine_param_batch_decay",
        "affine_param_codebook_decay",
    }
)
FORWARD_ARGUMENTS = {
    "codebook_transform_fn": Unsupported(
        (None,), "Codes that depend on the vector need a search of their own. " + _PACKAGE
    ),
    "ema_update_weight": Unsupported((None,), "Use freeze_codebook or ema_update. " + _PACKAGE),
    "accum_ema_update": Unsupported(
        (None, False),
        "Use manual_ema_update, or VectorQuantizerEMA(update='step') of vqvae2_fast, whose "
        "statistics add up.",
    ),
}


def refuse_others(given: dict[str, Any], known: dict[str, Unsupported]) -> None:
    """Raise for an argument that the package lacks, or whose value would have an effect."""
    for name, value in given.items():
        if name in _INACTIVE:
            continue
        if name not in known:
            raise TypeError(f"got an unexpected argument {name!r}.")
        idle, instead = known[name]
        if not any(_is(value, quiet) for quiet in idle):
            idle_values = " or ".join(map(repr, idle))
            raise NotImplementedError(
                f"{name} is not supported by vqvae2_fast.compat.lucidrains: expected "
                f"{idle_values}, got {_described(value)}. {instead}"
            )


def _described(value: object) -> str:
    """A value in a few words: of tensors only what kind they are."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {dtype_name(value.dtype)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)


def _is(value: object, idle: object) -> bool:
    """Equality for numbers and flags, identity for the rest, since comparing tensors gives no
    single truth value."""
    return value is idle or (isinstance(value, (bool, int, float)) and value == idle)


def check_together(
    *,
    learnable: bool,
    follows: bool,
    cosine: bool,
    rotates: bool,
    directional: bool,
    threshold: float,
) -> None:
    """Raise ValueError for arguments of `VectorQuantize` that exclude one another."""
    if directional and (rotates or not threshold):
        raise ValueError(
            "expected threshold_ema_dead_code > 0, and no rotation_trick, with "
            "directional_reparam=True, as in the package."
        )
    if learnable and follows:
        raise ValueError(
            "expected ema_update=False with learnable_codebook=True: a code "
            "follows its gradient or its average."
        )
    if learnable and cosine:
        raise ValueError(
            "expected use_cosine_sim=False with learnable_codebook=True, as in the package."
        )
