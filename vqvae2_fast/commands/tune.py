"""`vqvae2-fast tune`: the settings to draw with, by measuring."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import tyro

from vqvae2_fast.checkpoints import save
from vqvae2_fast.checkpoints.files import check_replaceable
from vqvae2_fast.commands.common import (
    Command,
    ModelOptions,
    Result,
    check_out,
    check_same_classes,
    load_classifier,
    write_result,
)
from vqvae2_fast.console import Progress
from vqvae2_fast.data import in_order, to_float, to_uint8
from vqvae2_fast.data.images import ImageSubset
from vqvae2_fast.data.sources import DataOptions, open_images
from vqvae2_fast.metrics import open_features
from vqvae2_fast.metrics.features import NETWORKS
from vqvae2_fast.metrics.set_measures import LEAST_FOR_KERNEL as LEAST_IMAGES
from vqvae2_fast.metrics.set_measures import neighbour_measures, squared_discrepancy
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.sampling.drawing import best_batch_size
from vqvae2_fast.sampling.pipeline import sample_images
from vqvae2_fast.sampling.settings import level_settings
from vqvae2_fast.training.images import check_classes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.metrics.features import FeatureExtractor
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["Tune"]

_IMAGES = 1000  # compared if the set has them
# Images. The standard error of a count n is about its root: at 25 a fifth of n, which is what
# --keep-recall gives up by default, and more below.
_FEW_RECALLED = 25
_BATCH = 64  # images that a feature network gets at a time
_SETTINGS = ("temperature", "guidance_scale", "top_p")
Settings = dict[str, tuple[float, ...]]  # one value per level


class Measured(NamedTuple):
    """What samples of some settings are like.

    Args:
        distance: The kernel distance of all samples to the real images, by the unbiased estimate.
        precision, recall: Shares of samples among real images, and of real ones among samples.
    """

    settings: Settings
    distance: float
    precision: float
    recall: float


@dataclass(kw_only=True)
class Tune(Command):
    """Find the settings whose samples are nearest to real images without losing their variety, and
    leave OUT/pipeline, which recommends them: `sample` then uses them when nothing else is said.

    Starting from the plain settings, one value is changed at a time, level by level. The kernel
    distance decides, among the settings with at least --keep-recall of the plain recall. All
    settings draw with the same noise, so even small differences count.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    source: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    images: int | None = None
    """How many samples, and as many training images, are compared; by default 1,000, or all
    training images if they are fewer. It takes 200 at least."""
    features: str = "auto"
    """The network whose features are compared; see `evaluate`."""
    classifier: Path | None = None
    """The classifier for --features classifier."""
    inception_weights: Path | None = None
    """For --features inception."""
    temperature: tuple[float, ...] = (0.95, 0.9, 0.85, 0.8)
    """Temperatures to try."""
    guidance_scale: tuple[float, ...] = (1.5, 2.0, 3.0)
    """Guidance scales to try, if there are classes."""
    top_p: tuple[float, ...] = (0.98, 0.95)
    """Shares of the likeliest codes to try."""
    keep_recall: float = 0.8
    """Share of the plain recall that the settings must keep."""
    seed: int = 0
    """Seed of the noise and of the choice of images."""
    out: Path = Path("runs/tuned")
    """Folder for the results."""

    def run(self) -> Result:
        self.check_one_process()
        check_out(self.out, self.source)
        check_replaceable(self.out / "pipeline")
        for name in _SETTINGS:
            for value in getattr(self, name):
                level_settings(1, **{name: value})
        level_settings(1, seed=self.seed)
        if not 0 <= self.keep_recall <= 1:
            raise ValueError(
                f"--keep-recall: expected a share from 0 to 1, got {self.keep_recall}."
            )
        if self.features != "auto" and self.features not in NETWORKS:
            raise ValueError(
                f"--features: expected auto or one of {', '.join(NETWORKS)}, got {self.features!r}."
            )
        for flag, given, fitting in (
            ("--classifier", self.classifier, ("classifier",)),
            ("--inception-weights", self.inception_weights, ("inception", "auto")),
        ):
            if given is not None and self.features not in fitting:
                raise ValueError(
                    f"{flag}: expected --features {fitting[0]} with it, got --features "
                    f"{self.features}, which does not use it."
                )
        device = self.prepare()
        pipeline = self.models.open(device)
        config = pipeline.networks()[0].config
        shape = (config.image_channels, *config.image_size)
        images = open_images(self.source, "train", shape[0], shape[1:], self.progress())
        if pipeline.num_classes:
            check_same_classes(pipeline, images.class_names)
            check_classes(images, pipeline.num_classes)
        number = self._number(len(images))
        classifier = None
        if self.classifier is not None:
            classifier = load_classifier(self.classifier, device, pipeline.class_names, shape)
        network = open_features(
            self.features,
            inception_weights=self.inception_weights,
            classifier=classifier,
            device=device,
        )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(images), generator=generator, device="cpu")[:number]
        trials = _Trials(self, pipeline, ImageSubset(images, order), network)
        best = trials.search()
        recommended: dict[str, Any] = {
            name: values[0] if len(set(values)) == 1 else values
            for name, values in best.settings.items()
            if set(values) != {1.0}
        }
        values = {
            "network": network.name,
            "images": number,
            "recommended": recommended,
            "plain": trials.measured[0]._asdict(),
            "best": best._asdict(),
            "trials": [one._asdict() for one in trials.measured],
        }
        # The pipeline first: tuning.json never tells of one that could not be saved.
        save(replace(pipeline.to("cpu"), recommended=recommended), self.out / "pipeline")
        write_result(self.out / "tuning.json", values)
        return Result(
            values,
            [
                f"{len(trials.measured)} settings, {number} samples each, in the features of "
                f"{network.name}",
                *(trials.line(one) for one in (trials.measured[0], best)),
                f"pipeline: {self.out / 'pipeline'}",
                f"all settings: {self.out / 'tuning.json'}",
            ],
        )

    def _number(self, there: int) -> int:
        """How many of the training images are compared. Raises ValueError if they are too few."""
        if there < LEAST_IMAGES:
            raise ValueError(
                f"--data: expected {LEAST_IMAGES} training images or more, got {there}: a kernel "
                "distance of fewer means nothing."
            )
        number = min(_IMAGES, there) if self.images is None else self.images
        if not LEAST_IMAGES <= number <= there:
            raise ValueError(
                f"--images: expected {LEAST_IMAGES} to {there}, the number of training "
                f"images, got {number}: a kernel distance of fewer means nothing."
            )
        return number


