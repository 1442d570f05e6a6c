"""Samples of a pipeline next to real images: what `vqvae2-fast evaluate --images` measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from vqvae2_fast.commands.shared_samples import shared_samples
from vqvae2_fast.data import in_order
from vqvae2_fast.data.groups import GroupedImages
from vqvae2_fast.data.images import ImageSubset
from vqvae2_fast.data.sample_folder import SampleFolder, labelled_samples, samples_of_folder
from vqvae2_fast.metrics import extract_features, open_features
from vqvae2_fast.metrics.distances import compare_all, rejection_curve
from vqvae2_fast.metrics.features import NETWORKS
from vqvae2_fast.metrics.pipeline import store_reconstructions
from vqvae2_fast.metrics.results import CasScore, Rejection
from vqvae2_fast.metrics.set_measures import LEAST_FOR_KERNEL as LEAST_IMAGES
from vqvae2_fast.metrics.set_measures import most_neighbours
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.report.grids import picture_of_classes
from vqvae2_fast.report.trade_off import plot_trade_off
from vqvae2_fast.runs.interrupt import stop_requests
from vqvae2_fast.sampling.drawing import Batches, best_batch_size, draw_into
from vqvae2_fast.sampling.rejection import class_probability, keep_share
from vqvae2_fast.sampling.series import SampleSeries, resolved_settings
from vqvae2_fast.training.classifier import classification_accuracy_score
from vqvae2_fast.training.images import check_classes

if TYPE_CHECKING:
    from vqvae2_fast.console import Progress
    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.data.image_cache import StoredImages
    from vqvae2_fast.metrics.features import FeatureExtractor, FeatureSet
    from vqvae2_fast.metrics.results import Evaluation
    from vqvae2_fast.models.classifier import Classifier
    from vqvae2_fast.runs.ranks import Ranks
    from vqvae2_fast.sampling.pipeline import Pipeline
    from vqvae2_fast.training.classifier import CasRow

__all__ = ["SampleOptions", "Samples", "check_least"]

_BATCH = 64  # images that a feature network or a classifier gets at a time
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)  # shares kept by rejection
_SHOWN = 12  # samples of a class in pictures

Sets = dict[str, "ImageSource"]
Features = dict[str, dict[str, "FeatureSet"]]


@dataclass
class SampleOptions:
    """What is measured of samples."""

    images: int = 0
    """How many samples, and as many real images, distances are measured on; 0 measures none."""
    samples: Path | None = None
    """A folder that `vqvae2-fast sample` left, with its classes in the proportions of the training
    images. Without it samples are drawn into --out, each with the class of a training image."""
    features: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help=f"Networks in whose features images are compared: {', '.join(NETWORKS)}; auto "
            "takes inception if its weights are named, else efficientnet. The classifier is that "
            "of --classifier."
        ),
    ] = ("auto",)
    inception_weights: Path | None = None
    """Weights of FID's Inception; by default those that VQVAE2_FAST_INCEPTION names."""
    classifier: Path | None = None
    """A classifier (of `train-classifier`) that judges samples, for the rejection curve."""
    cas_epochs: int = 0
    """Epochs to train the classifiers of the classification accuracy score; 0 leaves it out."""
    cas_images: int = 0
    """How many images each of these classifiers is trained on, up to all training images, as the
    score is defined; by default as many as --images."""
    groups: bool = False
    """Classifiers and pictures use groups of classes, what stands before " - " in their names, such
    as "Flags" of "Flags - flag". For priors with more classes than a classifier can learn."""
    neighbours: int = 5
    """k of precision, recall, density and coverage (3 in the paper on the first two)."""
    seed: int = 0
    """Seed of the samples that are drawn here, and of the choice of real images."""


def check_least(options: object, **least: int) -> None:
    """Raises ValueError if an option is below its least value."""
    for name, value in least.items():
        if (got := getattr(options, name)) < value:
            raise ValueError(f"{name}: expected {value} or more, got {got}.")


