"""The training loop of both stages, top to bottom; what differs between them is a `Stage`.

A step is a function of (weights, optimiser, seed, step number): its batch, its dropout and its
learning rate depend on nothing else, so runs repeat and resume bit for bit on a CPU.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae2_fast.training import checkpoint
from vqvae2_fast.training.average import PolyakAverage
from vqvae2_fast.training.config import TrainConfig, learning_rate, step_seed
from vqvae2_fast.training.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["DivergedError", "Stage", "TrainResult", "train"]


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
        headline: The metric of `validate` to show beside the progress.
        after_step: Called once after each optimiser step.
    """

    name: str
    model: nn.Module
    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]]
    validate: Callable[[nn.Module], dict[str, float]]
    headline: str
    after_step: Callable[[], object] = lambda: None


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
    progress: Progress | None = None,
    class_names: Sequence[str] = (),
) -> TrainResult:
    """Train `stage.model` in place for `config.steps` steps; it ends with its averaged weights.

    Args:
        out: Folder of the run: log.jsonl and checkpoints/. None writes nothing.
        resume: Go on from the latest checkpoint in `out`; without one, begin.
        class_names: Names of the labels, kept in the checkpoints.

    Raises:
        DivergedError: If a loss or gradient is not finite; the checkpoints written before stay.
    """
    model, progress = stage.model, progress or Progress()
    device = next(model.parameters()).device
    # Reading the flag waits for a GPU; on a CPU every step is checked.
    check_every = 1 if device.type == "cpu" else config.log_every
    optimizer = _adamw(model, config)
    autocast = _autocast(device, config)
    average = PolyakAverage(model, config.average_decay) if config.average_decay else None
    first_step, metrics = 0, {}
    if resume and out is not None and (newest := checkpoint.latest(out)):
        first_step, metrics = _restore(newest, model, optimizer, average, config)
    batches = stage.batches(first_step * config.accumulate)
    log = _Log(out / "log.jsonl" if out else None, first_step)
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

            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                values = {name: float(value) for name, value in parts.items()}
                log.write(done, loss=float(loss), **values, grad_norm=float(norm),
                          learning_rate=learning_rate(step, config),
                          seconds=round(time.monotonic() - start, 3))  # fmt: skip
            if done % config.validate_every == 0 or done == config.steps:
                with average.applied(model) if average else nullcontext():
                    metrics = stage.validate(model.eval())
                log.write(done, **{f"val_{name}": value for name, value in metrics.items()})
            if out and (done % config.save_every == 0 or done == config.steps):
                if not finite:
                    raise _diverged(stage, step, float(loss), float(norm), config, out)
                _save(out, done, model, optimizer, average, config, metrics, class_names)
            task.update(done, log.status(stage.headline))

    if average is not None:
        model.load_state_dict(average.weights, strict=False)
    model.eval()
    return TrainResult(metrics, log.lines)


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW whose decay spares biases, gains and other vectors."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    # 0.95 forgets the early, large gradients of a short run sooner than AdamW's 0.999.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def _autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
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
    kept = checkpoint.latest(out) if out else None
    return DivergedError(
        f"{stage.name}: step {step + 1} gave loss {loss:g} and gradient norm {norm:g}; expected "
        f"finite numbers. The last good checkpoint is {kept or 'none: none was due before'}. "
        f"Lower learning_rate (now {config.learning_rate:g}) or max_grad_norm (now "
        f"{config.max_grad_norm:g})."
    )


def _save(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer,
    average: PolyakAverage | None, config: TrainConfig, metrics: dict[str, float],
    class_names: Sequence[str],
) -> None:  # fmt: skip
    tensors = {
        f"{name}.{key}": value
        for name, weight in model.named_parameters()
        for key, value in optimizer.state[weight].items()
    }
    # The random numbers and the batch of each step follow from (seed, step): nothing else to keep.
    state = {"step": step, "train": asdict(config), "metrics": metrics}
    checkpoint.save_training(
        checkpoint.step_folder(run, step), model, optimizer=tensors, state=state,
        average=average.weights if average else None, class_names=class_names,
    )  # fmt: skip
    checkpoint.remove_old(run, config.keep)


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
    average: PolyakAverage | None, config: TrainConfig,
) -> tuple[int, dict[str, float]]:  # fmt: skip
    """Load a checkpoint into a run's objects; returns its number of steps and its metrics."""
    saved = checkpoint.resume(path)
    if saved.model.config != model.config:
        raise ValueError(
            f"train: {path} was made with another configuration.\n  there: {saved.model.config}\n"
            f"  here:  {model.config}\nName another output folder, or the same settings."
        )
    for name, value in asdict(config).items():
        # The order of the data follows from these; the rest may change between parts of a run.
        if name in ("batch_size", "accumulate", "seed") and saved.state["train"][name] != value:
            raise ValueError(
                f"train: {path} was made with {name}={saved.state['train'][name]}, got {value}: "
                "the run could not read on where it stopped."
            )
    model.load_state_dict(saved.model.state_dict())
    for name, weight in model.named_parameters():
        optimizer.state[weight] = {
            key.removeprefix(f"{name}."): value if value.ndim == 0 else value.to(weight.device)
            for key, value in saved.optimizer.items()
            if key.rpartition(".")[0] == name
        }
    if average is not None:
        # A part without an average may be followed by one with it: that begins here.
        start = saved.average or {name: w.detach() for name, w in saved.model.named_parameters()}
        for name, value in start.items():
            average.weights[name].copy_(value)
    return int(saved.state["step"]), dict(saved.state["metrics"])


class _Log:
    """JSON lines, one write each; lines past the step that a run resumes from are dropped."""

    def __init__(self, path: Path | None, first_step: int) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []
        self._latest: dict[str, float] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if first_step and path.exists():
            text = path.read_text(encoding="utf-8")
            # What follows the last line's end was cut off by a crash.
            lines = [json.loads(line) for line in text.split("\n")[:-1]]
            self.lines = [line for line in lines if line["step"] <= first_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def write(self, step: int, **values: float) -> None:
        line = {"step": step, **values}
        self.lines.append(line)
        self._latest |= values
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def status(self, headline: str) -> str:
        """The latest loss and the validation metric `headline`, as far as there are any."""
        shown = {"loss": "loss", f"val_{headline}": headline.replace("_", " ")}
        parts = [f"{text} {self._latest[n]:.4g}" for n, text in shown.items() if n in self._latest]
        return "  ".join(parts)
