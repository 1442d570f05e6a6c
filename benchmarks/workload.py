"""A piece of work that contenders do in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Run = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A piece of work.

    Args:
        op: The operator whose conformance tests must pass, and whose owner is recorded; "" for
            work of modules that run in PyTorch's operators.
        mode: What is timed, for the table.
        shape: N, K, D.
        flops: Arithmetic that the work needs, whoever does it.
        bytes: Minimum memory traffic: inputs read once, outputs written once.
        contenders: Makers by name, ours under "ours".
    """

    op: str
    mode: str
    shape: tuple[int, int, int]
    flops: int
    bytes: int
    contenders: dict[str, Callable[[], Run]] = field(default_factory=dict)

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        return f"{self.mode}_{self.size}"


def make_runs(contenders: Mapping[str, Callable[[], Run]]) -> dict[str, Run]:
    """What each contender runs, without those whose package is missing, which it names."""
    runs = {}
    for name, make in contenders.items():
        try:
            runs[name] = make()
        except ModuleNotFoundError as error:
            print(f"  {name}: left out, {error.name} is not installed (pip install '.[bench]')")
    return runs