class Samples:
    """Samples measured against real images. Samples and classifiers that an earlier run left in the
    folder are used again.

    The sets: `reference`, training images; `other`, as many other real images, whose distance is
    the floor: held-out ones if there are enough; `reconstructed`, the reference's reconstructions;
    `sampled`.

    Raises:
        ValueError, RuntimeError: What was asked for cannot be measured.
    """

    def __init__(
        self,
        options: SampleOptions,
        pipeline: Pipeline,
        train_set: ImageSource,
        held_out: ImageSource,
        classifier: Classifier | None,
        out: Path,
        progress: Progress,
    ) -> None:
        self.options, self.out, self.progress = options, out, progress
        self.pipeline, self.class_names = pipeline, pipeline.class_names
        if pipeline.num_classes and not self.class_names:
            self.class_names = train_set.class_names
        self.train_set, self.held_out, self.classifier = train_set, held_out, classifier
        self.vqvae, _ = pipeline.networks()
        self.device = device_of(self.vqvae)
        self.pictures: dict[str, Path] = {}
        self._check()
        generator = torch.Generator().manual_seed(self.options.seed)
        self.order = torch.randperm(len(self.train_set), generator=generator, device="cpu")
        if self.options.samples is not None:
            self._check_named(self.options.samples)
        else:
            self._check_begun(self.out / "samples")
        self.reference, self.other = self._real_sets(generator)
        self.networks = [
            open_features(
                name,
                inception_weights=self.options.inception_weights,
                classifier=classifier,
                device=self.device,
            )
            for name in self.options.features
        ]

    def _check(self) -> None:
        options, train, held_out = self.options, len(self.train_set), len(self.held_out)
        check_least(options, images=0, cas_epochs=0, cas_images=0, neighbours=1)
        most = max(min(train, held_out), train // 2)
        if most < LEAST_IMAGES:
            raise ValueError(
                f"--images: expected a larger set: it takes {LEAST_IMAGES} training images and "
                f"{LEAST_IMAGES} others, held-out or training ones, and there are {train} training "
                f"images and {held_out} held-out ones. Leave --images out to measure all else."
            )
        if options.images < LEAST_IMAGES:
            raise ValueError(
                f"--images: expected {LEAST_IMAGES} or more, got {options.images}: kernel "
                "distances, precision and recall mean nothing with fewer. A Fréchet distance needs "
                "as many as there are features (2,048 of Inception, 1,280 of EfficientNet-Lite0)."
            )
        if options.images > most:
            raise ValueError(
                f"--images: expected {most} at most, got {options.images}: the floor compares two "
                f"sets of as many real images, and there are {train} training images and "
                f"{held_out} held-out ones."
            )
        if options.neighbours > (most := most_neighbours(options.images)):
            raise ValueError(
                f"--neighbours: expected {most} at most for --images {options.images}, got "
                f"{options.neighbours}."
            )
        if options.cas_images and not options.cas_epochs:
            raise ValueError(
                "--cas-images: expected --cas-epochs too, for how long the classifiers of the "
                f"score are trained, got only --cas-images {options.cas_images}."
            )
        if options.cas_images > train:
            raise ValueError(
                f"--cas-images: expected {train} at most, the number of training images, got "
                f"{options.cas_images}."
            )
        if options.cas_epochs or self.classifier is not None:
            if not self.pipeline.num_classes:
                flag = "--cas-epochs" if options.cas_epochs else "--classifier"
                raise ValueError(f"{flag}: expected priors that are told classes, got none.")
            for images in (self.train_set, self.held_out):
                check_classes(images, self.pipeline.num_classes)
                check_classes(self._judged(images))

    def _check_named(self, path: Path) -> None:
        """Raises ValueError unless a folder has the samples that the measures need."""
        samples, labels = labelled_samples(path, self.class_names)
        count, without = len(samples), labels.count(-1)
        if count < self._num_samples:
            raise ValueError(
                f"--samples: expected at least {self._num_samples} samples, the number of --images "
                f"or --cas-images, got {count} in {path}. `vqvae2-fast sample` makes some."
            )
        if without and (self.options.cas_epochs or self.classifier is not None):
            raise ValueError(
                "--samples: expected samples of classes, which --cas-epochs and --classifier "
                f"need, got {without} of {count} in {path} without one; draw them without "
                "`--label none`."
            )

    def _check_begun(self, path: Path) -> None:
        """Raises ValueError if an earlier evaluation began other samples where these belong."""
        if changes := SampleFolder.changes(path, self._series(0).identity()):
            raise ValueError(
                f"--out: {path} holds samples that an earlier evaluation drew with other settings "
                f"({changes}). Give those, or name another folder."
            )

    def added_to(self, found: Evaluation) -> Evaluation:
        """The evaluation with all measures of samples."""
        sets = self._sets()
        features = {
            network.name: {name: self._features(network, name, own) for name, own in sets.items()}
            for network in self.networks
        }
        distances = {
            name: compare_all(own, name, k=self.options.neighbours, progress=self.progress)
            for name, own in features.items()
        }
        rows = self._cas(sets) if self.options.cas_epochs else []
        rejection = None
        if self.classifier is not None:
            judge = next((row.classifier for row in rows if row.trained_on == "real"), None)
            rejection = self._rejection(self.classifier, sets["sampled"], features, judge)
        scores = [CasScore(row.trained_on, row.images, row.accuracies) for row in rows]
        return replace(
            found,
            sampled_images=self.options.images,
            distances=distances,
            cas=scores or None,
            rejection=rejection,
        )

    def _real_sets(self, generator: torch.Generator) -> tuple[ImageSubset, ImageSubset]:
        count = self.options.images
        other = ImageSubset(self.train_set, self.order[count : 2 * count])
        if len(self.held_out) >= count:
            rows = torch.randperm(len(self.held_out), generator=generator, device="cpu")[:count]
            other = ImageSubset(self.held_out, rows)
        return self._training_images(count), other

    def _training_images(self, count: int) -> ImageSubset:
        return ImageSubset(self.train_set, self.order[:count])

    @property
    def _cas_images(self) -> int:
        """0 without the score."""
        return (self.options.cas_images or self.options.images) if self.options.cas_epochs else 0

    @property
    def _num_samples(self) -> int:
        """How many samples all measures together need."""
        return max(self.options.images, self._cas_images)

    @cached_property
    def _samples(self) -> ImageSource:
        path = self.options.samples or self.out / "samples"
        return samples_of_folder(path, self.out / "work" / "samples.raw", self.class_names)

    def _sets(self) -> Sets:
        sampled = ImageSubset(self._samples, torch.arange(self.options.images, device="cpu"))
        self._picture("samples", sampled)
        return {
            "reference": self.reference,
            "other": self.other,
            "reconstructed": self._reconstructed("reference", self.reference),
            "sampled": sampled,
        }

    def draw(self, ranks: Ranks) -> None:
        """Draw the samples unless a folder of them was named; the processes share the work."""
        if self.options.samples is not None:
            return
        path = self.out / "samples"
        # An evaluation of fewer images uses the first of those that an earlier one drew.
        count = max(
            self._num_samples,
            ranks.run_on_rank0_and_broadcast(lambda: SampleFolder.begun_for(path)),
        )
        series, size = self._series(count), best_batch_size(self.pipeline)

        def begin() -> SampleFolder:
            alone = ranks.count == 1
            return SampleFolder.begin(path, count, series.identity(), resume=True, alone=alone)

        with shared_samples(ranks, begin, count) as (folder, missing), stop_requests() as stop:
            batches = Batches(missing, size, rank=ranks.rank, count=ranks.count)
            draw_into(
                folder,
                series,
                batches,
                self.progress,
                before=0 if ranks.count > 1 else count - batches.num_samples,
                after_row=lambda done: stop.check(
                    f"{done} of {count} samples are whole in {path}; the same command continues."
                ),
            )
            ranks.wait()
            folder.finish()

    def _series(self, count: int) -> SampleSeries:
        """Samples of the classes of the first `count` training images."""
        none = self.pipeline.num_classes
        labels = [
            none if label < 0 else label for label in self._training_images(count).labels.tolist()
        ]
        size = best_batch_size(self.pipeline)
        settings = resolved_settings(self.pipeline, batch_size=size, seed=self.options.seed)
        ordered = self.train_set.labels[self.order].numpy().tobytes()
        return SampleSeries(
            self.pipeline,
            settings,
            tuple(labels) if none else (),
            classes_from=f"training images, {sha256(ordered).hexdigest()}" if none else "",
        )

    def _reconstructed(self, name: str, images: ImageSource) -> StoredImages:
        path = self.out / "work" / f"reconstructed_{name}.raw"
        return store_reconstructions(self.vqvae, images, path, self.progress, name)

    def _features(self, network: FeatureExtractor, name: str, images: ImageSource) -> FeatureSet:
        folder = self.out / "work" / network.name / name
        with self.progress.task(f"{network.name} {name}", len(images)) as task:
            return extract_features(
                network, in_order(images, _BATCH), len(images), folder, progress=task.update
            )

    def _judged(self, images: ImageSource) -> ImageSource:
        """Images with the classes that classifiers are to see."""
        return GroupedImages(images) if self.options.groups else images

    def _cas(self, sets: Sets) -> list[CasRow]:
        count = self._cas_images
        real, reconstructed = self._training_images(count), sets["reconstructed"]
        if count != self.options.images:
            reconstructed = self._reconstructed(f"training_{count}", real)
        sampled = ImageSubset(self._samples, torch.arange(count, device="cpu"))
        train = {"real": real, "reconstructed": reconstructed, "sampled": sampled}
        test = {
            "real": self.held_out,
            "reconstructed": self._reconstructed("held_out", self.held_out),
        }
        # A run of another recipe would be continued.
        recipe = ["cas", count, self.options.cas_epochs, *["groups"] * self.options.groups]
        return classification_accuracy_score(
            {kind: self._judged(images) for kind, images in train.items()},
            {kind: self._judged(images) for kind, images in test.items()},
            out=self.out / "work" / "_".join(map(str, recipe)),
            epochs=self.options.cas_epochs,
            seed=self.options.seed,
            device=self.device,
            progress=self.progress,
        )

    def _rejection(
        self,
        classifier: Classifier,
        sampled: ImageSource,
        features: Features,
        judge: Classifier | None,
    ) -> Rejection:
        """The rejection curve; a judge other than the classifier, if there is one, says which of
        the samples are in their class."""
        judged = self._judged(sampled)
        labels, parts, right = judged.labels, [], []
        with self.progress.task("judge samples", len(sampled)) as task, torch.no_grad():
            for images, own in in_order(judged, _BATCH):
                parts.append(class_probability(classifier, images, own))
                seen = (judge or classifier)(images.to(self.device)).argmax(1).cpu()
                right.append(seen == own)
                task.advance(len(images))
        probabilities, correct = torch.cat(parts), torch.cat(right)
        kept = {share: keep_share(probabilities, labels, share) for share in _SHARES}
        points = rejection_curve(
            kept,
            probabilities,
            correct,
            features,
            k=self.options.neighbours,
            progress=self.progress,
        )
        order = probabilities.argsort(descending=True)
        self._picture("best", ImageSubset(sampled, order))
        self.pictures["trade_off"] = self.out / "trade_off.png"
        plot_trade_off(self.pictures["trade_off"], points)
        by = "the judge itself" if judge is None else "the classifier trained on the reference"
        return Rejection(points, f"{by}, in groups of classes" if self.options.groups else by)

    def _picture(self, name: str, images: ImageSource) -> None:
        self.pictures[name] = self.out / f"{name}.png"
        judged = self._judged(images)
        picture_of_classes(judged, self.pictures[name], judged.class_names, _SHOWN)
