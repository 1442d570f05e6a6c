"""Sharded models: the rows that a process has of a weight, and checkpoints that all processes write
beside training, each its shard."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vqvae2_fast.checkpoints.checkpoint import sharded_save
from vqvae2_fast.checkpoints.files import host_copies
from vqvae2_fast.checkpoints.shards import rows_of, write_shard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from vqvae2_fast.runs.ranks import Ranks

__all__ = ["ShardedSave", "is_sharded", "local", "own_rows", "whole"]


class _AbandonedError(Exception):
    pass


class ShardedSave:
    """A save that all processes of a group begin after the same step.

    The tensors are copied at once; a thread writes the copies. The checkpoint gets its name in
    `finish`; until then those before are the newest.

    Args:
        path: Where the checkpoint will be.
        tensors: What this process has of the model, the average and the optimiser, by PART.NAME.
    """

    def __init__(
        self,
        ranks: Ranks,
        path: Path,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        *,
        state: Mapping[str, Any],
        class_names: Sequence[str],
    ) -> None:
        self._ranks, self._path, self._held = ranks, path, ExitStack()
        self._sums: list[dict[str, int]] = []
        self._written: dict[str, int] | str = ""  # the checksums, or what went wrong

        def begin() -> tuple[str, str]:
            save = sharded_save(path, model, state=state, class_names=class_names)
            folder, name, self._sums = self._held.enter_context(save)
            return folder, name

        folder, name = ranks.run_on_rank0_and_broadcast(begin)
        self._thread = Thread(target=self._write, args=(Path(folder), name, host_copies(tensors)))
        self._thread.start()

    def _write(self, folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
        ranks = self._ranks
        try:
            self._written = write_shard(folder, ranks.rank, ranks.count, name, tensors)
        except (OSError, SafetensorError) as error:
            self._written = str(error)

    def finish(self, *, block: bool) -> bool:
        """Give the checkpoint its name if all shards are written; all processes call this.

        Args:
            block: Until they are written.

        Returns:
            Whether it has its name.

        Raises:
            OSError: A process could not write its shard, or the first not the rest. Nothing is left
                of the checkpoint.
        """
        if block:
            self._thread.join()
        if self._ranks.max_over_ranks(int(self._thread.is_alive())):
            return False
        self._thread.join()
        written = self._ranks.gathered(self._written)
        failed = [f"process {n}: {e}" for n, e in enumerate(written) if isinstance(e, str)]
        if failed:
            self.abandon()
            raise OSError(f"{self._path} was not saved; {'; '.join(failed)}")
        self._sums += written
        self._ranks.run_on_rank0_and_broadcast(self._held.close)
        return True

    def abandon(self) -> None:
        """Leave nothing of the checkpoint."""
        self._thread.join()
        with suppress(_AbandonedError), self._held:
            raise _AbandonedError


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are DTensors."""
    return hasattr(next(model.parameters()), "to_local")


def local(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor that this process has, in place; another tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def own_rows(tensor: Tensor, sharded: Tensor) -> Tensor:
    """Of a whole tensor the rows that this process has of a sharded one of its size; all of them if
    that one is not sharded."""
    mesh = getattr(sharded, "device_mesh", None)
    if mesh is None:
        return tensor
    rows = rows_of(len(tensor), mesh.get_local_rank(), mesh.size())
    return tensor[rows.start : rows.stop]


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor from all its processes, which all call this; another tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
