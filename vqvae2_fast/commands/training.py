"""What the commands that train share: their options, the plan before they begin, the run itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from vqvae2_fast.checkpoints.checkpoint import read_config
from vqvae2_fast.checkpoints.locate import latest
from vqvae2_fast.commands.common import Command, Result, check_out
from vqvae2_fast.commands.memory import explaining_memory
from vqvae2_fast.commands.plan import Task, plan_of_training
from vqvae2_fast.console import Progress
from vqvae2_fast.models.prior import PRIORS
from vqvae2_fast.runs.folder import check_may_begin, check_run_folder
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.runs.tensorboard import tensorboard_log
from vqvae2_fast.training import train
from vqvae2_fast.training.stage import check_companion
from vqvae2_fast.training.state import TrainingRun, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vqvae2_fast.training import Stage, TrainResult
    from vqvae2_fast.training.companions import AdversarySettings

__all__ = ["TrainingCommand", "best_lines", "check_run", "warn_discriminator_never_started"]

Model = TypeVar("Model", bound=nn.Module)

# How the figures that decide which checkpoint is the best are shown.
_SHOWN = {
    "psnr": "{:.2f} dB",
    "lpips": "LPIPS {:.4f}",
    "bits_per_image": "{:.0f} bits per image",
    "accuracy": "{:.2%} accuracy",
}
_CLEARLY = 0.01  # of the best figure: less is within what validations vary by


@dataclass(kw_only=True)
class TrainingCommand(Command):
    """Options of every command that trains a model."""

    resume: bool = False
    """Continue from the latest checkpoint in --out; give the other options of its first command
    again. If that checkpoint is damaged, the error names the newest whole one and how to continue
    from it."""
    overwrite: bool = False
    """Start again although --out holds a run: its checkpoints and log are deleted."""
    accept_changed: bool = False
    """With --resume: continue although the data, what is done to them, the batch size, the seed or
    the versions of this package or torch are not those of before. The change is noted in
    log.jsonl."""
    tensorboard: bool = False
    """Also write the log for TensorBoard, into --out/tensorboard."""
    timeout: float = 1800
    """Under torchrun: seconds that a process waits for the others in a step before the run ends."""
    dry_run: bool = False
    """Check everything, read every image, time some steps, print what the training would take;
    write nothing."""
    ignore_memory: bool = False
    """Begin although the memory that the training needs seems not to be free."""

    def begin(self, out: Path, kind: str) -> tuple[Ranks, torch.device, Progress]:
        """Who this process is, its device, and what it shows; see `check_run` for the rest."""
        ranks = Ranks.of_this_run(self.timeout)
        if ranks.restarts:  # the processes before these began the run
            self.resume, self.overwrite = True, False
        if self.timeout <= 0:
            raise ValueError(f"--timeout: expected a positive number, got {self.timeout:g}.")
        device = ranks.device(self.prepare())
        source = getattr(self, "source", None)  # those of images alone have one

        def check() -> None:
            check_out(out, source)
            check_run(out, kind, resume=self.resume, overwrite=self.overwrite)

        ranks.run_on_rank0_and_broadcast(check)
        # The first process speaks for all.
        return ranks, device, Progress(quiet=self.quiet or ranks.rank > 0)

    def planned(
        self,
        ranks: Ranks,
        task: Task[Model],
        *,
        items: Mapping[str, int],
        shape: str,
        maps: str = "",
    ) -> Result | None:
        """Prints what a training takes, or raises if it is impossible.

        Returns:
            What --dry-run leaves, the plan of the first process; None if the run is to begin.
        """

        def check(stage: Stage) -> None:
            check_companion(stage, task.config, ranks)
            newest = latest(task.out) if self.dry_run and self.resume else None
            if newest is not None:  # a run that begins compares them itself
                identity = {**stage.identity(), **versions()}
                run = TrainingRun(stage.model, task.config, identity, stage.companion, ranks)
                run.compared(newest, accept_changed=self.accept_changed)

        def plan() -> tuple[dict[str, Any], list[str]]:
            made = plan_of_training(
                task,
                items=items,
                shape=shape,
                maps=maps,
                resume=self.resume,
                ignore_memory=self.ignore_memory,
                processes=ranks.count,
                check=check,
                dry_run=self.dry_run,
            )
            return made.values, made.lines

        values, lines = ranks.run_on_rank0_and_broadcast(plan)
        if not self.dry_run:
            return None
        return Result(values, [] if ranks.rank else lines)

    def fit(
        self, ranks: Ranks, task: Task[Model], class_names: Sequence[str]
    ) -> tuple[Model, TrainResult]:
        """Train the model of a task in all processes."""
        model = task.fresh_model().to(task.device)
        logged = task.out if self.tensorboard and ranks.rank == 0 else None
        with (
            ranks.joined(task.device),
            explaining_memory(model, task.config, type(self)),
            tensorboard_log(logged) as on_log,
        ):
            trained = train(
                task.make_stage(model),
                task.config,
                out=task.out,
                resume=self.resume,
                overwrite=self.overwrite,
                accept_changed=self.accept_changed,
                progress=task.progress,
                class_names=class_names,
                on_log=on_log,
            )
        return model, trained


def best_lines(trained: TrainResult, out: Path) -> list[str]:
    """A line that names the best checkpoint of a run if the last one is clearly worse, else
    none."""
    best = trained.best
    if best is None:
        return []
    value, last = best["value"], trained.metrics[best["metric"]]
    if abs(last - value) <= _CLEARLY * abs(value):
        return []
    return [
        f"best at step {best['step']}: {_SHOWN[best['metric']].format(value)}; the steps after it "
        f"made the model worse. Name {out / 'best'} to use that one: {out} stands for the last."
    ]


def warn_discriminator_never_started(settings: AdversarySettings, steps: int) -> list[str]:
    """What to warn of if a run was too short for its discriminator to judge, else nothing."""
    # The ramp is at 0 in step `start`, counted from 0.
    if not settings.weight or steps > settings.start + 1:
        return []
    return [
        f"the run of {steps} steps ended before its discriminator took part, which it does after "
        f"--adversary.start {settings.start}. Raise --train.steps, or lower --adversary.start."
    ]


def check_run(out: Path, kind: str, *, resume: bool, overwrite: bool | None = None) -> None:
    """Raises ValueError if training into --out would mix up two runs.

    Args:
        kind: Kind of the model's checkpoints: vqvae2, classifier, or that of a prior.
        overwrite: None for a command that has no --overwrite.
    """
    check_out(out)
    check_run_folder(out)
    check_may_begin(out, resume=resume, overwrite=overwrite)
    newest = latest(out)
    if newest is None:
        return
    names = {"vqvae2": "a VQ-VAE (stage 1)", "classifier": "a classifier"}
    names |= {prior: f"a prior (stage 2, {prior})" for prior in PRIORS}
    found = read_config(newest)["kind"]
    if found != kind:
        raise ValueError(
            f"--out: {out} is the run of {names.get(found, found)}, this trains {names[kind]}; "
            "name another folder."
        )
