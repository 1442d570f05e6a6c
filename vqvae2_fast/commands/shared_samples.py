"""A folder of samples that the processes of a run fill together."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae2_fast.data.sample_folder import SampleFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqvae2_fast.runs.ranks import Ranks

__all__ = ["shared_samples"]


@contextmanager
def shared_samples(
    ranks: Ranks, begin: Callable[[], SampleFolder], count: int, group: int = 1
) -> Iterator[tuple[SampleFolder, list[range]]]:
    """The folder, which the first process begins and the others join, and the samples it lacks.

    Args:
        count: Samples of the folder.
        group: See `SampleFolder.missing`.
    """
    with ExitStack() as stack:
        begun: list[SampleFolder] = []

        def first() -> dict[str, Any]:
            begun.append(stack.enter_context(closing(begin())))
            missing = begun[0].missing(group)
            return {"out": str(begun[0].path), "missing": [(r.start, r.stop) for r in missing]}

        told = ranks.run_on_rank0_and_broadcast(first)
        if not begun:
            joined = SampleFolder.join(Path(told["out"]), count)
            begun.append(stack.enter_context(closing(joined)))
        yield begun[0], [range(*bounds) for bounds in told["missing"]]
