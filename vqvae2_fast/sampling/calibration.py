"""Calibration of a prior for engine `cpu_w8a8`: the ranges of what its matrices are given."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.models.code_checks import check_map
from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.modules.contexts import device_of, evaluating
from vqvae2_fast.ops._checks import check_tensor, type_in_words
from vqvae2_fast.sampling.engines.eager import draw_eager
from vqvae2_fast.sampling.prior import checked_interface, made_from
from vqvae2_fast.sampling.quantized import Calibration, InputRanges, quantized_inputs
from vqvae2_fast.sampling.request import DrawNoise, DrawRequest
from vqvae2_fast.sampling.sampler import checked_context
from vqvae2_fast.sampling.settings import DrawSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vqvae2_fast.models.prior import Prior
    from vqvae2_fast.sampling.plan import SamplingPlan

    _Given = tuple[Tensor, Sequence[Tensor] | Tensor | None, Tensor | None]

__all__ = ["calibrate"]

# Ranges that `calibrate` tries, as multiples of the largest magnitude that an input has.
_MULTIPLES = tuple(step / 20 for step in range(20, 9, -1))

# A matrix's name in the plan, and its number.
_Matrix = tuple[str, int]
_Batch = tuple[Tensor, list[Tensor], Tensor | None]


def calibrate(
    prior: Prior,
    batches: Iterable[_Given],
    *,
    margin: float | None = None,
) -> None:
    """Measure the ranges of a prior's activations, for engine `cpu_w8a8`.

    They are kept as `prior.calibration` and saved with the prior. A few hundred code maps of the
    training set suffice.

    Args:
        batches: (codes int64 `[B, H, W]`, condition, labels) as `score_codes` takes them.
        margin: The range of an input as a multiple of the largest magnitude seen, at least 1. None
            takes the multiple from 0.5 to 1 whose rounding has the least squared error: a few large
            values are then clamped, and all others are rounded to finer steps.

    Raises:
        ValueError: No batch, a margin that is no number, below 1 or infinite, a prior whose weights
            are not float32, or codes that do not fit the prior.
        TypeError: Batches that are not (codes, condition, labels), or codes or labels not int64.
    """
    if margin is not None and not (isinstance(margin, Real) and 1 <= margin < math.inf):
        raise ValueError(f"expected margin to be None or a finite number >= 1, got {margin!r}.")
    if not isinstance(batches, Iterable):
        raise TypeError(
            "expected batches to be a list of (codes, condition, labels), got "
            f"{type_in_words(batches)}."
        )
    interface, digest = checked_interface(prior), hashlib.sha256()
    device, dtype = device_of(prior), next(prior.parameters()).dtype
    if dtype != torch.float32:
        raise ValueError(
            "expected a prior with float32 weights, as engine cpu_w8a8 takes, got "
            f"{dtype}. Call prior.float() first."
        )
    with evaluating(prior), torch.inference_mode():
        checked: list[_Batch] = []
        for number, batch in enumerate(batches):
            codes, condition, labels = _parts(f"batches[{number}]", batch)
            check_tensor("codes", codes)
            size = codes.shape[0] if codes.ndim == 3 else 1
            check_map("codes", codes, (size, *interface.size), interface.num_embeddings)
            maps, numbers = checked_context(interface, size, condition, labels, device)
            if size:
                checked.append((codes.to(device), maps, numbers))
        if not checked:
            raise ValueError("expected at least one batch of code maps, got none.")
        for codes, maps, numbers in checked:
            for tensor in (codes, *maps, *([] if numbers is None else [numbers])):
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        # After the last batch, whose maker may change the weights.
        plan, hash_of_weights = made_from(
            prior, interface, "calibration", lambda plan, copy: (plan, weights_hash(copy))
        )
        ranges = _largest(plan, checked)
        if margin is None:
            ranges = _of_least_error(plan, checked, ranges)
    names = dict.fromkeys(name for name, _ in ranges)
    stacked = {
        name: torch.stack([ranges[key] for key in sorted(ranges) if key[0] == name]).clone()
        for name in names
    }
    prior.calibration = Calibration(
        InputRanges(stacked, 1.0 if margin is None else float(margin)),
        hash_of_weights,
        digest.hexdigest(),
    )


def _parts(name: str, batch: _Given) -> _Given:
    """The codes, condition and labels of a batch, if it has these parts."""
    if isinstance(batch, tuple | list) and len(batch) == 3:
        return batch
    number = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise TypeError(
        f"expected {name} to be (codes, condition, labels), got "
        f"{type_in_words(batch)}{number}. What the prior does not take is None: "
        "(codes, None, None)."
    )


def _largest(plan: SamplingPlan, batches: list[_Batch]) -> dict[_Matrix, Tensor]:
    """The largest magnitude of each input of each matrix, `[inputs]`."""
    largest: dict[_Matrix, Tensor] = {}

    def see(matrix: _Matrix, x: Tensor) -> None:
        found = x.abs().flatten(0, -2).amax(0)
        largest[matrix] = torch.maximum(largest.get(matrix, found), found)

    _show_inputs(plan, batches, see)
    return largest


def _of_least_error(
    plan: SamplingPlan, batches: list[_Batch], largest: dict[_Matrix, Tensor]
) -> dict[_Matrix, Tensor]:
    """The ranges of `_MULTIPLES` whose rounding has the least squared error, `[inputs]`."""
    errors = {
        matrix: torch.zeros(len(_MULTIPLES), len(found), dtype=torch.float64, device=found.device)
        for matrix, found in largest.items()
    }

    def see(matrix: _Matrix, x: Tensor) -> None:
        x = x[..., -1, :].flatten(0, -2)  # the taps of a convolution are shifted copies
        for error, multiple in zip(errors[matrix], _MULTIPLES, strict=True):
            scale = largest[matrix] * multiple / 127
            scale = torch.where(scale > 0, scale, 1.0)
            error += (quantized_inputs(x, scale) * scale - x).square().sum(0)

    _show_inputs(plan, batches, see)
    multiples = torch.tensor(_MULTIPLES, dtype=torch.float32, device="cpu")
    return {
        matrix: found * multiples.to(found)[errors[matrix].argmin(0)]
        for matrix, found in largest.items()
    }


def _show_inputs(
    plan: SamplingPlan, batches: list[_Batch], see: Callable[[_Matrix, Tensor], None]
) -> None:
    """Calls see(matrix, x) with the inputs `[..., taps, inputs]` of each product."""
    for codes, maps, labels in batches:
        noise = DrawNoise(len(codes), plan.size[1], plan.num_embeddings, plan.device)
        request = DrawRequest(
            len(codes), maps, labels, codes, noise=noise, settings=DrawSettings(temperature=0.0)
        )
        draw_eager(plan, request, lambda name, n, x: see((name, n), x))
