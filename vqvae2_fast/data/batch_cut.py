"""How a step's batch is cut: into micro-batches, and each of these into the parts of processes.

The content of the batch does not depend on the cut, so neither does what is learnt from it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchCut", "check_rank"]


def check_rank(rank: int, world_size: int) -> None:
    """Raises ValueError unless `rank` is the number of one of `world_size` processes."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}) (world_size), got {rank}.")


@dataclass(frozen=True)
class BatchCut:
    """The parts that one process takes of a batch: one part of each micro-batch.

    Args:
        batch_size: Items of the whole batch.
        accumulate: Micro-batches, as equal as can be.
        rank, world_size: Number of the process and how many there are; each takes a contiguous
            part of every micro-batch, and all parts are as equal as can be.

    Raises:
        ValueError: A micro-batch has fewer items than there are processes; or there is no
            micro-batch, or no process of this number.
    """

    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be >= 1, got {self.accumulate}.")
        check_rank(self.rank, self.world_size)
        smallest = self.batch_size // self.accumulate
        if smallest < self.world_size:
            least = self.accumulate * self.world_size
            raise ValueError(
                f"a batch of {self.batch_size} in {self.accumulate} micro-batches leaves "
                f"{smallest} items for {self.world_size} processes; expected a batch of at least "
                f"{least}, or fewer micro-batches or processes."
            )

    def parts(self) -> list[range]:
        """This process's items of each micro-batch, as numbers in the whole batch."""
        found = []
        for number in range(self.accumulate):
            first = self.batch_size * number // self.accumulate
            size = self.batch_size * (number + 1) // self.accumulate - first
            found.append(
                range(
                    first + size * self.rank // self.world_size,
                    first + size * (self.rank + 1) // self.world_size,
                )
            )
        return found
