"""What an engine made of a plan for one kind of draw, kept for the next draw of that kind."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Kept"]

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """At most `capacity` values of a plan, by key; they go when the plan does.

    A value is taken out by whoever uses it and put back afterwards, so that two draws that run at
    once, or one inside another's `progress`, never share one. The value must not hold the plan
    itself: nothing would ever go.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # By the plan's id, least recently used first.
        self._of_plan: dict[int, dict[Hashable, Value]] = {}

    def take(self, plan: object, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value that was put back under a key, or a new one.

        Before a new one is made, the least recently used are dropped until it has room: their
        memory may be needed for it.
        """
        values = self._of_plan.get(id(plan), {})
        if key in values:
            return values.pop(key)
        self._drop(values, self._capacity - 1)
        return make()

    def put_back(self, plan: object, key: Hashable, value: Value) -> None:
        if id(plan) not in self._of_plan:
            self._of_plan[id(plan)] = {}
            weakref.finalize(plan, self._of_plan.pop, id(plan), None)
        values = self._of_plan[id(plan)]
        values.pop(key, None)
        values[key] = value
        self._drop(values, self._capacity)

    def count(self, plan: object) -> int:
        """How many values of a plan are kept."""
        return len(self._of_plan.get(id(plan), {}))

    @staticmethod
    def _drop(values: dict[Hashable, Value], left: int) -> None:
        while len(values) > left:
            del values[next(iter(values))]
