"""The training loop of every stage, top to bottom; what differs between stages is a `Stage`.

A step is a function of (weights, optimiser, seed, step number): its batch, its dropout and its
learning rate depend on nothing else, so runs repeat and resume bit for bit on a CPU. In a process
group (`torchrun`) every process takes its part of each batch; what a step does then follows from
the size of the batch only, up to the rounding of sums, not from the number of processes.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.checkpoints.locate import latest, newest_whole, step_folder
from vqvae2_fast.console.progress import Progress
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.ops._batch_part import BatchPart, batch_part
from vqvae2_fast.ops._checks import dtype_name
from vqvae2_fast.runs.folder import check_may_begin, clear_run, locked_run, set_newer_aside
from vqvae2_fast.runs.interrupt import InterruptedRun, StopRequest, cause, stop_requests
from vqvae2_fast.runs.log import RunLog
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.training.config import TrainConfig, learning_rate, step_seed
from vqvae2_fast.training.network import autocast_of, prepared, syncing
from vqvae2_fast.training.sharded import whole
from vqvae2_fast.training.stage import Stage, check_companion
from vqvae2_fast.training.state import TrainingRun, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


__all__ = ["DivergedError", "TrainResult", "train"]


class DivergedError(RuntimeError):
    """The loss or the norm of the gradients is not finite, or the model has collapsed."""


@dataclass
class TrainResult:
    """What a run leaves: its last metrics, the lines of its log, and its best validation.

    Args:
        best: `step`, `metric` (the stage's headline) and `value`; None if every validation was NaN.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


def train(
    stage: Stage,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    accept_changed: bool = False,
    progress: Progress | None = None,
    class_names: Sequence[str] = (),
    on_log: Callable[[int, Mapping[str, float]], object] = lambda step, values: None,
    replan: Callable[[int], int] | None = None,
    how_to_continue: str = "with resume and the same options",
) -> TrainResult:
    """Train `stage.model` in place for `config.steps` steps; it ends with its averaged weights.

    Ctrl-C or SIGTERM stops a run with an `out` after the current step, with a checkpoint of it;
    ctrl-C again, a second later, stops at once.

    In a process group all processes call this, with the same arguments and one model each. The
    group needs a backend for CPU tensors too: `init_process_group("cpu:gloo,cuda:nccl")`. Only the
    first process writes to `out`; all read from there.

    Args:
        out: Folder of the run: log.jsonl, checkpoints/ and best/. None writes nothing.
        resume: Continue from the latest checkpoint in `out`, or begin if there is none. A damaged
            one stops the run: the error names the newest whole one and how to continue from that.
        overwrite: Start again: the checkpoints and the log of a run in `out` are deleted.
        accept_changed: Continue a run although its data, its batches, its seed or the versions of
            this package or torch are others than before; the change is noted in log.jsonl.
        class_names: Names of the labels, kept in the checkpoints.
        on_log: Called with the step and the figures of each line of log.jsonl that is written.
        replan: Called with the step every `config.log_every` steps, in one process only. It returns
            how many steps the run is to have, which replaces `config.steps`: a run that is to end
            in time. The learning rate then follows from the new number.
        how_to_continue: What follows "continue" in the errors of a run that was stopped or found no
            room, for a caller whose own arguments are others.

    Raises:
        DivergedError: If a loss or gradient is not finite; the checkpoints written before stay.
        InterruptedRun: After ctrl-C or SIGTERM (a KeyboardInterrupt).
        ValueError: If the processes of a group disagree, or `out` holds a run that is neither to be
            resumed nor overwritten, or one of another model, other data or other settings.
        OSError: If the disk is full or fails; checkpoints and lines written before stay.
        RuntimeError: If another process is training in `out`, or another training runs in this
            process.
        NotImplementedError: As `check_companion`.
        TypeError: If there is an `out`, and weights are not float32, as checkpoints have them.
    """
    folder = None if out is None else Path(out)
    if resume and overwrite:
        raise ValueError("expected resume or overwrite, got both.")
    model = stage.model
    if folder is not None:
        _check_stored(model)
    device = device_of(model)
    check_every = _steps_between_checks(device, config)
    finite = torch.ones((), dtype=torch.bool, device=device)
    autocast = autocast_of(model, config)
    ranks, cut = Ranks.of_group(), config.cut_of_group()
    check_companion(stage, config, ranks)
    parts = [BatchPart(part.start, cut.batch_size) for part in cut.parts()]
    # Gradients are averaged over processes: with these weights that is the mean over the batch.
    weights = [len(part) * ranks.count / cut.batch_size for part in cut.parts()]
    identity = {**stage.identity(), **versions()} if folder is not None else versions()
    with ExitStack() as held:
        held.enter_context(_only_training())
        ranks.check_same({**identity, **asdict(config)})
        newest, stop, changes = None, StopRequest(), list[str]()
        if folder is not None:
            newest = ranks.run_on_rank0_and_broadcast(
                lambda: _begin(folder, held, resume=resume, overwrite=overwrite, ranks=ranks)
            )
            stop = held.enter_context(stop_requests())
        network = held.enter_context(prepared(model, config, ranks))
        run = TrainingRun(model, config, identity, stage.companion)
        held.callback(run.abandon_save)
        if newest is not None:
            changes = run.restore(Path(newest), accept_changed=accept_changed)
            ranks.wait()  # none removes old checkpoints before all have read theirs
            if folder is not None and ranks.rank == 0:
                run.tidy(folder)
        batches = stage.batches(run.step)
        logged = folder / "log.jsonl" if folder and not ranks.rank else None
        log = RunLog(logged, run.step, on_log, how_to_continue)
        if changes:
            log.note(run.step, accepted_changes=changes)
        held.enter_context(_own_random_state(device))
        task = held.enter_context((progress or Progress()).task(stage.name, config.steps, run.step))
        start = time.monotonic()

        def validated() -> bool:
            """Measures the model; whether it is the best so far."""
            with run.average.applied(model) if run.average else nullcontext():
                run.metrics = stage.validate(model.eval())
            log.write(run.step, **{f"val_{name}": v for name, v in run.metrics.items()})
            return run.note_best(stage.headline, lower=stage.lower_is_better)

        while run.step < config.steps:
            step = run.step
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            model.train()
            micro_batches = [next(batches) for _ in parts]
            if len(parts) > 1:
                with autocast:
                    stage.before_step(model, micro_batches, parts)
            seed = step_seed(config.seed, step)
            cut_batch = list(zip(micro_batches, parts, weights, strict=True))
            figures, names = _gradients(stage, network, cut_batch, autocast, seed)
            limit = config.max_grad_norm or float("inf")
            norm = whole(nn.utils.clip_grad_norm_(model.parameters(), limit))
            done = step + 1
            if replan is not None and done % config.log_every == 0:
                config = run.config = replace(config, steps=max(done, replan(done)))
            last = done == config.steps
            if done % check_every == 0 or done % config.log_every == 0 or last:
                figures = ranks.sum_(figures) / ranks.count
            finite &= norm.isfinite() & figures[0].isfinite()
            if (done % check_every == 0 or last) and not finite:
                raise _diverged(stage, step, float(figures[0]), float(norm), run, folder)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
            stage.after_step(model)
            if run.average is not None:
                run.average.update(model, step)

            run.step, is_best = done, False
            if done % config.log_every == 0 or last:
                loss, *values = figures.tolist()
                log.write(
                    done,
                    loss=loss,
                    **dict(zip(names, values, strict=True)),
                    grad_norm=float(norm),
                    learning_rate=learning_rate(step, config),
                    seconds=round(time.monotonic() - start, 3),
                )
            if done % config.validate_every == 0 or last:
                is_best = validated()
            due = done % config.save_every == 0 or last or is_best
            stopped = ranks.max_over_ranks(stop.number or 0)
            if folder and (due or stopped):
                if not finite:
                    raise _diverged(stage, step, float(figures[0]), float(norm), run, folder)
                log.sync()
                run.save(folder, class_names)
            if folder:
                run.finish_save(folder, block=last or bool(stopped))
            task.update(done, log.status(stage.headline), total=config.steps)
            if folder and stopped:
                ranks.wait()  # whoever ends first may take the others down
                raise InterruptedRun(
                    f"{stage.name}: stopped by {cause(stopped)} after step {done}; "
                    f"{step_folder(folder, done)} holds it. Continue {how_to_continue}.",
                    stopped,
                )
        # The run was stopped at what is now its last step.
        if not run.metrics:
            validated()
            if folder:
                log.sync()
                run.save(folder, class_names)
                run.finish_save(folder, block=True)

    if run.average is not None:
        model.load_state_dict(run.average.weights, strict=False)
    model.eval()
    return TrainResult(run.metrics, log.lines, run.best)


def _gradients(
    stage: Stage,
    network: nn.Module,
    cut_batch: Sequence[tuple[Any, BatchPart, float]],
    autocast: torch.autocast,
    seed: int,
) -> tuple[Tensor, list[str]]:
    """Adds a step's gradients to those there; its loss, then its other figures, and their names."""
    found, names = [], list[str]()
    for number, (batch, part, weight) in enumerate(cut_batch):
        # All parts draw from the same numbers, each at the places of its own items.
        torch.manual_seed(seed)
        with batch_part(part), syncing(network, number == len(cut_batch) - 1):
            with autocast:
                total, named = stage.loss(network, batch)
            (total * weight).backward()
        found.append(torch.stack([total.detach(), *named.values()]) * weight)
        names = list(named)
    return torch.stack(found).sum(0), names


def _steps_between_checks(device: torch.device, config: TrainConfig) -> int:
    """How often values are checked: on a GPU that makes the host wait."""
    return 1 if device.type == "cpu" else config.log_every


def _check_stored(model: nn.Module) -> None:
    """Raises TypeError for weights of another dtype than a checkpoint of a run can be read with."""
    for name, weight in model.named_parameters():
        if weight.dtype != torch.float32:
            raise TypeError(
                "expected weights in float32, which the checkpoints in `out` hold, got "
                f"{name} in {dtype_name(weight.dtype)}. Call model.float() before the stage is "
                "made, or train without `out`."
            )


def _begin(
    out: Path, held: ExitStack, *, resume: bool, overwrite: bool, ranks: Ranks
) -> str | None:
    """Make a run's folder this run's own; returns the checkpoint to continue from."""
    if ranks.restarts:
        # These processes follow others that began the run, and one of which failed.
        resume, overwrite = True, False
    check_may_begin(out, resume=resume, overwrite=overwrite)
    held.enter_context(locked_run(out))
    if overwrite:
        clear_run(out)
    newest = latest(out)
    if ranks.restarts:
        newest = newest_whole(out)
        set_newer_aside(out, newest)
    return None if newest is None else str(newest)


@contextmanager
def _only_training() -> Iterator[None]:
    """Keeps other trainings out of this process: a step sets torch's seed and the present part of
    the batch, and both belong to the process."""
    lock = _training
    if not lock.acquire(blocking=False):
        raise RuntimeError(
            "another training runs in this process; run this one in a process of its own."
        )
    try:
        yield
    finally:
        lock.release()


def _forget_training() -> None:
    """In a forked process, which the training of the other one does not reach."""
    global _training
    _training = threading.Lock()


_training = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_training)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Restores the caller's random state after the block, so that seeds can be set inside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _diverged(
    stage: Stage, step: int, loss: float, norm: float, run: TrainingRun, out: Path | None
) -> DivergedError:
    if out is not None:
        run.finish_save(out, block=True)
    kept, config = latest(out) if out else None, run.config
    return DivergedError(
        f"{stage.name}: step {step + 1} gave loss {loss:g} and gradient norm {norm:g}; expected "
        f"finite numbers. The last good checkpoint is {kept or 'none: none was due before'}. "
        f"Lower learning_rate (now {config.learning_rate:g}) or "
        + (
            f"max_grad_norm (now {config.max_grad_norm:g})."
            if config.max_grad_norm
            else "set max_grad_norm, such as 1 (now 0, which does not clip)."
        )
    )
