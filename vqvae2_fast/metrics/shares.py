"""Measures of a set in several processes: each takes its share of the batches.

Every sum has one term for each batch, and the terms of all processes are added exactly: the result
is that of one process, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ALONE", "Processes", "terms_of_all"]


class Processes(Protocol):
    """The processes of a run, such as `runs.ranks.Ranks`."""

    @property
    def rank(self) -> int: ...
    @property
    def count(self) -> int: ...
    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, which are ready for JSON."""


class _Alone:
    rank, count = 0, 1

    def gathered(self, value: Any) -> list[Any]:
        return [value]


ALONE = _Alone()


def terms_of_all(processes: Processes, terms: Iterable[Any]) -> list[Any]:
    """The terms of all processes, in no order that means anything."""
    return [term for own in processes.gathered(list(terms)) for term in own]
