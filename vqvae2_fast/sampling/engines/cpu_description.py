"""What engine `cpu` packs: tensors that the library keeps, and matrices that it packs itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HALF_PANEL", "PANEL", "Block", "Description", "Format", "Packing"]

# Columns of a packed panel, and values (or gates) of a gated panel: kPanel and kHalfPanel of C++.
PANEL, HALF_PANEL = 32, 16


class Format(Enum):
    """How the weights of a panel are stored: `Format` of csrc/cpu/sampler/kernels.h."""

    FLOAT32, QUADS = range(2)

    def words(self, inputs: int) -> int:
        """4-byte words of a panel of so many inputs: `panel_words` of kernels.h."""
        return inputs * PANEL if self is Format.FLOAT32 else PANEL + -(-inputs // 4) * PANEL


class Block(NamedTuple):
    """Taps that lie in panels of their own.

    Args:
        name: Of the tensor, in which the first panel begins at word `start`.
        first_tap, num_taps: Which taps.
        matrix_stride, panel_stride: Words from one matrix, and panel, to the next.
    """

    name: str
    start: int
    first_tap: int
    num_taps: int
    matrix_stride: int
    panel_stride: int


@dataclass(frozen=True, eq=False)
class Packing:
    """n matrices of one shape, or convolutions: `Packing` of csrc/cpu/sampler/pack.h.

    Args:
        name: Of the matrices in the plan.
        weights: n tensors, from which the library reads.
        factors: What to multiply their outputs with, n tensors `[outputs]`, or none.
        output_stride: Elements from an output of a weight to the next.
        outputs: The output of each column, int64 `[panels·32]`; -1 for zeros.
        inputs: How many elements each input is after the first, int64 `[inputs]`; -1 for zeros.
        taps: The same of each tap.
        blocks: Where the taps are stored.
        input_scales: Factors of the inputs, `[n, inputs]`, or None.
    """

    name: str
    form: Format
    weights: Sequence[Tensor]
    factors: Sequence[Tensor]
    output_stride: int
    outputs: Tensor
    inputs: Tensor
    taps: list[int]
    blocks: list[Block]
    input_scales: Tensor | None = None

    @property
    def scales(self) -> str:
        """Name of the tensor of the outputs' scales, empty for none."""
        return f"{self.name}.scale" if self.form is Format.QUADS else ""

    def write(self, made: Any, threads: int) -> None:
        """Write into the memory of a `SamplerPlan` of the compiled module, which holds zeros."""
        weights, factors = ([_readable(x) for x in xs] for xs in (self.weights, self.factors))
        input_scales = None if self.input_scales is None else _readable(self.input_scales)
        made.pack(
            format=self.form.value,
            weights=weights,
            factors=factors,
            output_stride=self.output_stride,
            outputs=self.outputs.tolist(),
            inputs=self.inputs.tolist(),
            taps=self.taps,
            input_scales=input_scales,
            scales=self.scales,
            blocks=self.blocks,
            threads=threads,
        )


def _readable(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()


@dataclass(frozen=True, eq=False)
class Description:
    """A plan by the names under which `plan.cpp` reads it.

    Args:
        integers: Sizes and positions.
        sizes: Words of each tensor that the library keeps.
        tensors: Those that it keeps as they are.
        packings: What writes the others.
    """

    integers: dict[str, int | list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    packings: list[Packing] = field(default_factory=list)

    def packed(self, module: Any, threads: int) -> Any:
        """A `SamplerPlan` of the compiled module, packed."""
        made = module.SamplerPlan(
            integers={n: [v] if isinstance(v, int) else v for n, v in self.integers.items()},
            sizes=self.sizes,
            threads=threads,
        )
        for name, tensor in self.tensors.items():
            if tensor.numel():
                memory = torch.frombuffer(made.memory(name), dtype=torch.float32)
                memory.view(tensor.shape).copy_(tensor)
        for packing in self.packings:
            packing.write(made, threads)
        return made
