"""Argument checks that operators share: what was expected, what came."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

__all__ = [
    "check_codebook",
    "check_finite",
    "check_floating",
    "check_same_device",
    "checked_integer",
    "described",
    "not_float32",
]


def described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def not_float32(**tensors: Tensor | None) -> str | None:
    """The first of the tensors that is of another dtype, as a refusal of an owner's."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != torch.float32:
            return f"{str(tensor.dtype).removeprefix('torch.')} {name}"
    return None


def checked_integer(op: str, name: str, value: object, low: int, high: int) -> int:
    """The value as an int, if it is an integer (of any type) in low..high."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(
            f"{op}: expected {name} to be an integer from {low} to {high}, got {value!r}."
        )
    return number


def check_floating(op: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: expected {name} of a floating dtype, got {described(tensor)}.")


def check_same_device(op: str, **tensors: Tensor) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise RuntimeError(f"{op}: expected all tensors on one device, got {listed}.")


def check_codebook(op: str, z: Tensor, codebook: Tensor) -> None:
    """z `[..., D]` against codebook `[K, D]`, K and D at least 1."""
    check_floating(op, z=z, codebook=codebook)
    if codebook.dim() != 2 or 0 in codebook.shape:
        raise ValueError(
            f"{op}: expected codebook [K, D] with K, D >= 1, got {described(codebook)}."
        )
    if z.dim() == 0 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"{op}: expected z [..., D] with D={codebook.shape[1]} as in codebook "
            f"{list(codebook.shape)}, got {described(z)}."
        )
    check_same_device(op, z=z, codebook=codebook)


def check_finite(op: str, **tensors: Tensor) -> None:
    """Error on NaN or infinity. This is a synchronisation point on a GPU."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{op}: expected finite values, got NaN or infinity in {name}.")
