r"""When the blocks of engine `cuda`'s persistent kernel do what: times of its stages.

They come from a library that notes them, built beside the package's own, at the repository's root:

    nvcc -std=c++20 -O3 -arch=native -DVQ_STAGE_TIMES -Xcompiler -fPIC -shared \
        csrc/cuda/sampler/sampler.cu csrc/cuda/sampler/*.cpp -o libstage_times.so

`gpu_sampler.py --stage-times ./libstage_times.so` records them with it.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vqvae2_fast.sampling import interface_of, plan_of, sample_codes
from vqvae2_fast.sampling import sampler as sampler_module
from vqvae2_fast.sampling.engines.cuda import PRECISIONS, Card, draw_with, plan_values

if TYPE_CHECKING:
    from vqvae2_fast.models.pixelsnail import PixelSNAIL
    from vqvae2_fast.sampling.engines.cuda_library import Library

Stage = dict[str, Any]


def tables(text: str) -> tuple[list[Stage], dict[str, float]]:
    """What `Library.stages` returns, as one dictionary per stage and the model's constants."""
    stages, constants = text.strip().split("\n\n")
    rows: list[Stage] = [
        {key: value if key == "name" else float(value) for key, value in row.items()}
        for row in csv.DictReader(stages.splitlines())
    ]
    return rows, {name: float(value) for name, value in csv.reader(constants.splitlines())}


def intervals(times: np.ndarray, stages: list[Stage]) -> list[dict[str, float]]:
    """Seconds of each stage: handing over to it, working, and telling that it is done.

    Args:
        times: int64 `[W, blocks, stages, 3]`, nanoseconds at which a block's step was ready,
            computed and told; 0 where there was none.
        stages: `tables` of the plan.

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
        wait = int(stage["wait_stage"])
        back = int(stage["wait_before"])
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
    card: str,
    batch: int,
    rounds: int,
    condition: torch.Tensor | None = None,
) -> tuple[list[Stage], dict[str, float], torch.Tensor]:
    """Draws a batch several times and takes the times of each draw's last row.

    Returns:
        The stages with their terms and the medians of `intervals` over the draws, without those
        that are NaN; the model's constants; the codes.

    Raises:
        RuntimeError: The library was built without VQ_STAGE_TIMES.
    """
    precision = PRECISIONS[engine]
    plan = plan_of(prior, interface_of(prior))
    # The model is fitted to the design without clusters.
    size = replace(Card.current(library), clusters16=0, clusters8=0)
    values = plan_values(plan, size, precision, batch, guided=False)
    stages, constants = tables(library.stages(values, card))
    sizes = library.sizes(values)
    shape = (plan.size[1], sizes.blocks, sizes.stages, library.moments)
    seen: list[list[dict[str, float]]] = []

    def draw(prior: Any, interface: Any, request: Any) -> Any:
        times = torch.zeros(shape, dtype=torch.int64, device=plan.device)
        stream = torch.cuda.current_stream().cuda_stream if plan.device.type == "cuda" else 0
        drawn = draw_with(library, size, stream, plan, request, precision, stage_times=times)
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
    return [stage | of for stage, of in zip(stages, measured, strict=True)], constants, codes
