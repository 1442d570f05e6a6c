"""A piece of work that contenders do in turns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A piece of work.

    Args:
        operators: All our operators that it times, whose conformance tests must pass. The first is
            recorded, with its owner.
        mode: What is timed, for the table.
        shape: N, K, D.
        flops: Arithmetic that the work needs, whoever does it.
        bytes: Minimum memory traffic: inputs read once, outputs written once.
        contenders: Makers by name, ours under "ours".
    """

    operators: tuple[str, ...]
    mode: str
    shape: tuple[int, int, int]
    flops: int
    bytes: int
    contenders: dict[str, Callable[[], Run]] = field(default_factory=dict)

    @property
    def operator(self) -> str:
        """The one that is recorded."""
        return self.operators[0]

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        return f"{self.mode}_{self.size}"


def sharing(
    inputs: Callable[[], tuple[Any, ...]], makers: Mapping[str, Callable[..., Run]]
) -> dict[str, Callable[[], Run]]:
    """Contenders by name, each made from the same inputs, which are made for the first of them:
    who asks a workload for its contenders' names need not wait for its data."""
    inputs = functools.cache(inputs)

    def maker_of(make: Callable[..., Run]) -> Callable[[], Run]:
        return lambda: make(*inputs())

    return {name: maker_of(make) for name, make in makers.items()}


def make_runs(contenders: Mapping[str, Callable[[], Run]]) -> dict[str, Run]:
    """What each contender runs, without those whose package is missing, which it names."""
    runs = {}
    for name, make in contenders.items():
        try:
            runs[name] = make()
        except ModuleNotFoundError as error:
            print(f"  {name}: left out, {error.name} is not installed (pip install '.[bench]')")
    return runs
