"""`vqvae2-fast info --sampler`: how engine `cuda` would draw from priors, without a card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae2_fast.checkpoints.checkpoint import checkpoint_folder, load
from vqvae2_fast.commands.common import Result
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.presets import preset
from vqvae2_fast.sampling.engines.cuda import PRECISIONS, THREADS, Card, plan_values
from vqvae2_fast.sampling.engines.cuda_library import native_library
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.sampling.pixelsnail import pixelsnail_plan

if TYPE_CHECKING:
    from pathlib import Path

    from vqvae2_fast.models.configs import PixelSNAILConfig

__all__ = ["sampler_plan"]


def sampler_plan(
    path: Path | None,
    preset_name: str | None,
    card: str,
    engine: str,
    batch_size: int,
    window: int = 1,
) -> Result:
    """The plans of a prior's, a pipeline's or a preset's priors.

    Args:
        card: `a100`, `h100` or `b200`.
        engine: `cuda`, `cuda_tf32` or `cuda_bfloat16`.
        window: Codes of a step; at most a row of the map.

    Raises:
        ValueError: Neither a path nor a preset, a path without a prior, or a window below 1.
    """
    if window < 1:
        raise ValueError(f"info --sampler: expected --window >= 1, got {window}.")
    library = native_library()
    plans = {}
    for name, config in _configs(path, preset_name).items():
        # Sizes alone: the paper's priors take gigabytes.
        with torch.device("meta"), torch.no_grad():
            plan = pixelsnail_plan(PixelSNAIL(config))
        # The report takes the card's size by its name.
        nowhere = Card(blocks=0, shared_bytes=0, threads=THREADS)
        values = plan_values(plan, nowhere, PRECISIONS[engine], batch_size, guided=False)
        values["window"] = min(window, plan.size[1])
        plans[name] = library.report(values, card).splitlines()
    lines = [
        line for name, plan in plans.items() for line in (f"{name} prior, engine {engine}", *plan)
    ]
    values = {"card": card, "engine": engine, "batch_size": batch_size, "window": window}
    return Result({**values, "plans": plans}, lines)


def _configs(path: Path | None, preset_name: str | None) -> dict[str, PixelSNAILConfig]:
    if preset_name is not None:
        priors = preset(preset_name).priors
        return dict(zip(level_names(len(priors)), priors, strict=True))
    if path is None:
        raise ValueError("info --sampler: expected the path of a prior or pipeline, or --preset.")
    model = load(checkpoint_folder(path))
    if isinstance(model, Pipeline):
        names = level_names(len(model.priors))
        return {name: prior.config for name, prior in zip(names, model.priors, strict=True)}
    if isinstance(model, PixelSNAIL):
        return {"the": model.config}
    raise ValueError(f"info --sampler: expected a prior or pipeline, got a {type(model).__name__}.")
