"""What `--dry-run` prints: all is built and checked, nothing is trained and nothing written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.commands.common import Result
from vqvae2_fast.modules.device import device_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from vqvae2_fast.data.code_layout import CodeLayout
    from vqvae2_fast.training import Stage, TrainConfig

__all__ = ["plan_of_extraction", "plan_of_training"]


def plan_of_training(
    stage: Stage,
    config: TrainConfig,
    *,
    items: Mapping[str, int],
    maps: str,
    shape: str,
    out: Path,
    resume: bool,
) -> Result:
    """The plan of a training run; one batch is read to see that it can be.

    Args:
        items: Images or records by split.
        maps: The code maps in words.
        shape: Of one item, in words.
    """
    next(stage.batches(0))
    newest = latest(out) if resume else None
    weights = sum(weight.numel() * weight.element_size() for weight in stage.model.parameters())
    buffers = sum(value.numel() * value.element_size() for value in stage.model.buffers())
    # Gradients, AdamW's two moments and the Polyak average are as large as the weights each.
    copies = 4 + (config.average_decay > 0)
    values: dict[str, Any] = {
        "dry_run": True,
        "task": stage.name,
        "parameters": parameters(stage.model),
        "model_bytes": weights + buffers,
        "training_bytes": copies * weights + buffers,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "items": dict(items),
        "out": str(out),
        "resume_from": str(newest) if newest else None,
        "device": str(device_of(stage.model)),
    }
    micro = f" of {config.accumulate} micro-batches" if config.accumulate > 1 else ""
    return Result(
        values,
        [
            f"{stage.name}: {config.steps} steps{micro} of {config.batch_size}, "
            f"on {values['device']}",
            f"model: {values['parameters']:,} parameters, {_mib(weights + buffers)}; in training "
            f"{_mib(values['training_bytes'])}, and the activations",
            f"data: {_counts(items)}, {shape}",
            f"code maps: {maps}",
            f"begins: {f'from {newest}' if newest else 'at step 0'}",
            f"out: {out}",
            _NOTHING,
        ],
    )


def plan_of_extraction(
    model: nn.Module,
    layout: CodeLayout,
    *,
    images: Mapping[str, int],
    records: Mapping[str, int],
    out: Path,
    missing: Mapping[str, int],
) -> Result:
    """The plan of an extraction.

    Args:
        missing: Records by split that are still to be encoded.
    """
    size = sum(records.values()) * layout.record_bytes
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    values: dict[str, Any] = {
        "dry_run": True,
        "task": "extract",
        "parameters": parameters(model),
        "model_bytes": weights,
        "images": dict(images),
        "records": dict(records),
        "missing": dict(missing),
        "level_sizes": layout.level_sizes,
        "num_embeddings": layout.num_embeddings,
        "store_bytes": size,
        "out": str(out),
        "device": str(device_of(model)),
    }
    return Result(
        values,
        [
            f"extract on {values['device']}",
            f"model: {values['parameters']:,} parameters, {_mib(weights)}",
            f"images: {_counts(images)}",
            f"records: {_counts(records)}, of {layout.record_bytes} bytes, {_mib(size)} in all",
            f"to be encoded: {_counts(missing)}",
            f"code maps: {layout.describe()}",
            f"out: {out}",
            _NOTHING,
        ],
    )


_NOTHING = "dry run: nothing was written"


def parameters(model: nn.Module) -> int:
    """Numbers that a model learns."""
    return sum(weight.numel() for weight in model.parameters())


def _counts(items: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in items.items())


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
