"""Labels of a draw: numbers of classes, from numbers and names."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from itertools import cycle
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from vqvae2_fast.console.words import did_you_mean
from vqvae2_fast.data.groups import group_names, group_of
from vqvae2_fast.files.printable import short
from vqvae2_fast.ops._checks import check_int64

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vqvae2_fast.sampling.prior import PriorInterface

    Label = int | str | None
    Labels = Tensor | Sequence[Label] | None

__all__ = [
    "NO_CLASS",
    "check_words",
    "class_number",
    "class_numbers",
    "in_turn",
    "label_tensor",
    "labels_of_level",
]

T = TypeVar("T")

NO_CLASS = "none"
_MOST = 20  # names that an error lists


def label_tensor(
    labels: Labels,
    num_classes: int,
    class_names: Sequence[str] = (),
) -> Tensor | None:
    """Labels as int64 `[B]`; such a tensor is returned as it is, None stands for no labels.

    Args:
        labels: One per sample, as for `class_number`, or groups as for `class_numbers`: samples of
            a group get its classes in turn.

    Raises:
        ValueError: As `class_number`, or labels that are no list.
        TypeError: A tensor that is not int64.
    """
    if labels is None:
        return None
    if isinstance(labels, Tensor):
        check_int64("labels", labels)
        return labels
    if not num_classes:
        raise ValueError("expected no labels: the prior has no classes.")
    # Arrays of other libraries are lists too: they can be iterated again and have an order.
    in_order = hasattr(labels, "__iter__") and hasattr(labels, "__getitem__")
    if not in_order or isinstance(labels, str | Mapping | Set):
        raise ValueError(
            f"expected labels to be a list, one per sample, got {short(repr(labels))}"
            + (": a set has no order." if isinstance(labels, Set) else ".")
        )
    numbers = in_turn(labels, lambda label: class_numbers(label, num_classes, class_names))
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def check_words(labels: Tensor, num_classes: int, num_words: int) -> None:
    """Raises ValueError for labels with words, `[B, 1 + W]`, that a pipeline does not have."""
    if labels.dim() < 2:
        return
    first, words = num_classes + 1, labels[:, 1:]
    if not num_words:
        raise ValueError("expected labels without words: the priors have none.")
    if bool(((words != -1) & ((words < first) | (words >= first + num_words))).any()):
        raise ValueError(f"expected words in {first}..{first + num_words - 1}, or -1 for none.")


def labels_of_level(interface: PriorInterface, classes: Tensor, labels: Tensor) -> Tensor:
    """The labels of a level's prior.

    Args:
        classes: int64 `[B]`, its labels without words.
        labels: Those of the pipeline, `[B]` or `[B, 1 + W]`, which count words after "no class".
    """
    if labels.dim() < 2 or not interface.num_words:
        return classes
    shift = interface.label_layout.first_word - (interface.num_classes + 1)
    words = torch.where(labels[:, 1:] < 0, -1, labels[:, 1:] + shift)
    return torch.cat([classes[:, None], words], dim=1)


def in_turn(labels: Sequence[Label], classes_of: Callable[[Label], Iterable[T]]) -> list[T]:
    """A class for each label: labels that are equal get their classes in turn."""
    # By `repr`, because a value that cannot be hashed is to get its error from `classes_of`.
    unique = {repr(label): label for label in labels}
    turns = {key: cycle(classes_of(label)) for key, label in unique.items()}
    return [next(turns[repr(label)]) for label in labels]


def class_number(label: Label, num_classes: int, class_names: Sequence[str] = ()) -> int:
    """The number of a class.

    Args:
        label: Its number; its name, the beginning of one, or its number in digits, in upper or
            lower case, which matters only between names that are else equal; None or "none" for "no
            class", which has the number `num_classes`.

    Raises:
        ValueError: There is no such class, or there are several, which are listed.
    """
    if label is None:
        return num_classes
    if not isinstance(label, str):
        try:
            number = -1 if isinstance(label, bool) else operator.index(label)
        except TypeError:
            number = -1
        if not 0 <= number <= num_classes:
            raise ValueError(
                f"expected a label from 0 to {num_classes}, where {num_classes} stands "
                f'for "no class", got {label!r}.'
            )
        return number
    given = short(repr(label), 200)
    text, names = label.lower(), [name.lower() for name in class_names]
    found = [number for number, name in enumerate(class_names) if name == label]
    found = found or [number for number, name in enumerate(names) if name == text]
    if not found and text == NO_CLASS:
        return num_classes
    if not found and text.isdecimal():
        # Python refuses to convert thousands of digits.
        found = [int(text)] if len(text) < 20 and int(text) < num_classes else []
    elif not found:
        found = [number for number, name in enumerate(names) if name.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"the label {given} is the beginning of {_listed([class_names[n] for n in found])}; "
            "write more of the one you mean."
        )
    if not class_names:
        raise ValueError(
            f"expected a label below {num_classes}, or {NO_CLASS!r} for no class, got "
            f"{given}: no class names are known here. Names can be used with a pipeline that has "
            "class_names."
        )
    groups = group_names(class_names)
    listed = f"a class name ({_listed(class_names)})"
    if len(groups) < len(class_names) > _MOST:
        listed = f"the name of a group ({_listed(groups)}) or class ({_listed(class_names, 4)})"
    raise ValueError(
        f"expected a label below {num_classes} or the beginning of {listed}, got "
        f"{given}.{did_you_mean(label, (*groups, *class_names))}"
    )


def class_numbers(label: Label, num_classes: int, class_names: Sequence[str] = ()) -> list[int]:
    """The numbers of all classes of a group, such as "Flags - flag" of "flags", whose name or its
    beginning is given, in upper or lower case; otherwise the one number that `class_number` gives,
    with its errors."""
    if not isinstance(label, str):
        return [class_number(label, num_classes, class_names)]
    text, names = label.lower(), [name.lower() for name in class_names]
    groups = group_names(class_names)
    found = [group for group in groups if group == label]
    found = found or [group for group in groups if group.lower() == text]
    if not found and not text.isdecimal() and text != NO_CLASS:
        found = [group for group in groups if group.lower().startswith(text)]
    if len(found) != 1 or text in names:
        return [class_number(label, num_classes, class_names)]
    return [number for number, name in enumerate(class_names) if group_of(name) == found[0]]


def _listed(names: Sequence[str], most: int = _MOST) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
