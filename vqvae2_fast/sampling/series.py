"""A numbered series of samples: the label, the known codes and the settings of each.

All of it is a function of the sample's number, so any process can draw any sample.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from vqvae2_fast.models.configs import level_names
from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.modules.contexts import device_of
from vqvae2_fast.sampling.choice import choose, warn_once
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.rejection import RejectionRule, class_probability
from vqvae2_fast.sampling.settings import level_settings
from vqvae2_fast.sampling.words import with_words

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae2_fast.models.classifier import Classifier
    from vqvae2_fast.sampling.batches import SampleBatch
    from vqvae2_fast.sampling.known import Known
    from vqvae2_fast.sampling.pipeline import Pipeline
    from vqvae2_fast.sampling.settings import DrawSettings

__all__ = ["Judge", "SampleSeries", "resolved_settings"]

# The same for all levels.
_NOT_LISTED = ("seed", "engine")


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier of the classes that are drawn, and the rule by which it rejects samples."""

    classifier: Classifier
    rule: RejectionRule

    def identity(self) -> dict[str, Any]:
        return {"classifier": weights_hash(self.classifier), **asdict(self.rule)}


@dataclass(frozen=True, eq=False)
class SampleSeries:
    """Samples 0, 1, 2, ... of a pipeline.

    Args:
        settings: One per level, coarse to fine.
        classes: Labels, used in turn; empty if the priors have none. `num_classes` is "no class".
        known: Images to complete: sample n completes image n modulo their number.
        known_labels: int64, a label for each known image, in place of `classes`.
        judge: Rejects samples.
        words: What each sample is to have beside its class, see `with_words`.
        classes_from: Where `classes` come from, which `identity` then says in place of a list.
    """

    pipeline: Pipeline
    settings: tuple[DrawSettings, ...]
    classes: tuple[int, ...] = ()
    known: Known | None = None
    known_labels: Tensor | None = None
    judge: Judge | None = None
    classes_from: str = ""
    words: tuple[str, ...] = ()

    @property
    def group(self) -> int:
        """How many samples, all of one class, are drawn and judged together."""
        return 1 if self.judge is None else self.judge.rule.among

    @property
    def levels(self) -> tuple[str, ...]:
        return level_names(len(self.pipeline.priors))

    def known_image(self, sample: int) -> int:
        """Number of the image that a sample completes; 0 where nothing is known."""
        return sample // self.group % len(self.known) if self.known is not None else 0

    def label(self, sample: int) -> int | None:
        if self.known_labels is not None:
            return int(self.known_labels[self.known_image(sample)])
        if not self.classes:
            return None
        # Each known image is completed in every class: the class changes after a round through the
        # images.
        turn = sample // self.group
        turn = turn // len(self.known) if self.known is not None else turn
        return self.classes[turn % len(self.classes)]

    def class_name(self, label: int | None) -> str | None:
        """The name of a label; None without classes and for "no class"."""
        if label is None or label == self.pipeline.num_classes:
            return None
        names = self.pipeline.class_names
        return names[label] if names else str(label)

    def batch(self, samples: range) -> dict[str, Any]:
        """`labels`, `known` and `candidates` of these samples, for `draw_batch`."""
        arguments: dict[str, Any] = {}
        if self.label(samples.start) is not None:
            device = device_of(self.pipeline.priors[0])
            classes = torch.tensor(
                [self.label(n) for n in samples], device=device, dtype=torch.int64
            )
            arguments["labels"] = with_words(self.pipeline, classes, self.words)
        if self.known is not None:
            arguments["known"] = self.known.batch([self.known_image(n) for n in samples])
            arguments["candidates"] = self.known.hole.candidates
        return arguments

    def judged(self, drawn: SampleBatch) -> tuple[list[bool], list[float] | None]:
        """Which samples of a batch are kept, and the probabilities that decided it."""
        if self.judge is None:
            return [True] * len(drawn), None
        assert drawn.labels is not None
        classes = drawn.labels if drawn.labels.dim() == 1 else drawn.labels[:, 0]
        # One group at a time, because a network rounds differently in batches of other sizes.
        groups = zip(drawn.images.split(self.group), classes.split(self.group), strict=True)
        probabilities = torch.cat(
            [class_probability(self.judge.classifier, *group) for group in groups]
        )
        return self.judge.rule.kept(probabilities).tolist(), probabilities.tolist()

    def rows(
        self, drawn: SampleBatch, probabilities: list[float] | None = None
    ) -> list[dict[str, Any]]:
        """What the index says of each sample of a batch."""
        rows = []
        for row, log_prob in enumerate(drawn.log_prob):
            sample = drawn.first_sample + row
            label = self.label(sample)
            values: dict[str, Any] = {"label": label, "class": self.class_name(label)}
            if self.words:
                values["words"] = list(self.words)
            if self.known is not None:
                values["known"] = self.known_image(sample)
            rounded = [round(value, 4) for value in log_prob]
            values["log_prob"] = dict(zip(self.levels, rounded, strict=True))
            if drawn.effective:
                effective = [round(value, 2) for value in drawn.effective[row]]
                values["effective_candidates"] = dict(zip(self.levels, effective, strict=True))
            if probabilities is not None:
                values["class_probability"] = round(probabilities[row], 6)
            rows.append({**values, "settings": self.drawing()})
        return rows

    def identity(self) -> dict[str, Any]:
        """Everything that determines the samples, ready for JSON; a resumed run must keep to it."""
        models = dict(zip(self.levels, map(weights_hash, self.pipeline.priors), strict=True))
        known = self.known and {"source": self.known.source, **self.known.hole.origin}
        labels: str | list[int] = list(self.classes)
        if self.known_labels is not None:
            labels = "of the known images"
        elif self.classes_from:
            labels = self.classes_from
        elif self.classes == tuple(range(self.pipeline.num_classes)):
            labels = "all"
        return {
            "weights": {"vqvae": weights_hash(self.pipeline.networks()[0]), **models},
            "labels": labels,
            **({"words": list(self.words)} if self.words else {}),
            "known": known,
            **self.drawing(),
            **({} if self.judge is None else {"rejection": self.judge.identity()}),
        }

    def drawing(self) -> dict[str, Any]:
        """The settings that a sample depends on, ready for JSON; a list has one value per level."""
        levels = [asdict(level) for level in self.settings]
        per_level = {
            name: [level[name] for level in levels] for name in levels[0] if name not in _NOT_LISTED
        }
        return {"seed": levels[0]["seed"], **per_level, "engine": levels[0]["engine"]}


