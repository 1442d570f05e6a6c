"""Arguments of the package that are known and not supported: an error by name, not a silence."""

from __future__ import annotations

from typing import Any

__all__ = ["OTHER_ARGUMENTS", "refuse_others"]

# Arguments that the package has beside those of the signature, and their defaults.
OTHER_ARGUMENTS: dict[str, Any] = {
    "commitment_use_cross_entropy_loss": False,
    "orthogonal_reg_weight": 0.0,
    "orthogonal_reg_active_codes_only": False,
    "orthogonal_reg_max_codes": None,
    "codebook_diversity_loss_weight": 0.0,
    "codebook_diversity_temperature": 100.0,
    "stochastic_sample_codes": False,
    "sample_codebook_temp": 1.0,
    "straight_through": False,
    "directional_reparam": False,
    "directional_reparam_variance": 5e-3,
    "sync_affine_param": False,
    "vq_bridge": None,
    "manual_ema_update": False,
    "learnable_codebook": None,
    "in_place_codebook_optimizer": None,
    "manual_in_place_optimizer_update": False,
    "affine_param": False,
    "affine_param_batch_decay": 0.99,
    "affine_param_codebook_decay": 0.9,
    "sync_update_v": 0.0,
}


def refuse_others(where: str, given: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise for a given argument that is not at its known default, or that nobody knows."""
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"{where}: got an unexpected argument {name!r}.")
        if value is not known[name] and (callable(value) or value != known[name]):
            raise NotImplementedError(
                f"{where}: {name} is not supported by vqvae2_fast.compat.lucidrains, only its "
                f"default {known[name]!r}. Use the package vector-quantize-pytorch for it."
            )
