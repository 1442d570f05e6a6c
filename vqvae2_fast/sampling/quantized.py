"""Matrices and their inputs as int8: what engine `cpu_w8a8` rounds, and how.

For the inputs a of a matrix (a convolution, or several that add to one output), with the range
amax_c of input channel c that a calibration found:

    s_c = amax_c · margin / 127                q = clamp(round(a / s_c), −127, 127)
    w'  = w · s_c,  r_o = max |w'_o| / 127     wq = clamp(round(w' / r_o), −127, 127)
    output = r_o · float32(Σ wq · q) + bias

Ties are rounded to even. Sums are int32, exact in any order; everything else is float32, rounded
after each step, so the bits are the same on every machine.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.files.printable import printable
from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.sampling.request import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from vqvae2_fast.sampling.request import Drawn
    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = [
    "Calibration",
    "InputRanges",
    "calibration_of",
    "check_terms",
    "checked_ranges",
    "quantized",
    "quantized_inputs",
    "warn_of_clamped",
]

# The range of a channel is at least this part of its matrix's largest: a channel that was hardly
# used in the calibration would otherwise be clamped to almost nothing.
_LEAST_RANGE = 2.0**-10
# int32 sums of this many products cannot overflow: 2^17 · 127² < 2^31.
MAX_TERMS = 2**17


@dataclass(frozen=True, eq=False)
class InputRanges:
    """Ranges of the inputs of a prior's matrices.

    Args:
        largest: By a matrix's name in the engine's plan, float32 `[n, inputs]`: amax of each input.
        margin: Values up to margin · amax are represented.
    """

    largest: Mapping[str, Tensor]
    margin: float = 1.0

    @property
    def inputs(self) -> int:
        """How many inputs of matrices are rounded at a position."""
        return sum(largest.numel() for largest in self.largest.values())

    def clamped_of(self, codes: Tensor, settings: DrawSettings, clamped: int) -> tuple[int, int]:
        """`Drawn.clamped` of a draw of these codes, of whose inputs so many were clamped."""
        rows = codes.numel() * (2 if settings.guided else 1)
        return clamped, rows * self.inputs

    def scales(self, name: str, inputs: int) -> Tensor:
        """s of a matrix with so many inputs, float32 `[n, inputs]`."""
        largest = self.largest.get(name)
        if largest is None or largest.shape[-1] != inputs:
            found = "none" if largest is None else str(largest.shape[-1])
            raise ValueError(
                f"engine cpu_w8a8: expected a calibration of the {inputs} inputs of {name!r}, got "
                f"{found}. Calibrate the prior again."
            )
        least = largest.amax(-1, keepdim=True) * _LEAST_RANGE
        scales = torch.maximum(largest, least) * self.margin / 127
        return torch.where(scales > 0, scales, 1.0)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibrate` keeps in a prior.

    Args:
        ranges: Of the inputs of each matrix.
        weights_hash: `weights_hash` of the prior that was calibrated.
        codes_hash: SHA-256 of the code maps, conditions and labels.
    """

    ranges: InputRanges
    weights_hash: str
    codes_hash: str


def check_terms(inputs: int) -> None:
    """Raises NotImplementedError for matrices of so many inputs that their sums could overflow."""
    if inputs >= MAX_TERMS:
        raise NotImplementedError(
            f"int8 weights: expected matrices of fewer than {MAX_TERMS} inputs, got {inputs}."
        )


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `[n, inputs, outputs]` -> wq int8 of that shape, and r float32 `[n, outputs]`."""
    check_terms(weight.shape[1])
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def quantized_inputs(x: Tensor, scales: Tensor) -> Tensor:
    """Inputs `[..., inputs]` over their scales `[inputs]`, rounded to integers; float32."""
    return (x / scales).round().clamp(-127, 127)


# `warn_of_clamped` warns if more than this part of a draw's inputs is clamped.
CLAMPED_PART = 1e-3

_REMEDY = "Calibrate it with vqvae2-fast calibrate, or vqvae2_fast.calibrate(prior, batches)."


def calibration_of(prior: nn.Module) -> Calibration:
    """A prior's calibration. Raises EngineError if there is none."""
    calibration = getattr(prior, "calibration", None)
    if not isinstance(calibration, Calibration):
        raise EngineError(f"engine cpu_w8a8: the prior has no calibration. {_REMEDY}")
    return calibration


def checked_ranges(prior: nn.Module, calibration: Calibration) -> InputRanges:
    """The ranges of a calibration, which must be of the prior's weights as they are.


    Raises:
        EngineError: It is of other weights.
    """
    found = weights_hash(prior)
    if found != calibration.weights_hash:
        raise EngineError(
            "engine cpu_w8a8: the prior's calibration is of weights "
            f"{printable(calibration.weights_hash[:12])}, but its weights are {found[:12]}. "
            f"{_REMEDY}"
        )
    return calibration.ranges


def warn_of_clamped(drawn: Drawn) -> None:
    """Warns if inputs often exceeded the ranges of the prior's calibration."""
    clamped, inputs = drawn.clamped
    if clamped > CLAMPED_PART * inputs:
        warnings.warn(
            f"engine cpu_w8a8: {clamped:,} of {inputs:,} inputs ({clamped / inputs:.1%}) exceeded "
            "the ranges of the prior's calibration and were clamped. Calibrate with code maps like "
            "those that are drawn, more of them, or a larger margin.",
            RuntimeWarning,
            stacklevel=3,
        )
