"""What a long command will take: printed before it begins, and the only output of `--dry-run`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from vqvae2_fast.checkpoints.locate import latest, step_of
from vqvae2_fast.commands.common import Result
from vqvae2_fast.console.words import byte_size, number
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.training.cost import StepCost, free_memory, measure_step, state_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vqvae2_fast.console import Progress
    from vqvae2_fast.data import ImageSource, Split
    from vqvae2_fast.data.code_format import CodeLayout
    from vqvae2_fast.models.vqvae2 import VQVAE2
    from vqvae2_fast.training import Stage, TrainConfig

__all__ = ["Task", "duration", "parameters", "plan_of_extraction", "plan_of_training"]

Model = TypeVar("Model", bound=nn.Module)

_HOUR = 3600
_NOTHING = "dry run: nothing was written"


@dataclass(frozen=True)
class Task(Generic[Model]):
    """A training that a command has put together.

    Args:
        make_model: A model on the CPU, its weights from torch's random numbers.
        make_stage: The stage that trains it, made once the model is on its device.
        original: The model that `make_model` copies, with the weights frozen that stay as they are;
            None if it makes a new one.
    """

    make_model: Callable[[], Model]
    make_stage: Callable[[Model], Stage]
    config: TrainConfig
    device: torch.device
    progress: Progress
    out: Path
    original: Model | None = None

    def outline(self) -> Model:
        """A model of the sizes of the one to be trained, for which no memory is taken."""
        if self.original is not None:
            return self.original
        with torch.device("meta"):
            return self.make_model()

    def fresh_model(self) -> Model:
        """The model in the state in which the run begins."""
        torch.manual_seed(self.config.seed)
        return self.make_model()


def plan_of_training(
    task: Task[Any],
    *,
    items: Mapping[str, int],
    shape: str,
    resume: bool,
    maps: str = "",
    ignore_memory: bool = False,
    processes: int = 1,
    check: Callable[[Stage], object] = lambda stage: None,
    dry_run: bool = False,
) -> Result:
    """The plan of a training run with its memory and time, which is shown at once unless it is a
    dry run, whose result is shown.

    A model is made, timed and thrown away, unless its weights, gradients and moments cannot fit.

    Args:
        items: Number of images or records by split.
        shape: The shape of one item, in words.
        maps: The code maps in words.
        ignore_memory: Train even if memory does not seem to suffice.
        processes: How many share the training; the time is that of one.
        check: Called with the stage before a step is timed.

    Raises:
        ValueError: If there is not enough memory.
    """
    outline, config, device, progress = task.outline(), task.config, task.device, task.progress
    weights = sum(weight.nbytes for weight in outline.parameters())
    buffers = sum(value.nbytes for value in outline.buffers())
    shards = processes if config.shard else 1
    state, free = state_bytes(outline, config) // shards, free_memory(device)
    newest = latest(task.out) if resume else None
    done = step_of(newest) if newest else 0
    rest = max(0, config.steps - done)
    cut = config.cut(world_size=processes)
    # What this process does of a step, as if it were alone.
    own = replace(config, batch_size=len(cut.parts()[0]), accumulate=cut.accumulate, global_batch=0)
    epochs = config.steps * cut.batch_size / max(1, items["train"])
    micro = f"{config.accumulate} x " if config.accumulate > 1 else ""
    batch = f"{config.global_batch or f'{micro}{config.batch_size}'}"
    if processes > 1:
        batch += f" {'shared by' if config.global_batch else 'in each of'} {processes} processes"
    head = (
        f"{config.steps:,} steps of {batch} on {device}, {number(epochs, 3)} epochs of "
        f"{items['train']} items"
    )
    if not dry_run:
        progress.say(f"{head}\ndata: {_counts(items)}, {shape}")
    if not ignore_memory:
        _check_memory(state, 0, 0, free, config, device)
    stage = task.make_stage(task.fresh_model().to(device))
    check(stage)
    if stage.companion is not None:
        state += stage.companion.training_bytes
    progress.say("timing the first steps ...")
    cost = measure_step(stage, own)
    memory = state + cost.activation_bytes(own.batch_size)
    lines = [
        f"model: {parameters(outline):,} parameters, {byte_size(weights + buffers)}; in training "
        f"{byte_size(state)}, with activations about {byte_size(memory)}"
        + ("" if free is None else f" of {byte_size(free)} free"),
        _time_line(cost, done, rest),
    ]
    if config.warmup_steps > config.steps:
        lines.append(
            f"warning: the warm-up of {config.warmup_steps} steps is longer than the run of "
            f"{config.steps}: the learning rate never reaches {config.learning_rate:g}. Lower "
            "warmup_steps."
        )
    if newest is not None:
        lines += _changed_settings(newest, config)
    if not dry_run:
        progress.say("\n".join(lines))
    if not ignore_memory:
        micro_batch = replace(config, batch_size=own.batch_size)
        _check_memory(state, cost.fixed_bytes, cost.item_bytes, free, micro_batch, device)
    return Result(
        {
            "dry_run": True,
            "task": stage.name,
            "parameters": parameters(outline),
            "model_bytes": weights + buffers,
            "training_bytes": state,
            "activation_bytes": cost.activation_bytes(own.batch_size),
            "free_bytes": free,
            "step_seconds": cost.seconds,
            "seconds": cost.seconds * rest,
            "steps": config.steps,
            "epochs": epochs,
            "batch_size": config.batch_size,
            "accumulate": cut.accumulate,
            "global_batch": cut.batch_size,
            "processes": processes,
            "items": dict(items),
            "out": str(task.out),
            "resume_from": str(newest) if newest else None,
            "device": str(device),
        },
        [
            f"{stage.name}: {head}",
            f"data: {_counts(items)}, {shape}",
            *lines,
            *([f"code maps: {maps}"] if maps else []),
            f"begins: {f'from {newest}' if newest else 'at step 0'}",
            f"out: {task.out}",
            _NOTHING,
        ],
    )


def _check_memory(
    state: int,
    fixed: int,
    item: int,
    free: int | None,
    config: TrainConfig,
    device: torch.device,
) -> None:
    """Raises ValueError, with what would fit, if a training needs more memory than is free."""
    needed = state + fixed + item * config.batch_size
    if free is None or needed <= free:
        return
    fitting = (free - state - fixed) // item if item else 0
    if fitting >= 1:
        # One that divides the batch leaves the step as it is.
        micro_batch = next(n for n in range(fitting, 0, -1) if config.batch_size % n == 0)
        times = config.accumulate * (config.batch_size // micro_batch)
        more = "" if config.global_batch else f" and accumulate={times}"
        remedy = f"Use batch_size={micro_batch}{more}"
    else:
        remedy = (
            "Use a smaller model: another --preset, or fewer channels and layers (--help lists the "
            "options of the model)"
        )
    raise ValueError(
        f"this training needs about {byte_size(needed)} of memory ({byte_size(state)} for weights, "
        "gradients, optimiser and average"
        + (f", {byte_size(needed - state)} for activations" if needed > state else "")
        + f"), and {byte_size(free)} are free on {device}. {remedy}, or try all the same with "
        "--ignore-memory."
    )


def _changed_settings(newest: Path, config: TrainConfig) -> list[str]:
    """A warning if a run is continued with other settings than it had, which may be those of a
    preset or defaults that its first command replaced; else none."""
    before, now = read_object(newest / "state.json").get("train"), asdict(config)
    if not isinstance(before, dict):
        return []  # the training refuses it with a reason
    # The batch is compared as a whole when the run is continued.
    ignored = ("batch_size", "accumulate", "global_batch")
    differ = [n for n in now if n in before and n not in ignored and before[n] != now[n]]
    if not differ:
        return []
    then, new = (", ".join(f"{n}={values[n]}" for n in differ) for values in (before, now))
    return [
        f"warning: so far the run had {then}; it is continued with {new}. To continue it as it "
        "was begun, give all options of its first command again, its preset too."
    ]


def _time_line(cost: StepCost, done: int, rest: int) -> str:
    expected = cost.seconds * rest
    each = number(cost.seconds, 2)
    line = f"time: about {duration(expected)}, {each} s per step, and the validations"
    if expected > 1.1 * _HOUR:  # about an hour needs no advice
        steps = done + max(1, round(_HOUR / cost.seconds))
        line += f"; steps={steps} would take an hour"
    return line


def plan_of_extraction(
    model: VQVAE2,
    layout: CodeLayout,
    sample: ImageSource,
    *,
    images: Mapping[Split, int],
    records: Mapping[Split, int],
    out: Path,
    missing: Mapping[Split, int],
) -> Result:
    """The plan of an extraction.

    Args:
        sample: Some of its images, to be timed.
        missing: Records by split that are still to be encoded.
    """
    store = sum(records.values()) * layout.record_bytes
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    device, count = device_of(model), min(8, len(sample))
    for _ in range(2):  # the first time includes work that is done only once
        start = time.monotonic()
        pixels = torch.stack([sample[index][0] for index in range(count)])
        model.encode(pixels.to(device) / 127.5 - 1)
        seconds = (time.monotonic() - start) / count * sum(missing.values())
    return Result(
        {
            "dry_run": True,
            "task": "extract",
            "parameters": parameters(model),
            "model_bytes": weights,
            "images": dict(images),
            "records": dict(records),
            "missing": dict(missing),
            "seconds": seconds,
            "level_sizes": layout.level_sizes,
            "num_embeddings": layout.num_embeddings,
            "store_bytes": store,
            "out": str(out),
            "device": str(device),
        },
        [
            f"extract on {device}",
            f"model: {parameters(model):,} parameters, {byte_size(weights)}",
            f"images: {_counts(images)}",
            f"records: {_counts(records)}, of {layout.record_bytes} bytes, "
            f"{byte_size(store)} in all",
            f"to be encoded: {_counts(missing)}",
            f"time: about {duration(seconds)}",
            f"code maps: {layout.describe()}",
            f"out: {out}",
            _NOTHING,
        ],
    )


def parameters(model: nn.Module) -> int:
    """The number of a model's parameters."""
    return sum(weight.numel() for weight in model.parameters())


def _counts(items: Mapping[Split, int] | Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in items.items())


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    units = (
        ("seconds", 1, 100),
        ("minutes", 60, 100),
        ("hours", _HOUR, 48),
        ("days", 24 * _HOUR, 700),
        ("years", 365.25 * 24 * _HOUR, float("inf")),
    )
    name, unit = next((n, u) for n, u, most in units if seconds / u < most)
    return f"{number(seconds / unit, 2)} {name}"
