"""What the CPU's training kernels share: which calls they take (libraries compute the others by
design), the layouts that they write, the switch that lets convolutions round, and an ELU with the
same bits on any number of threads."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = [
    "elu",
    "is_training_call",
    "new_channels_last",
    "new_heads",
    "rounded_convolutions",
    "rounds_convolutions",
]

_rounded = False


@contextmanager
def rounded_convolutions() -> Iterator[None]:
    """Inside it, kernels of training may round the factors of convolutions to bfloat16.

    Maps and sums stay float32, as with `torch.backends.fp32_precision = "bf16"`, which compilers
    cannot trace. It holds for the whole process.
    """
    global _rounded
    before, _rounded = _rounded, True
    try:
        yield
    finally:
        _rounded = before


def rounds_convolutions() -> bool:
    """Whether factors may be rounded here, and this processor's kernels gain by it."""
    return _rounded and _native.has_tiles()


def is_training_call(
    *tensors: Tensor | None, products: int, least: int, while_compiling: bool = True
) -> bool:
    """Whether the call is on the CPU, wants a gradient and is large enough.

    Under autocast libraries compute in bfloat16, which the kernels do not.

    Args:
        tensors: The operator's floating arguments.
        products: Multiplications of the call.
        least: Number of products from which the kernel was measured to be faster.
        while_compiling: False if a compiler turns PyTorch's calls into a faster kernel.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in given)
        and _is_large(products, least)
        and all(tensor.is_cpu for tensor in given)
        and not torch.is_autocast_enabled("cpu")
        and (while_compiling or not torch.compiler.is_compiling())
    )


def elu(x: Tensor) -> Tensor:
    """`F.elu(x)`, in training on a CPU with the same bits on any number of threads.

    PyTorch's takes another exp at the end of a thread's share if that does not fill a vector.
    """
    if not (x.is_cpu and x.requires_grad and torch.is_grad_enabled()):
        return F.elu(x)
    return x.relu() + x.clamp(max=0).expm1()


def _is_large(products: int, least: int) -> bool:
    if not torch.compiler.is_compiling():
        return products >= least
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    # A comparison of sizes that the compiler leaves open would need a graph for each outcome. The
    # kernels are right for small ones too.
    return not statically_known_true(products < least)


def new_channels_last(like: Tensor, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """An empty map with `like`'s images and its positions, or of another size; channels last in
    memory and no view."""
    batch = like.shape[0]
    height, width = like.shape[2:] if size is None else size
    strides = (height * width * channels, 1, width * channels, channels)
    return like.new_empty_strided((batch, channels, height, width), strides)


def new_heads(like: Tensor, channels: int) -> Tensor:
    """Empty `[B, heads, L, channels]`, in memory `[B, L, heads, channels]` and no view."""
    batch, heads, length, _ = like.shape
    strides = (length * heads * channels, channels, heads * channels, 1)
    return like.new_empty_strided((batch, heads, length, channels), strides)
