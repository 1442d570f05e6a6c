"""How a stage's model runs: alone or in a group, its segments recomputed, compiled, sharded.

A model's segments (`segments()`) are modules that run one after another and hold most of it.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.models.prior import Prior
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.ops._training import rounded_convolutions
from vqvae2_fast.training.sharded import is_sharded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vqvae2_fast.runs.ranks import Ranks
    from vqvae2_fast.training.config import TrainConfig

__all__ = [
    "autocast_of",
    "prepared",
    "syncing",
]


@contextmanager
def prepared(model: nn.Module, config: TrainConfig, ranks: Ranks) -> Iterator[nn.Module]:
    """What a loss calls instead of the model, inside the block.

    Validation, codebooks, average and checkpoints are those of the model itself. A sharded model
    stays sharded: its weights are DTensors, of which each process has its rows.

    Raises:
        ValueError: The model has no segments, which a setting needs; or it is to be sharded and is
            no prior.
    """
    segments = _segments(model, config)
    # Also while segments are recomputed, which autocast would cover by itself.
    precision = rounded_convolutions() if _rounds(model, config) else nullcontext()
    # A graph for each kind of segment, in training and validation, and for odd batches.
    graphs = torch._dynamo.config.patch(recompile_limit=64) if config.compile else nullcontext()
    for segment in segments:
        run: Any = segment.forward
        if config.compile:
            # Inductor's own random numbers would be others than those of an eager run.
            run = torch.compile(run, fullgraph=True, options={"fallback_random": True})
        if config.recompute:
            run = functools.partial(_recomputed, run)
        segment.forward = run
    try:
        with precision, graphs:
            if ranks.count == 1:
                yield model
            elif config.shard:
                with warnings.catch_warnings():
                    # An attention's output is a view, into which nothing is written.
                    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
                    yield _sharded(model, segments, ranks)
            else:
                with warnings.catch_warnings():
                    # Strides of 1x1 weights may differ: their dimensions of size 1 do not matter.
                    warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
                    yield _copied(model)
    finally:
        for segment in segments:
            del segment.forward  # that of its class is back


def _segments(model: nn.Module, config: TrainConfig) -> Sequence[nn.Module]:
    asked = [name for name in ("recompute", "compile", "shard") if getattr(config, name)]
    if not asked:
        return ()
    found: Sequence[nn.Module] = getattr(model, "segments", list)()
    if not found:
        raise ValueError(
            f"{' and '.join(asked)} need a model with segments, which a "
            f"{type(model).__name__} does not name. Leave {'them' if asked[1:] else 'it'} out."
        )
    if config.shard and not isinstance(model, Prior):
        raise ValueError(
            f"shard is for priors, got a {type(model).__name__}. Leave it out: any card "
            "holds such a model whole."
        )
    return found


def _rounds(model: nn.Module, config: TrainConfig) -> bool:
    """Whether convolutions of float32 may round their factors, which pays where there is AMX."""
    is_prior = isinstance(model, PixelSNAIL)
    return is_prior and config.precision == "auto" and device_of(model).type == "cpu"


def _recomputed(run: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a segment, and keeps only its arguments until its gradients are computed."""
    if not torch.is_grad_enabled():
        return run(*args, **kwargs)
    return checkpoint(run, *args, use_reentrant=False, **kwargs)


def _sharded(model: nn.Module, segments: Sequence[nn.Module], ranks: Ranks) -> nn.Module:
    """FSDP2: each process keeps its rows of weights, gradients and moments. A segment's weights are
    whole only while it runs."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for weight in model.parameters():  # as DistributedDataParallel does
        dist.broadcast(weight.data, 0)
    mesh = init_device_mesh(device_of(model).type, (ranks.count,))
    for segment in segments:
        fully_shard(segment, mesh=mesh)
    # By default the outermost weights would stay whole after a validation.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def _copied(model: nn.Module) -> nn.Module:
    """DDP: each process has the whole model."""
    # Codebooks move alike on all processes. torch 2.13 gave the setting another name.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **settings)


def syncing(network: nn.Module, last_part: bool) -> AbstractContextManager[object]:
    """Gradients travel between processes once a step."""
    if is_sharded(network):
        network.set_requires_gradient_sync(last_part)  # type: ignore[operator]
    if last_part or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def autocast_of(model: nn.Module, config: TrainConfig) -> torch.autocast:
    """The precision that the model runs in during training."""
    device = device_of(model)
    if config.precision != "auto":
        enabled = config.precision == "bfloat16"
    elif device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bfloat16 is emulated, and slower than float32. A PixelSNAIL has
        # kernels of this package. Even with AMX, torch's in bfloat16 took 0.85 to 1.4 times as long
        # as those in float32 for priors of 64 to 256 channels.
        enabled = (
            device.type == "cpu"
            and not isinstance(model, PixelSNAIL)
            and torch.cpu._is_avx512_bf16_supported()
        )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
