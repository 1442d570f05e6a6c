"""The part of `vqvae2-fast evaluate` that looks at samples: distances, rejection, CAS."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.data import in_order
from vqvae2_fast.data.sample_folder import SampleFolder
from vqvae2_fast.data.stored_images import samples_of_folder, store_images
from vqvae2_fast.data.subset import ImageSubset
from vqvae2_fast.metrics import extract_features, open_features
from vqvae2_fast.metrics.distances import as_json, compare_sets, least_for_distances
from vqvae2_fast.metrics.features import ClassifierFeatures, measure_names
from vqvae2_fast.metrics.kernel_distance import LEAST_IMAGES
from vqvae2_fast.report.grids import sample_grid
from vqvae2_fast.report.trade_off import plot_trade_off
from vqvae2_fast.runs.interrupt import stop_requests
from vqvae2_fast.sampling.drawing import batches_of, best_batch_size, draw_into
from vqvae2_fast.sampling.rejection import class_probability, keep_share
from vqvae2_fast.sampling.series import SampleSeries, resolved_settings
from vqvae2_fast.training.cas import CasRow, classification_accuracy_score
from vqvae2_fast.training.classifier import check_classes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.console import Progress
    from vqvae2_fast.data import ImageSource
    from vqvae2_fast.data.stored_images import StoredImages
    from vqvae2_fast.metrics.feature_set import FeatureSet
    from vqvae2_fast.metrics.features import FeatureExtractor
    from vqvae2_fast.models.classifier import Classifier
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["SampleEvaluation", "SampleOptions"]

_BATCH = 64  # images
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)  # kept by rejection
_GRID = 12  # samples a class in pictures


@dataclass
class SampleOptions:
    """What of samples is measured."""

    images: int = 0
    """Samples, and real images, that distances are measured on; 0 measures none."""
    samples: Path | None = None
    """A folder of `vqvae2-fast sample`, of the classes in the same parts as the training images;
    without it samples are drawn into --out, each with the class of a training image."""
    features: tuple[str, ...] = ("auto",)
    """Networks to compare in: inception, efficientnet, classifier; auto takes inception where its
    weights are named, else efficientnet. The classifier is that of --classifier."""
    inception_weights: Path | None = None
    """FID's Inception; by default VQVAE2_FAST_INCEPTION."""
    classifier: Path | None = None
    """A classifier (`train-classifier`) that samples are scored by, for the rejection curve."""
    cas_epochs: int = 0
    """Measure the classification accuracy score with classifiers trained for so many epochs; 0
    leaves it out."""
    neighbours: int = 5
    """k of precision, recall, density and coverage (3 in the paper of the first two)."""
    seed: int = 0
    """Of the samples that are drawn here, and the choice of real images."""