class _Trials:
    """Settings that were tried, the plain ones first."""

    def __init__(
        self, options: Tune, pipeline: Pipeline, real: ImageSource, network: FeatureExtractor
    ) -> None:
        self.options, self.pipeline, self.network = options, pipeline, network
        self.levels = len(pipeline.priors)
        self.labels = real.labels if pipeline.num_classes else None
        self.settings = [
            (name, level, value)
            for name in _SETTINGS
            if name != "guidance_scale" or self.labels is not None
            for level in range(self.levels)
            for value in getattr(options, name)
        ]
        trials = range(1, 2 + len(self.settings))
        # Drawing takes nearly all of the time.
        plan = {"real images": 0.0, **{self._name(trial): 1.0 for trial in trials}}
        self.progress = Progress(plan, quiet=options.quiet)
        self.measured: list[Measured] = []
        self.count = len(real)
        self.real = self._features("real images", (own for own, _ in in_order(real, _BATCH)))

    def search(self) -> Measured:
        """The best settings by changing one value at a time."""
        plain: Settings = dict.fromkeys(_SETTINGS, (1.0,) * self.levels)
        self.progress.say(
            f"{1 + len(self.settings)} settings to try. The smaller the kernel distance (KD), the "
            "nearer are the samples to real images."
        )
        best = self._measure(plain)
        least = self.options.keep_recall * best.recall
        recalled = round(best.recall * len(self.real))
        if self.options.keep_recall and recalled < _FEW_RECALLED:
            consequence = (
                "Among so few, chance decides which settings have the share that --keep-recall "
                "asks for."
                if least
                else "All settings have a share of nothing, so the distance alone decides, and "
                "variety may be lost."
            )
            warnings.warn(
                f"the plain settings recall {recalled} of {len(self.real)} images. {consequence} "
                "Compare more --images, or give --keep-recall 0 to go by the distance alone.",
                stacklevel=2,
            )
        for (name, level), values in groupby(self.settings, key=lambda one: one[:2]):
            tried = []
            for *_, value in values:
                changed = list(best.settings[name])
                changed[level] = value
                tried.append(self._measure({**best.settings, name: tuple(changed)}))
            kept = [one for one in tried if one.recall >= least]
            best = min([best, *kept], key=lambda one: one.distance)
        return best

    def _name(self, trial: int) -> str:
        return f"settings {trial} of {1 + len(self.settings)}"

    def _measure(self, settings: Settings) -> Measured:
        fake = self._features(self._name(len(self.measured) + 1), self._drawn(settings))
        found = neighbour_measures(self.real, fake)
        distance = squared_discrepancy(self.real, fake)
        one = Measured(settings, distance, found.precision.value, found.recall.value)
        self.measured.append(one)
        self.progress.say(self.line(one))
        return one

    def line(self, one: Measured) -> str:
        """Settings and what they give, for people."""
        names = level_names(self.levels)
        changed = [
            f"{name.replace('_', ' ')} {level} {value:g}"
            for name, values in one.settings.items()
            for level, value in zip(names, values, strict=True)
            if value != 1
        ]
        return (
            f"KD {one.distance:.4f}, precision {one.precision:.3f}, recall {one.recall:.3f}: "
            f"{', '.join(changed) or 'plain'}"
        )

    def _drawn(self, settings: Settings) -> Iterator[Tensor]:
        """Samples as their files would hold them."""
        size, count = best_batch_size(self.pipeline), self.count
        device = device_of(self.pipeline.priors[0])
        for first in range(0, count, size):
            stop = min(first + size, count)
            labels = None if self.labels is None else self.labels[first:stop].to(device)
            drawn = sample_images(
                self.pipeline,
                stop - first,
                labels=labels,
                seed=self.options.seed,
                first_sample=first,
                **settings,  # type: ignore[arg-type]
            )
            yield to_float(to_uint8(drawn))

    def _features(self, name: str, batches: Iterator[Tensor]) -> Tensor:
        done, parts = 0, []
        with self.progress.task(name, self.count) as task:
            for images in batches:
                parts += [self.network(part).features.cpu() for part in images.split(_BATCH)]
                done += len(images)
                task.update(done)
        return torch.cat(parts).float()