def resolved_settings(
    pipeline: Pipeline, *, batch_size: int = 1, **settings: Any
) -> tuple[DrawSettings, ...]:
    """`level_settings` of a pipeline, with the engine that `auto` stands for here.

    So all samples of a series are drawn by one engine, whose name is written down with them. Where
    levels would be drawn by different engines, their settings stay as given, with `auto`.

    Args:
        batch_size: Most maps that are drawn together, on which it depends what fits a GPU.

    Raises:
        ValueError: As `level_settings`, or guidance where there are no classes.
    """
    levels = level_settings(len(pipeline.priors), **settings)
    if not pipeline.num_classes and any(level.guided for level in levels):
        raise ValueError("guidance_scale: the priors have no classes to guide to; leave it out.")
    choices = [
        choose(
            level.engine,
            prior,
            interface,
            batch_size=batch_size,
            guided=level.guided and interface.num_classes > 0,
        )
        for level, prior, interface in zip(
            levels, pipeline.priors, map(interface_of, pipeline.priors), strict=True
        )
    ]
    for choice in choices:
        warn_once(choice.warning)
    if len({choice.engine for choice in choices}) > 1:
        return levels
    return tuple(
        replace(level, engine=choice.engine) for level, choice in zip(levels, choices, strict=True)
    )
