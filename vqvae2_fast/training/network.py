"""How a stage's model runs: alone, in a process group, its segments recomputed or compiled.

A model's segments (`segments()`) are modules that run one after another and hold most of it.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.runs.ranks import Ranks
    from vqvae2_fast.training.config import TrainConfig

__all__ = ["autocast_of", "prepared", "syncing"]


@contextmanager
def prepared(model: nn.Module, config: TrainConfig, ranks: Ranks) -> Iterator[nn.Module]:
    """What a loss calls instead of the model, inside the block.

    Validation, codebooks, average and checkpoints are those of the model itself.

    Raises:
        ValueError: The model has no segments, which a setting needs.
    """
    segments = _segments(model, config)
    for segment in segments:
        run: Any = segment.forward
        if config.compile:
            # Inductor's own random numbers would be others than those of an eager run.
            run = torch.compile(run, fullgraph=True, options={"fallback_random": True})
        if config.recompute:
            run = functools.partial(_recomputed, run)
        segment.forward = run
    try:
        yield model if ranks.count == 1 else _in_group(model)
    finally:
        for segment in segments:
            del segment.forward  # that of its class is back


def _segments(model: nn.Module, config: TrainConfig) -> Sequence[nn.Module]:
    asked = [name for name in ("recompute", "compile") if getattr(config, name)]
    if not asked:
        return ()
    found: Sequence[nn.Module] = getattr(model, "segments", list)()
    if not found:
        raise ValueError(
            f"train: {' and '.join(asked)} need a model with segments, which a "
            f"{type(model).__name__} does not name. Leave {'them' if asked[1:] else 'it'} out."
        )
    return found


def _recomputed(run: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a segment, and keeps only its arguments until its gradients are computed."""
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    return checkpoint(run, *args, use_reentrant=False, **kwargs)


def _in_group(model: nn.Module) -> nn.Module:
    # Codebooks move alike on all processes. torch 2.13 gave the setting another name.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **settings)


def syncing(network: nn.Module, last_part: bool) -> AbstractContextManager[object]:
    """Gradients travel between processes once a step."""
    if last_part or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def autocast_of(device: torch.device, config: TrainConfig) -> torch.autocast:
    """The precision that networks run in."""
    if config.precision != "auto":
        enabled = config.precision == "bfloat16"
    elif device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bfloat16 is emulated, and slower than float32.
        enabled = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
