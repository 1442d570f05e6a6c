"""Words of a draw: what images are to have beside their class, such as "glasses=variant01".

Labels with words are int64 `[B, 1 + W]`, the class first, -1 for no word. Those of a pipeline count
words after the classes and "no class"; labels.py gives them as a level's prior counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.data.words import part_of
from vqvae2_fast.files.printable import short
from vqvae2_fast.sampling.labels import label_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae2_fast.sampling.labels import Labels
    from vqvae2_fast.sampling.pipeline import Pipeline

__all__ = ["with_words", "word_numbers"]


def with_words(pipeline: Pipeline, labels: Labels, words: Sequence[str]) -> Tensor | None:
    """Labels with these words beside each class, for whatever draws from the pipeline.

        labels = with_words(pipeline, ["lorelei"] * 8, ["glasses=any"])
        images = sample_images(pipeline, 8, labels=labels)

    Args:
        labels: As of `sample_images`.

    Raises:
        ValueError: As `word_numbers`, or words without a class: in training none were without.
        TypeError: Labels that are a tensor and not int64.
    """
    classes = label_tensor(labels, pipeline.num_classes, pipeline.class_names)
    numbers = word_numbers(words, pipeline.word_names)
    if not numbers:
        return classes
    if classes is None or bool((classes == pipeline.num_classes).any()):
        raise ValueError(
            f"expected a class with the words {short(', '.join(words))}, got none: the priors have "
            "learnt words beside a class only."
        )
    told = torch.tensor(numbers, dtype=torch.int64, device=classes.device) + pipeline.num_classes
    return torch.cat([classes[:, None], (told + 1).expand(len(classes), -1)], dim=1)


def word_numbers(words: Sequence[str], names: Sequence[str]) -> list[int]:
    """The numbers of words, ascending: the order in which their vectors are added.

    Raises:
        ValueError: There are no words, or none of this name; or two of one part, which contradict
            one another.
    """
    if isinstance(words, str):
        raise ValueError(f"expected words to be a list, got {short(repr(words))}.")
    parts: dict[str, str] = {}
    for word in words:
        if not names:
            raise ValueError(f"expected no words: the priors have none, got {short(word)}.")
        part = part_of(word)
        if word not in names:
            values = [name for name in names if part_of(name) == part]
            known = values or list(dict.fromkeys(map(part_of, names)))
            kind = "words" if values else "words part=value of the parts"
            raise ValueError(
                f"expected {kind} {short(', '.join(known), 600)}, got {short(word)}."
                f"{did_you_mean(word, values or known)}"
            )
        if parts.setdefault(part, word) != word:
            raise ValueError(
                f"expected one value of {short(part)}, got {short(parts[part])} and {short(word)}, "
                "which contradict one another."
            )
    places = {name: number for number, name in enumerate(names)}
    return sorted(places[word] for word in parts.values())
