"""Arguments of the package that are not supported: an error names those that would have an
effect."""

from __future__ import annotations

from typing import Any

__all__ = ["INACTIVE_ARGUMENTS", "OTHER_ARGUMENTS", "refuse_others"]

# What the package takes in addition to the arguments of our signature, and the values that have no
# effect.
OTHER_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "commitment_use_cross_entropy_loss": (False,),
    "orthogonal_reg_weight": (0.0,),
    "codebook_diversity_loss_weight": (0.0,),
    "stochastic_sample_codes": (False,),
    "straight_through": (False,),
    "directional_reparam": (False,),
    "vq_bridge": (None,),
    "manual_ema_update": (False,),
    "learnable_codebook": (None, False),
    "in_place_codebook_optimizer": (None,),
    "affine_param": (False,),
    "sync_update_v": (0.0,),
}
# Details of what the arguments above switch on. While those are off, no value of these has an
# effect.
INACTIVE_ARGUMENTS = frozenset(
    {
        "orthogonal_reg_active_codes_only",
        "orthogonal_reg_max_codes",
        "codebook_diversity_temperature",
        "sample_codebook_temp",
        "directional_reparam_variance",
        "manual_in_place_optimizer_update",
        "sync_affine_param",
        "affine_param_batch_decay",
        "affine_param_codebook_decay",
    }
)


def refuse_others(where: str, given: dict[str, Any], known: dict[str, tuple[Any, ...]]) -> None:
    """Raise for an argument that the package lacks, or whose value would have an effect.

    Args:
        known: The names, and for each the values that have no effect.
    """
    for name, value in given.items():
        if name in INACTIVE_ARGUMENTS:
            continue
        if name not in known:
            raise TypeError(f"{where}: got an unexpected argument {name!r}.")
        if not any(_is(value, idle) for idle in known[name]):
            idle_values = " or ".join(map(repr, known[name]))
            raise NotImplementedError(
                f"{where}: {name} is not supported by vqvae2_fast.compat.lucidrains: expected "
                f"{idle_values}, got {value!r}. Use the package vector-quantize-pytorch for it."
            )


def _is(value: object, idle: object) -> bool:
    """Equality for numbers and flags, identity for the rest, since comparing tensors gives no
    single truth value."""
    return value is idle or (isinstance(value, (bool, int, float)) and value == idle)
