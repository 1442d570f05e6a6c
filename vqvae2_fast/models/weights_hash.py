"""One text that stands for a model's weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["weights_hash"]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers with their names, types and shapes, in hexadecimal.

    The same for a model in memory, its checkpoint that was loaded, and its copy in a pipeline.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        # As bytes: numpy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()
