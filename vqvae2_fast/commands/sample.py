"""`vqvae2-fast sample`: new images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro
from torch import Tensor

from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    parse_labels,
    write_result,
)
from vqvae2_fast.report import sample_grid, save_images
from vqvae2_fast.sampling import sample_images

if TYPE_CHECKING:
    from vqvae2_fast.sampling.pipeline import Pipeline
    from vqvae2_fast.training import Progress

__all__ = ["Sample", "draw"]


@dataclass(kw_only=True)
class Sample(Command):
    """Draw images; leaves samples.png (rows by class), each image as a PNG, and result.json.

    Sample i of a seed is the same image whatever --n and --batch-size are.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    n: int = 10
    """Images, of each label where there are classes."""
    label: tuple[str, ...] = ()
    """Classes: numbers, or beginnings of their names; all classes if none is named."""
    seed: int = 0
    temperature: tuple[float, ...] = (1.0,)
    """Below 1 likelier codes are drawn more often; 0 always takes the likeliest. One value, or one
    a level, coarse to fine."""
    top_k: int | None = None
    """Draw among the k likeliest codes only."""
    top_p: float | None = None
    """Draw among the likeliest codes that together have this probability."""
    guidance_scale: tuple[float, ...] = (1.0,)
    """Above 1 the class is followed more closely (for priors trained with dropped labels). One
    value, or one a level."""
    engine: str = "auto"
    batch_size: int = 128
    """Images drawn at a time."""
    out: Path = Path("runs/samples")
    """Folder for what is written."""

    def run(self) -> Result:
        for name in ("n", "batch_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: expected 1 or more, got {getattr(self, name)}.")
        pipeline, class_names = self.models.open(self.prepare())
        num_classes = pipeline.priors[0].config.num_classes
        if self.label and not num_classes:
            raise ValueError(f"--label: the priors have no classes, got {', '.join(self.label)}.")
        classes = parse_labels(self.label, class_names, num_classes) or list(range(num_classes))
        labels = [label for label in classes for _ in range(self.n)] or None
        images = draw(
            pipeline, len(labels) if labels else self.n, labels, batch_size=self.batch_size,
            progress=self.progress(), seed=self.seed, temperature=_per_level(self.temperature),
            top_k=self.top_k, top_p=self.top_p, guidance_scale=_per_level(self.guidance_scale),
            engine=self.engine,
        )  # fmt: skip
        names = [f"{i:05d}" for i in range(len(images))]
        save_images(images, self.out / "images", names)
        shown = [class_names[i] if class_names else str(i) for i in range(num_classes)]
        picture = self.out / "samples.png"
        sample_grid(images, labels or [], shown).save(picture)
        values = {
            "picture": str(picture), "seed": self.seed,
            "images": [
                {"file": f"images/{name}.png",
                 "label": shown[labels[i]] if labels else None}
                for i, name in enumerate(names)
            ],
        }  # fmt: skip
        write_result(self.out / "result.json", values)
        return Result(
            values, [f"{len(images)} images in {self.out / 'images'}", f"picture: {picture}"]
        )


def _per_level(values: tuple[float, ...]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


def draw(
    pipeline: Pipeline,
    count: int,
    labels: list[int] | None,
    *,
    batch_size: int,
    progress: Progress,
    name: str = "sample",
    **options: object,
) -> Tensor:
    """`count` images `[count, C, H, W]` by batches; `options` are those of `sample_images`."""
    images: list[Tensor] = []
    device = next(pipeline.vqvae.parameters()).device
    positions = [prior.config.size[0] for prior in pipeline.priors]
    batches = -(-count // batch_size)
    with progress.task(name, batches * sum(positions)) as task:
        for batch, first in enumerate(range(0, count, batch_size)):
            size = min(batch_size, count - first)
            own = (
                None
                if labels is None
                else torch.tensor(labels[first : first + size], device=device)
            )
            before = batch * sum(positions)
            images.append(
                sample_images(
                    pipeline, size, labels=own, first_sample=first,
                    progress=lambda level, row, rows, before=before: task.update(
                        before + sum(positions[:level]) + row
                    ),
                    **options,
                ).cpu()
            )  # fmt: skip
    return torch.cat(images)
