"""The training loop of both stages, top to bottom; what differs between them is a `Stage`.

A step is a function of (weights, optimiser, seed, step number): its batch, its dropout and its
learning rate depend on nothing else, so runs repeat and resume bit for bit on a CPU.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.checkpoints.checkpoint import load_training, save_training
from vqvae2_fast.checkpoints.locate import latest, step_folder
from vqvae2_fast.console.progress import Progress
from vqvae2_fast.modules.device import device_of
from vqvae2_fast.runs.folder import best_record, better, keep_best, locked_run, remove_old
from vqvae2_fast.runs.interrupt import InterruptedRun, StopRequest, stop_requests
from vqvae2_fast.runs.log import RunLog
from vqvae2_fast.training.average import PolyakAverage
from vqvae2_fast.training.config import TrainConfig, learning_rate, step_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["DivergedError", "Stage", "TrainResult", "autocast_of", "train"]


class DivergedError(RuntimeError):
    """A loss or gradient that is not finite stopped a run."""


@dataclass(frozen=True)
class Stage:
    """What a stage brings to the loop.

    Args:
        name: Shown beside the progress.
        model: Trained in place, on its own device.
        batches: Micro-batches without end, beginning with the given one; a function of its number.
        loss: From a collated batch to the loss to descend and named values to log, all 0-d.
        validate: From the model (with averaged weights, in evaluation mode) to metrics.
        headline: The metric of `validate` that is shown beside the progress and that says which
            checkpoint is the best.
        after_step: Called once after each optimiser step.
        lower_is_better: Whether the best `headline` is the lowest.
    """

    name: str
    model: nn.Module
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
    validate: Callable[[Any], dict[str, float]]
    headline: str
    after_step: Callable[[], object] = lambda: None
    lower_is_better: bool = False


@dataclass
class TrainResult:
    """What a run leaves: its last metrics and the lines of its log."""

    metrics: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Position:
    """How far a run is, and what its validations gave."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None


def train(
    stage: Stage,
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    class_names: Sequence[str] = (),
    on_log: Callable[[int, Mapping[str, float]], object] = lambda step, values: None,
) -> TrainResult:
    """Train `stage.model` in place for `config.steps` steps; it ends with its averaged weights.

    Ctrl-C or SIGTERM stops a run with an `out` after the step at hand, with a checkpoint of it;
    ctrl-C again, a second later, stops at once.

    Args:
        out: Folder of the run: log.jsonl, checkpoints/ and best/. None writes nothing.
        resume: Go on from the latest checkpoint in `out`; without one, begin. A damaged one stops
            the run: the error names the newest whole one and how to go on from that.
        class_names: Names of the labels, kept in the checkpoints.
        on_log: Called with the step and the figures of each line of log.jsonl that is written.

    Raises:
        DivergedError: If a loss or gradient is not finite; the checkpoints written before stay.
        InterruptedRun: After ctrl-C or SIGTERM (a KeyboardInterrupt).
        ValueError: If `out` holds a run and `resume` is not asked for, or that of other settings.
        OSError: If the disk is full, ...; checkpoints and lines written before stay.
        RuntimeError: If another process is training in `out`.
    """
    progress = progress or Progress()
    if out is None:
        return _train(stage, config, None, False, progress, class_names, on_log, StopRequest())
    if not resume and latest(out) is not None:
        raise ValueError(
            f"train: {out} holds a run already. Resume it, or name another output folder."
        )
    with locked_run(out), stop_requests() as stop:
        return _train(stage, config, out, resume, progress, class_names, on_log, stop)


