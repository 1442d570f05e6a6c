"""A prior's weights as drawing folds them, with norms that have the same bits on every machine.

One machine must decode what another encoded (`codec`), but the last bit of torch's float32 norms
depends on the processor. So squares and their sums are float64 here, in an order that
`csrc/cpu/weights/weight_norms.h` fixes; without the compiled module, or on a GPU, in torch's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.modules.causal_conv import ConvWeight
from vqvae2_fast.modules.contexts import without_compiler
from vqvae2_fast.ops import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["LEAST_NORM", "Folding"]

# The squares of a smaller weight would lose bits in the forward pass, which is float32, or vanish.
LEAST_NORM = 2.0**-50


class Folding:
    """What weight normalisation multiplies the weights of a prior with, as they are now.

    Args:
        prior: The module whose `ConvWeight`s may be asked for.
    """

    def __init__(self, prior: nn.Module) -> None:
        kernels = [module for module in prior.modules() if isinstance(module, ConvWeight)]
        normed = [kernel for kernel in kernels if kernel.weight_g is not None]
        self._scales = dict(zip(normed, _scales(normed), strict=True))

    def scale(self, kernel: ConvWeight) -> Tensor | None:
        """g / ‖v‖ `[C_out, 1, 1, 1]`, NaN where ‖v‖ < `LEAST_NORM`; None if it is not normed."""
        kernel = without_compiler(kernel)
        return None if kernel.weight_g is None else self._scales[kernel]

    def weight(self, kernel: ConvWeight) -> Tensor:
        """`[C_out, C_in, kh, kw]`, zero on the dead taps."""
        scale, kernel = self.scale(kernel), without_compiler(kernel)
        return kernel.masked_v() if scale is None else kernel.masked_v() * scale


def _scales(kernels: Sequence[ConvWeight]) -> list[Tensor]:
    native = [kernel for kernel in kernels if _native.reads_floats(kernel.weight_v)]
    norms = dict(zip(native, _native_norms(native), strict=True))
    scales = []
    for kernel in kernels:
        norm = norms[kernel] if kernel in norms else _norm(kernel)
        assert kernel.weight_g is not None
        scales.append(kernel.weight_g.detach() / norm.view_as(kernel.weight_g))
    return scales


def _norm(kernel: ConvWeight) -> Tensor:
    norm = kernel.masked_v().detach().flatten(1).double().square().sum(1).sqrt()  # [C_out]
    norm = norm.to(kernel.weight_v.dtype)
    return norm.where(norm >= LEAST_NORM, torch.nan)


def _native_norms(kernels: Sequence[ConvWeight]) -> list[Tensor]:
    if not kernels:
        return []
    assert _native.module is not None
    values = [kernel.weight_v.detach().contiguous() for kernel in kernels]
    counts = [len(v) for v in values]
    norms = torch.empty(sum(counts), dtype=torch.float32, device="cpu")
    places = norms.split(counts)
    _native.module.weight_norms(
        [
            (v, *v.flatten(2).shape, kernel.num_live, place)
            for v, kernel, place in zip(values, kernels, places, strict=True)
        ],
        torch.get_num_threads(),
    )
    norms.masked_fill_(~(norms >= LEAST_NORM), torch.nan)
    return list(places)
