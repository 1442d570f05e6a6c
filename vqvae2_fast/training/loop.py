"""The training loop of every stage, top to bottom; what differs between stages is a `Stage`.

A step is a function of (weights, optimiser, seed, step number): its batch, its dropout and its
learning rate depend on nothing else, so runs repeat and resume bit for bit on a CPU.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.checkpoints.locate import latest, step_folder
from vqvae2_fast.console.progress import Progress
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.runs.folder import clear_run, locked_run
from vqvae2_fast.runs.interrupt import InterruptedRun, StopRequest, stop_requests
from vqvae2_fast.runs.log import RunLog
from vqvae2_fast.training.config import TrainConfig, learning_rate, step_seed
from vqvae2_fast.training.identity import versions
from vqvae2_fast.training.state import TrainingRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["DivergedError", "Stage", "TrainResult", "autocast_of", "train"]


class DivergedError(RuntimeError):
    """A loss or gradient that is not finite stopped a run."""


@dataclass(frozen=True)
class Stage:
    """What a stage brings to the loop. Its functions are given the model and hold none.

    Args:
        name: Shown next to the progress.
        model: Trained in place, on its own device.
        batches: Micro-batches without end, beginning with the given one; a function of its number.
        loss: From the model (or a wrapper that calls its forward) and a collated batch to the loss
            to descend and named values to log, all 0-d.
        validate: From the model (with averaged weights, in evaluation mode) to metrics.
        headline: The metric of `validate` that is shown next to the progress and that says which
            checkpoint is the best.
        after_step: Called with the model once after each optimiser step.
        lower_is_better: Whether the best `headline` is the lowest.
        identity: What the result depends on in addition to model and settings, ready for JSON:
            hashes of the data, and how they are augmented.
    """

    name: str
    model: nn.Module
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]]
    validate: Callable[[Any], dict[str, float]]
    headline: str
    after_step: Callable[[Any], object] = lambda model: None
    lower_is_better: bool = False
    identity: Callable[[], dict[str, Any]] = dict


@dataclass
class TrainResult:
    """What a run leaves: its last metrics and the lines of its log."""

    metrics: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)


def train(
    stage: Stage,
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    accept_changed: bool = False,
    progress: Progress | None = None,
    class_names: Sequence[str] = (),
    on_log: Callable[[int, Mapping[str, float]], object] = lambda step, values: None,
) -> TrainResult:
    """Train `stage.model` in place for `config.steps` steps; it ends with its averaged weights.

    Ctrl-C or SIGTERM stops a run with an `out` after the current step, with a checkpoint of it;
    ctrl-C again, a second later, stops at once.

    Args:
        out: Folder of the run: log.jsonl, checkpoints/ and best/. None writes nothing.
        resume: Continue from the latest checkpoint in `out`, or begin if there is none. A damaged
            one stops the run: the error names the newest whole one and how to continue from that.
        overwrite: Start again: the checkpoints and the log of a run in `out` are deleted.
        accept_changed: Continue a run although its data, its batches, its seed or the versions of
            this package or torch are others than before; the change is noted in log.jsonl.
        class_names: Names of the labels, kept in the checkpoints.
        on_log: Called with the step and the figures of each line of log.jsonl that is written.

    Raises:
        DivergedError: If a loss or gradient is not finite; the checkpoints written before stay.
        InterruptedRun: After ctrl-C or SIGTERM (a KeyboardInterrupt).
        ValueError: If `out` holds a run that is neither to be resumed nor overwritten, or one of
            another model, other data or other settings.
        OSError: If the disk is full or fails; checkpoints and lines written before stay.
        RuntimeError: If another process is training in `out`.
    """
    if resume and overwrite:
        raise ValueError("train: expected resume=True or overwrite=True, got both.")
    if out and not (resume or overwrite) and latest(out) is not None:
        raise ValueError(
            f"train: out: {out} holds a run already. Continue it with resume=True, delete it with "
            "overwrite=True, or name another folder."
        )
    model = stage.model
    device = device_of(model)
    # What the loss runs through. A wrapper of many processes, such as DistributedDataParallel, goes
    # here; validation, codebooks, average and checkpoints are those of the model inside.
    network = model
    # Checking a value on a GPU makes the host wait, so it is not done at every step as on a CPU.
    check_every = 1 if device.type == "cpu" else config.log_every
    finite = torch.ones((), dtype=torch.bool, device=device)
    autocast = autocast_of(device, config)

    with ExitStack() as held:
        stop = StopRequest()
        if out is not None:
            held.enter_context(locked_run(out))
            stop = held.enter_context(stop_requests())
        run = TrainingRun(model, config)
        changes: list[str] = []
        if out is not None:
            run.identity = {**stage.identity(), **versions()}
            if overwrite:
                clear_run(out)
            elif newest := latest(out):
                changes = run.restore(newest, accept_changed=accept_changed)
                run.tidy(out)
        batches = stage.batches(run.step * config.accumulate)
        log = RunLog(out / "log.jsonl" if out else None, run.step, on_log)
        if changes:
            log.note(run.step, accepted_changes=changes)
        held.enter_context(_own_random_state(device))
        task = held.enter_context((progress or Progress()).task(stage.name, config.steps, run.step))
        start = time.monotonic()

        for step in range(run.step, config.steps):
            torch.manual_seed(step_seed(config.seed, step))
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            model.train()
            for _ in range(config.accumulate):
                with autocast:
                    total, parts = stage.loss(network, next(batches))
                (total / config.accumulate).backward()
                loss = total.detach()
                finite &= loss.isfinite()
            norm = nn.utils.clip_grad_norm_(
                model.parameters(), config.max_grad_norm or float("inf")
            )
            finite &= norm.isfinite()
            if (step + 1) % check_every == 0 and not finite:
                raise _diverged(stage, step, float(loss), float(norm), config, out)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            stage.after_step(model)
            if run.average is not None:
                run.average.update(model, step)

            done = run.step = step + 1
            last, is_best = done == config.steps, False
            if done % config.log_every == 0 or last:
                log.write(
                    done,
                    loss=float(loss),
                    **{name: float(value) for name, value in parts.items()},
                    grad_norm=float(norm),
                    learning_rate=learning_rate(step, config),
                    seconds=round(time.monotonic() - start, 3),
                )
            if done % config.validate_every == 0 or last:
                with run.average.applied(model) if run.average else nullcontext():
                    run.metrics = stage.validate(model.eval())
                log.write(done, **{f"val_{name}": v for name, v in run.metrics.items()})
                is_best = run.note_best(stage.headline, lower=stage.lower_is_better)
            due = done % config.save_every == 0 or last or is_best
            if out and (due or stop.number is not None):
                if not finite:
                    raise _diverged(stage, step, float(loss), float(norm), config, out)
                log.sync()
                run.save(out, class_names)
            task.update(done, log.status(stage.headline))
            if out and stop.number is not None:
                raise InterruptedRun(
                    f"{stage.name}: stopped by signal {stop.number} after step {done}; "
                    f"{step_folder(out, done)} holds it. Continue with resume=True.",
                    stop.number,
                )

    if run.average is not None:
        model.load_state_dict(run.average.weights, strict=False)
    model.eval()
    if not run.metrics:  # the run was stopped at what is now its last step
        run.metrics = stage.validate(model)
    return TrainResult(run.metrics, log.lines)


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


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Restores the caller's random state after the block, so that seeds can be set inside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _diverged(
    stage: Stage, step: int, loss: float, norm: float, config: TrainConfig, out: Path | None
) -> DivergedError:
    kept = latest(out) if out else None
    return DivergedError(
        f"{stage.name}: step {step + 1} gave loss {loss:g} and gradient norm {norm:g}; expected "
        f"finite numbers. The last good checkpoint is {kept or 'none: none was due before'}. "
        f"Lower learning_rate (now {config.learning_rate:g}) or max_grad_norm (now "
        f"{config.max_grad_norm:g})."
    )