def _train(
    stage: Stage,
    config: TrainConfig,
    out: Path | None,
    resume: bool,
    progress: Progress,
    class_names: Sequence[str],
    on_log: Callable[[int, Mapping[str, float]], object],
    stop: StopRequest,
) -> TrainResult:
    model = stage.model
    device = device_of(model)
    # Reading the flag waits for a GPU; on a CPU every step is checked.
    check_every = 1 if device.type == "cpu" else config.log_every
    optimizer = _optimizer(model, config)
    autocast = autocast_of(device, config)
    average = PolyakAverage(model, config.average_decay) if config.average_decay else None
    position = _Position()
    if resume and out and (newest := latest(out)):
        position = _restore(newest, model, optimizer, average, config)
        _tidy(out, position, config)
    first_step = position.step
    batches = stage.batches(first_step * config.accumulate)
    log = RunLog(out / "log.jsonl" if out else None, first_step, on_log)
    finite = torch.ones((), dtype=torch.bool, device=device)
    start = time.monotonic()

    with _own_random_state(device), progress.task(stage.name, config.steps, first_step) as task:
        for step in range(first_step, config.steps):
            torch.manual_seed(step_seed(config.seed, step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            model.train()
            for _ in range(config.accumulate):
                with autocast:
                    total, parts = stage.loss(next(batches))
                (total / config.accumulate).backward()
                loss = total.detach()
                finite &= loss.isfinite()
            norm = nn.utils.clip_grad_norm_(
                model.parameters(), config.max_grad_norm or float("inf")
            )
            finite &= norm.isfinite()
            if (step + 1) % check_every == 0 and not finite:
                raise _diverged(stage, step, float(loss), float(norm), config, out)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            stage.after_step()
            if average is not None:
                average.update(model, step)

            done = position.step = step + 1
            is_best = False
            if done % config.log_every == 0 or done == config.steps:
                values = {name: float(value) for name, value in parts.items()}
                log.write(
                    done,
                    loss=float(loss),
                    **values,
                    grad_norm=float(norm),
                    learning_rate=learning_rate(step, config),
                    seconds=round(time.monotonic() - start, 3),
                )
            if done % config.validate_every == 0 or done == config.steps:
                with average.applied(model) if average else nullcontext():
                    position.metrics = stage.validate(model.eval())
                log.write(done, **{f"val_{name}": v for name, v in position.metrics.items()})
                is_best = _note_best(position, stage)
            due = done % config.save_every == 0 or done == config.steps or is_best
            if out and (due or stop.number is not None):
                if not finite:
                    raise _diverged(stage, step, float(loss), float(norm), config, out)
                log.sync()
                _save(out, position, model, optimizer, average, config, class_names)
            task.update(done, log.status(stage.headline))
            if out and stop.number is not None:
                raise InterruptedRun(
                    f"{stage.name}: stopped by signal {stop.number} after step {done}; "
                    f"{step_folder(out, done)} holds it. Go on with --resume.",
                    stop.number,
                )

    if average is not None:
        model.load_state_dict(average.weights, strict=False)
    model.eval()
    return TrainResult(position.metrics, log.lines)


def _note_best(position: _Position, stage: Stage) -> bool:
    """Whether the latest validation is the best so far; it is then the record."""
    value = position.metrics[stage.headline]
    record = position.best["value"] if position.best else None
    if not better(value, record, lower=stage.lower_is_better):
        return False
    position.best = {"step": position.step, "metric": stage.headline, "value": value}
    return True


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser; its decay spares biases, gains and other vectors."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "momentum":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    # 0.95 forgets the early, large gradients of a short run sooner than AdamW's 0.999.
    # fused: one pass over weights and moments instead of ten.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


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
    """Seeds set inside leave the caller's random state as it was."""
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


def _save(
    run: Path,
    position: _Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: PolyakAverage | None,
    config: TrainConfig,
    class_names: Sequence[str],
) -> None:
    tensors = {
        f"{name}.{key}": value
        for name, weight in model.named_parameters()
        for key, value in optimizer.state[weight].items()
    }
    # The random numbers and the batch of each step follow from (seed, step): nothing else to keep.
    state = {
        "step": position.step,
        "train": asdict(config),
        "metrics": position.metrics,
        "best": position.best,
    }
    save_training(
        step_folder(run, position.step),
        model,
        optimizer=tensors,
        state=state,
        average=average.weights if average else None,
        class_names=class_names,
    )
    _tidy(run, position, config)


def _tidy(run: Path, position: _Position, config: TrainConfig) -> None:
    """Bring best/ and the number of checkpoints in line with the newest one."""
    if position.best is not None:
        keep_best(run, position.best["step"])
    remove_old(run, config.keep)


def _restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: PolyakAverage | None,
    config: TrainConfig,
) -> _Position:
    """Load a checkpoint into a run's objects; returns how far it is."""
    saved = load_training(path)
    if type(saved.model) is not type(model):
        raise ValueError(
            f"train: {path} holds a {type(saved.model).__name__}, the run is one of a "
            f"{type(model).__name__}. Name another output folder."
        )
    if saved.model.config != model.config:
        there, here = asdict(saved.model.config), asdict(model.config)
        differ = [f"{n} {there[n]}, not {here[n]}" for n in there if there[n] != here[n]]
        raise ValueError(
            f"train: {path} was made with {'; '.join(differ)}. Name another output folder, or the "
            "same settings."
        )
    for name, value in asdict(config).items():
        # The order of the data follows from these; the rest may change between parts of a run.
        found = saved.state["train"].get(name, value)
        if name in ("batch_size", "accumulate", "seed", "optimizer") and found != value:
            raise ValueError(
                f"train: {path} was made with {name}={found}, got {value}: "
                "the run could not read on where it stopped."
            )
    model.load_state_dict(saved.model.state_dict())
    for name, weight in model.named_parameters():
        optimizer.state[weight] = {
            key.removeprefix(f"{name}."): _as_moment(value, weight)
            for key, value in saved.optimizer.items()
            if key.rpartition(".")[0] == name
        }
    if average is not None:
        # A part without an average may be followed by one with it: that begins here.
        start = saved.average or {name: w.detach() for name, w in saved.model.named_parameters()}
        for name, value in start.items():
            average.weights[name].copy_(value)
    return _Position(saved.state["step"], saved.state["metrics"], best_record(saved.state))


def _as_moment(value: Tensor, weight: Tensor) -> Tensor:
    """An optimiser's tensor where and as an unbroken run has it; counts of steps stay on the CPU.

    In another memory format the update would run through other loops, and round differently.
    """
    return value if value.ndim == 0 else torch.empty_like(weight).copy_(value).detach()
