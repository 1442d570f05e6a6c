"""Both stages, from images to a pipeline: VQ-VAE, codes, and the priors of all levels.

`vqvae2-fast demo`, tools/ and users call it. Each part is a run of its own and can be continued as
one.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae2_fast.checkpoints.checkpoint import load, save
from vqvae2_fast.console.progress import Progress, clock
from vqvae2_fast.console.tables import html_summary
from vqvae2_fast.data.images import check_image_source
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.prior import make_prior
from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules.contexts import seeded
from vqvae2_fast.runs.folder import check_may_begin
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.sampling.pipeline import Pipeline
from vqvae2_fast.training.extraction import Variants, extract_codes
from vqvae2_fast.training.loop import train
from vqvae2_fast.training.stage1 import vqvae_stage
from vqvae2_fast.training.stage2 import prior_config, prior_stage
from vqvae2_fast.training.state import OtherRunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from vqvae2_fast.data import CodeStore, ImageSource
    from vqvae2_fast.models.prior import Prior
    from vqvae2_fast.training.config import TrainConfig
    from vqvae2_fast.training.preset import Preset
    from vqvae2_fast.training.stage import Stage
    from vqvae2_fast.training.timed import TimeBudget

    Replan = Callable[[int], int] | None

__all__ = ["TrainedPipeline", "train_pipeline"]


@dataclass
class TrainedPipeline:
    """What the recipe leaves.

    Args:
        codes, held_out_codes: The stores that the priors were trained and validated on.
        recommended: Settings to draw with.
        logs: The lines of each run's log, by its folder's name: `vqvae`, `prior_top`, ...
        seconds: How long each part took, by the same names; for a continued part, only the rest.
    """

    vqvae: VQVAE2
    priors: list[Prior]
    codes: CodeStore
    held_out_codes: CodeStore
    recommended: Mapping[str, Any] = field(default_factory=dict)
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def pipeline(self) -> Pipeline:
        """The models together."""
        return Pipeline(self.vqvae, self.priors, self.codes.class_names, self.recommended)

    def _repr_html_(self) -> str:
        """What a notebook shows: the pipeline, and how long each part took."""
        rows = [[name, clock(seconds)] for name, seconds in self.seconds.items()]
        return self.pipeline._repr_html_() + html_summary("Training.", ("part", "time"), rows)


def train_pipeline(
    preset: Preset,
    train_set: ImageSource,
    held_out: ImageSource,
    out: str | Path,
    *,
    seed: int = 0,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    recommended: Mapping[str, Any] | None = None,
    budget: TimeBudget | None = None,
    on_validation: Callable[[VQVAE2, Sequence[Prior]], object] = lambda vqvae, priors: None,
) -> TrainedPipeline:
    """Train the models of a preset on images; of each model the best checkpoint is taken.

    Leaves the runs OUT/vqvae and OUT/prior_LEVEL, the stores OUT/codes/train and OUT/codes/held_out
    and the pipeline OUT/pipeline. Sizes and classes of the priors follow from the codes.

    Args:
        seed: Seed of the weights, the codebooks and the order of the data, instead of the preset's.
        resume: Continue what is in `out`; without it, a run there is an error.
        recommended: Settings to draw with, kept in the pipeline.
        budget: The steps of each run follow from its time, instead of the preset.
        on_validation: Called after each validation with the models so far, such as to draw with
            them. The last one is being trained; it has its averaged weights.

    Raises:
        ValueError: Images of another size than the preset's, or runs in `out` that are not to be
            continued, or were made otherwise.
        TypeError: What is no set of images, such as an array.
        NotImplementedError: In a group of several processes.
        DivergedError, InterruptedRun, OSError, RuntimeError: As `train`.
    """
    if (count := Ranks.of_group().count) > 1:
        raise NotImplementedError(
            "expected one process, since each would write the codes and the "
            f"pipeline, got a group of {count}. Call it without the group, or train the parts in "
            "it: `vqvae2-fast train-vqvae`, `extract` and `train-prior` share the work under "
            "torchrun."
        )
    check_image_source("train_set", train_set)
    check_image_source("held_out", held_out)
    folder = Path(out)
    check_may_begin(folder / "vqvae", resume=resume)
    training, classes = preset.training, train_set.class_names
    progress = progress or Progress()
    logs: dict[str, list[dict[str, Any]]] = {}
    seconds: dict[str, float] = {}
    priors: list[Prior] = []

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[name] = time.monotonic() - start

    def settings_of(name: str, settings: TrainConfig) -> tuple[TrainConfig, Replan]:
        settings = replace(settings, seed=seed)
        return (settings, None) if budget is None else budget.planned(folder, name, settings)

    def run(name: str, stage: Stage, settings: TrainConfig, replan: Replan) -> None:
        def validate(model: Any) -> dict[str, float]:
            figures = stage.validate(model)
            on_validation(vqvae, [] if model is vqvae else [*priors, model])
            return figures

        try:
            trained = train(
                replace(stage, validate=validate),
                settings,
                out=folder / name,
                resume=resume,
                progress=progress,
                class_names=classes,
                replan=replan,
                how_to_continue="with resume and the same options"
                if budget is None
                else "by the same command or call",
            )
        except OtherRunError as error:
            raise ValueError(
                f"{error.what} Continue it with the preset, the images and the versions of the "
                "packages with which it was begun, or name another folder."
            ) from error
        logs[name] = trained.log
        if trained.best is not None and trained.best["step"] < trained.log[-1]["step"]:
            best: Any = load(folder / name / "best")
            stage.model.load_state_dict(best.state_dict())

    with timed("vqvae"):
        with seeded(seed):
            vqvae = VQVAE2(replace(preset.vqvae, seed=seed)).to(device)
        settings, replan = settings_of("vqvae", training.vqvae)
        stage = vqvae_stage(vqvae, train_set, held_out, settings, flip=training.flip)
        run("vqvae", stage, settings, replan)

    with timed("codes"):
        codes, held_out_codes = (
            extract_codes(
                vqvae,
                images,
                folder / "codes" / split,
                variants=training.variants if split == "train" else Variants(),
                progress=progress,
                name=f"extract {split.replace('_', ' ')}",
            )
            for split, images in (("train", train_set), ("held_out", held_out))
        )

    for level, name in enumerate(level_names(len(preset.priors))):
        with timed(f"prior_{name}"):
            with seeded(seed):
                prior = make_prior(prior_config(preset.priors[level], codes, level)).to(device)
            settings, replan = settings_of(f"prior_{name}", training.priors[level])
            stage = prior_stage(
                prior,
                codes,
                held_out_codes,
                settings,
                level=level,
                class_balance=training.class_balance,
                name=f"train prior {name}",
            )
            run(f"prior_{name}", stage, settings, replan)
            priors.append(prior)
    trained = TrainedPipeline(
        vqvae, priors, codes, held_out_codes, recommended or {}, logs, seconds
    )
    save(trained.pipeline, folder / "pipeline")
    return trained
