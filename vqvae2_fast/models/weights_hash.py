"""A hash of a model's weights, and the check that a prior and a VQ-VAE belong together."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.files.printable import printable
from vqvae2_fast.models.stored_weights import restored, stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["check_codes_of", "check_made_for", "codes_hash", "weights_hash"]


def weights_hash(model: nn.Module, saved_as: torch.dtype | None = None) -> str:
    """SHA-256 of all weights and buffers with their names, types and shapes, in hexadecimal.

    It is the same for a float32 model in memory and for the one that is loaded from its checkpoint.

    Args:
        saved_as: Give the hash of the model that will be loaded from a checkpoint of this dtype.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if saved_as is not None:
            tensor = restored(stored({name: tensor}, saved_as))[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        # As bytes: numpy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def codes_hash(vqvae: nn.Module) -> str:
    """The `weights_hash` that stands for a VQ-VAE's codes: its own, or that of the VQ-VAE whose
    encoder and codebooks it has kept while its decoder was trained further."""
    kept: str = getattr(vqvae, "vqvae_hash", "")
    return kept or weights_hash(vqvae)


def check_codes_of(vqvae: nn.Module, name: str, digest: str) -> None:
    """Raise ValueError if codes are known to be those of another VQ-VAE.

    Args:
        name: Of the codes, for the message.
        digest: The `codes_hash` of the VQ-VAE that they came from, or "".
    """
    expected = codes_hash(vqvae)
    if digest not in ("", expected):
        raise ValueError(
            f"expected codes of VQ-VAE {expected[:12]}, but {printable(name)} has those "
            f"of {printable(digest[:12])}, where they mean something else; extract with this one."
        )


def check_made_for(vqvae: nn.Module, known: Mapping[str, str]) -> None:
    """Raise ValueError if a prior is known to model the codes of another VQ-VAE.

    Codes of another VQ-VAE can have the same shape, but they mean something else.

    Args:
        known: For each prior, by a name for the message, the `weights_hash` of its VQ-VAE, or "".
    """
    if not any(known.values()):
        return
    found = weights_hash(vqvae)
    accepted = ("", found, getattr(vqvae, "vqvae_hash", ""))
    for name, digest in known.items():
        if digest not in accepted:
            raise ValueError(
                f"expected priors of VQ-VAE {found[:12]}, but {name} was trained on codes "
                f"of VQ-VAE {printable(digest[:12])}. Use the VQ-VAE that those codes were "
                "extracted with."
            )
