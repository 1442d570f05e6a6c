"""Trainings that end in time: what a recipe's steps take here, and how they share the time.

The number of steps follows from measured ones, and is corrected as a training goes on.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from vqvae2_fast.checkpoints.locate import latest, step_of
from vqvae2_fast.data import CodeStore, write_codes
from vqvae2_fast.data.images import evenly, to_float
from vqvae2_fast.files.json_file import read_object
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import make_prior
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.contexts import seeded
from vqvae2_fast.training.cost import measure_step
from vqvae2_fast.training.stage1 import vqvae_stage
from vqvae2_fast.training.stage2 import prior_config, prior_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.models.prior import Prior
    from vqvae2_fast.training.config import TrainConfig
    from vqvae2_fast.training.preset import Preset

__all__ = ["TimeBudget", "TimedModels", "run_names", "time_priors", "time_vqvae"]

# Validations take this much of a run beside its steps, and the last ones of a run come after the
# number of its steps was corrected for the last time.
_VALIDATIONS = 8
_KEPT_BACK = 0.97
# A finished run goes on if it would get this much of its time again.
_WORTH_GOING_ON = 0.25
_TIMED_IMAGES = 16


def run_names(preset: Preset) -> tuple[str, ...]:
    """The runs of a recipe in the order in which they train: vqvae, prior_top, ..."""
    return ("vqvae", *(f"prior_{name}" for name in level_names(len(preset.priors))))


@dataclass(frozen=True)
class TimedModels:
    """Models that were timed, and are of no other use.

    Args:
        step_seconds: Seconds of a training step, by run.
        encode_seconds: Seconds in which the VQ-VAE encodes an image.
    """

    vqvae: VQVAE2
    priors: list[Prior]
    step_seconds: dict[str, float]
    encode_seconds: float


def time_vqvae(
    preset: Preset, train_set: ImageSource, device: torch.device
) -> tuple[VQVAE2, float, float]:
    """An untrained VQ-VAE, and the seconds of its training step and of encoding an image."""
    with seeded(0):
        model = VQVAE2(replace(preset.vqvae, quantize_after=0)).to(device)
    settings = preset.training.vqvae
    stage = vqvae_stage(model, train_set, train_set, settings, flip=preset.training.flip)
    step = measure_step(stage, settings).seconds
    rows = evenly(len(train_set), _TIMED_IMAGES).tolist()
    images = to_float(torch.stack([train_set[row][0] for row in rows])).to(device)
    model.eval().encode(images)  # the first time includes work that is done only once
    start = time.monotonic()
    codes = model.encode(images)
    codes[0].cpu()  # waits for a GPU
    return model, step, (time.monotonic() - start) / len(images)


def time_priors(
    preset: Preset, vqvae: VQVAE2, class_names: tuple[str, ...], device: torch.device
) -> tuple[list[Prior], dict[str, float]]:
    """Untrained priors, and the seconds of a training step of each by the name of its run."""
    config, priors, seconds = vqvae.config, [], {}
    count = max(settings.batch_size for settings in preset.training.priors)
    generator = torch.Generator("cpu").manual_seed(0)

    def records(first: int, last: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        maps = [
            torch.randint(
                config.num_embeddings,
                (last - first, *size),
                generator=generator,
                dtype=torch.int64,
                device="cpu",
            )
            for size in config.level_sizes
        ]
        labels = torch.arange(first, last, device="cpu") % max(1, len(class_names))
        yield maps, labels if class_names else labels - labels - 1

    with TemporaryDirectory() as folder:
        write_codes(
            Path(folder),
            records,
            count,
            config.num_embeddings,
            config.level_sizes,
            class_names=class_names,
        )
        codes = CodeStore(folder)
        for level, name in enumerate(run_names(preset)[1:]):
            with seeded(0):
                prior = make_prior(prior_config(preset.priors[level], codes, level)).to(device)
            settings = preset.training.priors[level]
            stage = prior_stage(prior, codes, codes, settings, level=level)
            seconds[name] = measure_step(stage, settings).seconds
            priors.append(prior.eval())
    return priors, seconds


@dataclass
class TimeBudget:
    """Shares out the time until a deadline among the runs of a recipe.

    A run that an earlier process began gets its share of the time of all, less what it took so far.

    Args:
        deadline: When the last run is to end, in `time.monotonic()`.
        step_seconds: Seconds of a step by run, in the order in which the runs train.
        shares: Their parts of the time.
        most_steps: The most steps of a run, where more would not help.
        between: Seconds from the end of the first run to the beginning of the second.
        further: Finished runs go on if there is much more time than they had. The first one does
            not, since the codes of the others would no longer be its codes.
    """

    deadline: float
    step_seconds: Mapping[str, float]
    shares: Mapping[str, float]
    most_steps: Mapping[str, int] = field(default_factory=dict)
    between: float = 0.0
    further: bool = False

    def seconds_of(self, folder: Path, name: str) -> float:
        """What a run gets from now on."""
        names = list(self.step_seconds)
        still = names[names.index(name) :]
        left = self.deadline - time.monotonic() - (self.between if name == names[0] else 0.0)
        spent = {later: seconds_spent(folder / later) for later in still}
        share = self.shares[name] / sum(self.shares[later] for later in still)
        return (left + sum(spent.values())) * share - spent[name]

    def planned(
        self, folder: Path, name: str, settings: TrainConfig
    ) -> tuple[TrainConfig, Callable[[int], int] | None]:
        """The settings of a run that fit its time, and what corrects their steps as it trains."""
        seconds, newest = self.seconds_of(folder, name), latest(folder / name)
        done = step_of(newest) if newest else 0
        if newest is not None and _is_finished(newest):
            enough = seconds > _WORTH_GOING_ON * seconds_spent(folder / name)
            if name == next(iter(self.step_seconds)) or not (self.further and enough):
                return with_steps(settings, done), None
        start, end = time.monotonic(), time.monotonic() + _KEPT_BACK * seconds
        most = max(done, self.most_steps.get(name, sys.maxsize))

        def corrected(step: int) -> int:
            now = time.monotonic()
            return min(most, step + int((end - now) * (step - done) / (now - start)))

        more = max(1, round(_KEPT_BACK * seconds / self.step_seconds[name]))
        return with_steps(settings, min(most, done + more)), corrected


def with_steps(settings: TrainConfig, steps: int) -> TrainConfig:
    """The settings for another number of steps, with what counts steps in proportion."""
    every = max(1, steps // _VALIDATIONS)
    return replace(
        settings,
        steps=steps,
        warmup_steps=min(settings.warmup_steps, steps // 4),
        log_every=max(1, min(settings.log_every, steps // 50)),
        validate_every=every,
        save_every=every,
    )


def seconds_spent(run: Path) -> float:
    """Seconds that a run trained for, in all processes that continued it."""
    try:
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0.0
    total = last = 0.0
    for line in lines:
        seconds = json.loads(line).get("seconds", last)
        if seconds < last:  # a process that continued the run counts from 0
            total += last
        last = seconds
    return total + last


def _is_finished(checkpoint: Path) -> bool:
    state = read_object(checkpoint / "state.json")
    return bool(state["step"] == state["train"]["steps"])
