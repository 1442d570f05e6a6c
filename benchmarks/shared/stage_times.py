r"""When the blocks of engine `cuda`'s persistent kernel do what: times of its stages.

They come from a library that notes them, built beside the package's own, at the repository's root:

    nvcc -std=c++20 -O3 -arch=native -DVQ_STAGE_TIMES -Xcompiler -fPIC -shared \
        csrc/cuda/sampler/sampler.cu csrc/cuda/sampler/*.cpp -o libstage_times.so

`gpu_sampler.py --stage-times ./libstage_times.so` records them with it, of the design without
clusters or of the one that VQVAE2_FAST_CUDA_DESIGN names.
"""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vqvae2_fast.sampling import interface_of, plan_of, sample_codes
from vqvae2_fast.sampling import sampler as sampler_module
from vqvae2_fast.sampling.engines.cuda import (
    DESIGN_VARIABLE,
    PRECISIONS,
    Card,
    draw_with,
    plan_values,
)

if TYPE_CHECKING:
    from vqvae2_fast.models.pixelsnail import PixelSNAIL
    from vqvae2_fast.sampling.engines.cuda_library import Library

Stage = dict[str, Any]


def table(text: str) -> list[Stage]:
    """What `Library.stages` returns, as one dictionary per stage."""
    return [
        {key: value if key == "name" else int(value) for key, value in row.items()}
        for row in csv.DictReader(text.splitlines(), delimiter=";")
    ]


def intervals(times: np.ndarray, stages: list[Stage]) -> list[dict[str, float]]:
    """Seconds of each stage: handing over to it, working, and telling that it is done.

    Args:
        times: int64 `[W, blocks, stages, 3]`, nanoseconds at which a block's step was ready,
            computed and told; 0 where there was none.
        stages: `table` of the plan.

    Returns:
        For each stage the medians over the row's steps of `handover`, from the last block that told
        what is waited for until a block saw it (the median block; NaN without a wait); `work`, of
        the slowest block; `telling`, of the median block.
    """
    there = times[..., 2] > 0
    taken = np.flatnonzero(there.any(axis=(1, 2)))
    # Differences of integers: seconds since 1970 as a float have no nanoseconds.
    since = np.where(times > 0, times - times[times > 0].min(initial=times.max()), 0) * 1e-9
    ready, computed, told = np.moveaxis(since, -1, 0)
    result = []
    for s, stage in enumerate(stages):
        wait, back = stage["wait_stage"], stage["wait_before"]
        samples: dict[str, list[float]] = {"handover": [], "work": [], "telling": []}
        for t in taken:
            blocks = there[t, :, s]
            if not blocks.any():
                continue
            samples["work"].append((computed[t, blocks, s] - ready[t, blocks, s]).max())
            samples["telling"].append(np.median(told[t, blocks, s] - computed[t, blocks, s]))
            if wait < 0 or t - back < 0 or not there[t - back, :, wait].any():
                continue
            last = told[t - back, there[t - back, :, wait], wait].max()
            # A block that was still at work then saw nothing until it had told its own step.
            own = np.where(told < ready[t, :, s][None, :, None], told, 0)[:, blocks].max((0, 2))
            samples["handover"].append(np.median(ready[t, blocks, s] - np.maximum(last, own)))
        result.append(
            {name: float(np.median(of)) if of else float("nan") for name, of in samples.items()}
        )
    return result


def record(
    library: Library,
    prior: PixelSNAIL,
    engine: str,
    batch: int,
    rounds: int,
    condition: torch.Tensor | None = None,
) -> tuple[list[Stage], torch.Tensor]:
    """Draws a batch several times and takes the times of each draw's last row.

    Returns:
        The stages with the medians of `intervals` over the draws, without those that are NaN; the
        codes.

    Raises:
        RuntimeError: The library was built without VQ_STAGE_TIMES.
    """
    precision = PRECISIONS[engine]
    plan = plan_of(prior, interface_of(prior))
    design = os.environ.get(DESIGN_VARIABLE, "blocks")
    card = Card.current(library)
    if design == "blocks":
        card = replace(card, clusters16=0, clusters8=0)
    values = plan_values(plan, card, precision, batch, design, guided=False)
    stages, sizes = table(library.stages(values)), library.sizes(values)
    shape = (plan.size[1], sizes.blocks, sizes.stages, library.moments)
    seen: list[list[dict[str, float]]] = []

    def draw(prior: Any, interface: Any, request: Any) -> Any:
        times = torch.zeros(shape, dtype=torch.int64, device=plan.device)
        stream = torch.cuda.current_stream().cuda_stream if plan.device.type == "cuda" else 0
        drawn = draw_with(library, card, stream, plan, request, precision, stage_times=times)
        seen.append(intervals(times.cpu().numpy(), stages))
        return drawn

    sampler_module.ENGINES["timed"] = draw
    try:
        for _ in range(rounds + 1):
            codes = sample_codes(prior, batch, condition=condition, engine="timed")
    finally:
        del sampler_module.ENGINES["timed"]
    # What has no time is left out: JSON has no NaN.
    measured = [
        {
            name: float(np.median([draw[s][name] for draw in seen[1:]]))
            for name, seconds in seen[1][s].items()
            if not np.isnan(seconds)
        }
        for s in range(len(stages))
    ]
    return [stage | of for stage, of in zip(stages, measured, strict=True)], codes


def lines(name: str, stages: list[Stage]) -> list[str]:
    """A case as a table: microseconds of each stage."""
    head = f"{name:32} {'handover':>9} {'work':>9} {'telling':>9}  us"
    rows = []
    for stage in stages:
        parts = (stage.get(part) for part in ("handover", "work", "telling"))
        cells = " ".join(f"{'' if part is None else f'{part * 1e6:.2f}':>9}" for part in parts)
        rows.append(f"  {stage['name']:30} {cells}")
    return [head, *rows]
