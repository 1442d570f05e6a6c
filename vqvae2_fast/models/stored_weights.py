"""Weights as the file of a checkpoint has them: in float32, in bfloat16, or matrices in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["DTYPES", "restored", "stored"]

# By their names in config.json.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_SCALE = ".scale"


def stored(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What the file of a model with these weights holds; on the meta device, shapes and dtypes.

    Args:
        dtype: Of floating-point numbers. In int8, a matrix or the kernels of a convolution become
            integers q from -127 to 127, and `<name>.scale` float32 `[rows]`: a weight is q · scale.
            All other floating-point numbers are then bfloat16.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if dtype == torch.int8 and _has_rows(tensor):
            found[name], found[name + _SCALE] = _integers(tensor)
        elif tensor.is_floating_point():
            found[name] = tensor.to(torch.bfloat16 if dtype == torch.int8 else dtype)
        else:
            found[name] = tensor
    return found


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file that `stored` made, in float32."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            scale = tensors[name + _SCALE]
            found[name] = tensor * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif tensors.get(name.removesuffix(_SCALE), tensor).dtype != torch.int8:
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
    return found


def _has_rows(tensor: Tensor) -> bool:
    """Whether it is a matrix or the kernels of a convolution: no vector, such as a gain."""
    return (
        tensor.is_floating_point() and tensor.ndim >= 2 and min(len(tensor), tensor[0].numel()) > 1
    )


def _integers(tensor: Tensor) -> tuple[Tensor, Tensor]:
    if tensor.is_meta:  # whose arithmetic would import torch._dynamo, in a second
        return tensor.to(torch.int8), tensor.new_empty(len(tensor), dtype=torch.float32)
    rows = tensor.detach().float().flatten(1)
    scale = rows.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    integers = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return integers.view_as(tensor), scale