class SampleEvaluation:
    """Samples beside real images; what is on the disk of an earlier run goes on.

    Sets: `reference`, training images; `other`, as many real ones that are not in it (held-out
    ones where there are enough): their distance is the floor; `reconstructed`, the reference's
    reconstructions; `sampled`.
    """

    def __init__(
        self,
        options: SampleOptions,
        pipeline: Pipeline,
        class_names: tuple[str, ...],
        train_set: ImageSource,
        held_out: ImageSource,
        out: Path,
        device: torch.device,
        progress: Progress,
        classifier: Classifier | None,
    ) -> None:
        self.options, self.pipeline, self.class_names = options, pipeline, class_names
        self.train_set, self.held_out, self.out = train_set, held_out, out
        self.device, self.progress, self.classifier = device, progress, classifier
        self.pictures: dict[str, Path] = {}
        self.lines: list[str] = []
        self.extractors: list[FeatureExtractor] = []

    def check(self) -> None:
        """Raises ValueError or RuntimeError if what was asked for cannot be measured."""
        options = self.options
        if options.images < 0 or options.cas_epochs < 0 or options.neighbours < 1:
            raise ValueError(
                "evaluate: expected --images and --cas-epochs of 0 or more, --neighbours of 1."
            )
        if not options.images:
            if options.classifier or options.cas_epochs or options.samples:
                raise ValueError(
                    "--images: name how many samples to measure with --samples, --classifier or "
                    "--cas-epochs."
                )
            return
        if options.images < LEAST_IMAGES:
            raise ValueError(
                f"--images: expected {LEAST_IMAGES} or more, got {options.images}: kernel "
                "distances, precision and recall mean nothing with fewer; a Fréchet distance needs "
                "as many as there are features (2048 of Inception, 1280 of EfficientNet-Lite0)."
            )
        most = max(min(len(self.train_set), len(self.held_out)), len(self.train_set) // 2)
        if options.images > most:
            raise ValueError(
                f"--images: the real/real floor needs twice as many real images, there are "
                f"{len(self.train_set)} to train on and {len(self.held_out)} held out: {most} at "
                f"most, got {options.images}."
            )
        if options.cas_epochs or self.classifier is not None:
            check_classes("evaluate", self.train_set, self.pipeline.num_classes)
            check_classes("evaluate", self.held_out, self.pipeline.num_classes)
        for name in options.features:
            if name != "classifier":
                self.extractors.append(
                    open_features(
                        name, inception_weights=options.inception_weights, device=self.device
                    )
                )
            elif self.classifier is None:
                raise ValueError("--features: classifier needs one, named by --classifier.")
            else:
                self.extractors.append(ClassifierFeatures(self.classifier))

    def run(self) -> dict[str, Any]:
        """All measures of samples, JSON-ready."""
        sets = self._sets()
        values: dict[str, Any] = {"sampled_images": self.options.images, "distances": {}}
        found = {
            extractor.name: {
                name: self._features(extractor, name, images) for name, images in sets.items()
            }
            for extractor in self.extractors
        }
        for extractor in self.extractors:
            values["distances"][extractor.name] = self._distances(extractor, found[extractor.name])
        rows: list[CasRow] = []
        if self.options.cas_epochs:
            rows = self._cas(sets)
            values["cas"] = [
                {
                    "trained_on": row.trained_on,
                    "images": row.images,
                    "tested_on": {name: asdict(one) for name, one in row.accuracies.items()},
                }
                for row in rows
            ]
        if self.classifier is not None:
            critic = next((row.classifier for row in rows if row.trained_on == "real"), None)
            values["rejection"] = self._rejection(sets["sampled"], found, critic)
        return values

    def _sets(self) -> dict[str, ImageSource]:
        count, options = self.options.images, self.options
        generator = torch.Generator().manual_seed(options.seed)
        order = torch.randperm(len(self.train_set), generator=generator)
        reference = ImageSubset(self.train_set, order[:count])
        other = ImageSubset(self.train_set, order[count : 2 * count])
        if len(self.held_out) >= count:
            rows = torch.randperm(len(self.held_out), generator=generator)[:count]
            other = ImageSubset(self.held_out, rows)
        sampled = self._samples(reference)
        if len(sampled) < count:
            raise ValueError(
                f"--samples: {options.samples} holds {len(sampled)} samples, --images asks for "
                f"{count}."
            )
        rows = torch.arange(count)
        self._picture(ImageSubset(sampled, rows))
        return {
            "reference": reference,
            "other": other,
            "reconstructed": self._reconstructed("reference", reference),
            "sampled": ImageSubset(sampled, rows),
        }

    def _samples(self, reference: ImageSubset) -> StoredImages:
        folder = self.options.samples
        if folder is None:
            folder = self.out / "samples"
            labels = tuple(reference.labels.tolist()) if self.pipeline.num_classes else ()
            none = self.pipeline.num_classes
            labels = tuple(none if label < 0 else label for label in labels)
            settings = resolved_settings(self.pipeline, seed=self.options.seed)
            series = SampleSeries(self.pipeline, self.class_names, settings, labels)
            self._draw(series, folder, self.options.images)
        return samples_of_folder(folder, self.out / "work" / "samples.raw", self.class_names)

    def _draw(self, series: SampleSeries, path: Path, count: int) -> None:
        with (
            closing(SampleFolder.begin(path, count, series.identity(), resume=True)) as folder,
            stop_requests() as stop,
        ):
            missing = folder.missing()
            wanted = sum(map(len, missing))
            draw_into(
                folder,
                series,
                batches_of(missing, best_batch_size(self.pipeline)),
                self.progress,
                wanted=wanted,
                before=count - wanted,
                after_row=lambda done: stop.check(
                    f"{done} of {count} samples are whole in {path}; the same command continues."
                ),
            )
            folder.finish()

    @torch.no_grad()
    def _reconstructed(self, name: str, images: ImageSource) -> StoredImages:
        vqvae = self.pipeline.vqvae
        batches = (
            (vqvae.decode(vqvae.encode(batch.to(self.device))), labels)
            for batch, labels in in_order(images, _BATCH)
        )
        path = self.out / "work" / f"reconstructed_{name}.raw"
        with self.progress.task(f"reconstruct {name}", len(images)) as task:
            return store_images(path, len(images), _counted(batches, task), images.class_names)

    def _features(self, extractor: FeatureExtractor, name: str, images: ImageSource) -> FeatureSet:
        folder = self.out / "work" / extractor.name / name
        with self.progress.task(f"{extractor.name} {name}", len(images)) as task:
            return extract_features(
                extractor, in_order(images, _BATCH), len(images), folder, progress=task.update
            )

    def _distances(
        self, extractor: FeatureExtractor, found: dict[str, FeatureSet]
    ) -> dict[str, Any]:
        pairs = {
            "floor": ("reference", "other"),
            "reconstructed": ("reconstructed", "other"),
            "sampled": ("reference", "sampled"),
            "sampled_vs_reconstructed": ("reconstructed", "sampled"),
        }
        rows = {}
        with self.progress.task(f"distances in {extractor.name}", len(pairs)) as task:
            for done, (name, (real, fake)) in enumerate(pairs.items(), start=1):
                estimates = compare_sets(found[real], found[fake], k=self.options.neighbours)
                rows[name] = as_json(estimates)
                task.update(done)
        names, least = measure_names(extractor), least_for_distances(found["reference"])
        floor, sampled = rows["floor"], rows["sampled"]
        for measure in ("frechet", "kernel"):
            if measure in sampled:
                one, other = sampled[measure], floor[measure]
                self.lines.append(
                    f"{names[measure]} of {self.options.images} samples: {one['value']:.4g} "
                    f"[{one['low']:.4g}, {one['high']:.4g}]; real against real "
                    f"{other['value']:.4g} [{other['low']:.4g}, {other['high']:.4g}]"
                )
        left_out = {m: n for m, n in least.items() if m not in sampled}
        if left_out:
            wanted = ", ".join(f"{names.get(m, m)} {n}" for m, n in left_out.items())
            self.lines.append(f"not measured for want of images (least number): {wanted}")
        return {
            "names": names,
            "rows": rows,
            "left_out": left_out,
            "images_per_second": found["sampled"].images_per_second,
        }

    def _cas(self, sets: dict[str, ImageSource]) -> list[CasRow]:
        train = {
            "real": sets["reference"],
            "reconstructed": sets["reconstructed"],
            "sampled": sets["sampled"],
        }
        test = {
            "real": self.held_out,
            "reconstructed": self._reconstructed("held_out", self.held_out),
        }
        rows = classification_accuracy_score(
            train,
            test,
            out=self.out / "work" / "cas",
            epochs=self.options.cas_epochs,
            seed=self.options.seed,
            device=self.device,
            progress=self.progress,
        )
        for row in rows:
            own = row.accuracies["real"]
            self.lines.append(
                f"trained on {row.images} {row.trained_on} images: {100 * own.top1:.2f} % of real "
                f"held-out ones [{100 * own.low:.2f}, {100 * own.high:.2f}]"
            )
        return rows

    def _rejection(
        self,
        sampled: ImageSource,
        found: dict[str, dict[str, FeatureSet]],
        critic: Classifier | None,
    ) -> dict[str, Any]:
        """The trade-off: what the shares that a classifier likes best measure."""
        assert self.classifier is not None
        labels = sampled.labels
        parts, right = [], []
        for images, own in in_order(sampled, _BATCH):
            parts.append(class_probability(self.classifier, images, own))
            with torch.no_grad():
                judge = critic or self.classifier
                right.append((judge(images.to(self.device)).argmax(1).cpu() == own).double())
        scores, correct = torch.cat(parts), torch.cat(right)
        points: list[dict[str, Any]] = []
        for share in _SHARES:
            rows = keep_share(scores, labels, share)
            point: dict[str, Any] = {
                "share": share,
                "images": len(rows),
                "accuracy": float(correct[rows].mean()),
                "least_probability": float(scores[rows].min()),
                "measures": {},
                "floor": {},
            }
            for name, own in found.items():
                kept = own["sampled"].select(rows)
                point["measures"][name] = as_json(compare_sets(own["reference"], kept))
                as_many = own["other"].select(torch.arange(len(rows)))
                point["floor"][name] = as_json(
                    compare_sets(own["reference"], as_many, intervals=False)
                )
            points.append(point)
        best = torch.cat(
            [
                own[scores[own].topk(min(_GRID, len(own))).indices]
                for own in ((labels == n).nonzero().flatten() for n in labels.unique())
            ]
        )
        self._picture(ImageSubset(sampled, best), "best")
        self.pictures["trade_off"] = self.out / "trade_off.png"
        names = {extractor.name: measure_names(extractor) for extractor in self.extractors}
        plot_trade_off(self.pictures["trade_off"], points, names)
        judged = "the classifier trained on the reference" if critic else "the judge itself"
        return {"points": points, "accuracy_by": judged}

    def _picture(self, images: ImageSubset, name: str = "samples") -> None:
        labels = images.labels
        rows = torch.cat([(labels == n).nonzero().flatten()[:_GRID] for n in labels.unique()])
        shown = replace(images, rows=images.rows[rows])
        pixels = torch.cat([batch for batch, _ in in_order(shown, _BATCH)])
        self.pictures[name] = self.out / f"{name}.png"
        self.out.mkdir(parents=True, exist_ok=True)
        sample_grid(pixels, labels[rows].tolist(), self.class_names).save(self.pictures[name])


def _counted(batches: Any, task: Any) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for images, labels in batches:
        yield images, labels
        done += len(images)
        task.update(done)
