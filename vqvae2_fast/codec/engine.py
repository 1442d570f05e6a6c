"""Codes to streams and back, by the engine whose probabilities are the same on every machine.

Engine `cpu` gives a sample the same logits, bit for bit, at every SIMD level, in every batch and on
any number of threads, whether it draws, scores, encodes or decodes. Its C++ turns them into integer
frequencies (csrc/cpu/sampler/draw.cpp); everything after that is integer arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vqvae2_fast.machine.quota import within_quota
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.engines.cpu import SCORED_ROWS, draw_cpu, why_not_cpu
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.request import Drawn, DrawNoise, DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from vqvae2_fast.sampling.engines.cpu import CpuPlan

__all__ = ["MAX_EMBEDDINGS", "check_engine", "decode_maps", "encode_maps"]

# Frequencies add up to 2^24, and each code has at least 1.
MAX_EMBEDDINGS = 2**16


def check_engine(prior: nn.Module, engine: str) -> None:
    """Raises unless `engine` gives portable probabilities of this prior."""
    if engine != "cpu":
        raise ValueError(
            "expected engine 'cpu', whose probabilities are the same bits on every "
            f"machine, got {engine!r}: what it encodes, another machine could not decode."
        )
    device = device_of(prior)
    reason = why_not_cpu(device, next(prior.parameters()).dtype)
    interface = interface_of(prior)
    if reason := interface.why_no_plan or reason:
        remedy = "" if device.type == "cpu" else " Move the pipeline with device=cpu."
        raise RuntimeError(f"engine cpu cannot code here: {reason}.{remedy}")
    num_embeddings = interface.num_embeddings
    if num_embeddings > MAX_EMBEDDINGS:
        raise ValueError(
            f"expected at most {MAX_EMBEDDINGS} codes, the prior has {num_embeddings}."
        )


def encode_maps(
    plan: CpuPlan, codes: Tensor, condition: list[Tensor], labels: Tensor | None
) -> list[bytes]:
    """One stream per map of codes int64 `[B, H, W]`, of any device."""
    codes, condition = codes.cpu(), [maps.cpu() for maps in condition]
    labels = None if labels is None else labels.cpu()
    batch = max(1, SCORED_ROWS // codes.shape[2])  # whose rows are scored in one step each
    streams: list[bytes] = []
    for start in range(0, len(codes), batch):
        part = slice(start, start + batch)
        intervals = _draw(
            plan,
            len(codes[part]),
            [maps[part] for maps in condition],
            None if labels is None else labels[part],
            known=codes[part],
        ).intervals
        assert intervals is not None and _native.module is not None
        streams += [_native.module.encode_intervals(of_map) for of_map in intervals]
    return streams


def decode_maps(
    plan: CpuPlan, streams: Sequence[bytes], condition: list[Tensor], labels: Tensor | None
) -> tuple[Tensor, Sequence[bool]]:
    """Codes int64 `[B, H, W]`, and whether each stream was whole."""
    words = [torch.from_numpy(np.frombuffer(s, np.int32).copy()) for s in streams]
    drawn = _draw(plan, len(streams), condition, labels, streams=words)
    return drawn.codes, drawn.finished


@within_quota()
def _draw(
    plan: CpuPlan,
    batch_size: int,
    condition: list[Tensor],
    labels: Tensor | None,
    *,
    known: Tensor | None = None,
    streams: Sequence[Tensor] = (),
) -> Drawn:
    width = plan.size[1]
    request = DrawRequest(
        batch_size,
        condition,
        labels,
        known=known,
        noise=DrawNoise(batch_size, width, plan.num_embeddings, torch.device("cpu")),
        settings=DrawSettings(temperature=0.0),
        want_intervals=known is not None,
        streams=streams,
    )
    return draw_cpu(plan, request)
