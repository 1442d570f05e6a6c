"""The processes of one run under `torchrun`: who they are, and how they talk to one another.

Losses, gradients and codebooks are summed by `torch.distributed` where they arise. Here is what
surrounds them: joining and leaving the group, one process preparing for all, agreeing.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

__all__ = ["LostProcessError", "Ranks"]

_Made = TypeVar("_Made")
# Reading and decoding a set may take the first process hours. If it ends, so does the waiting.
_PREPARATION = timedelta(days=7)


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """This process's number among those of the run, and how many there are.

    Args:
        restarts: How often `torchrun` has restarted all processes after one failed.
        timeout: Seconds that a process waits for the others, except while the first prepares.
    """

    rank: int = 0
    count: int = 1
    restarts: int = 0
    timeout: float = 1800
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @classmethod
    def of_this_run(cls, timeout: float = timeout) -> Ranks:
        """From the variables that `torchrun` sets; one process without them."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        rank = int(os.environ.get("RANK", "0")) if count > 1 else 0
        return cls(rank, count, restarts, timeout)

    @classmethod
    def of_group(cls) -> Ranks:
        """Those of the default group of `torch.distributed`; one process without a group."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        return cls(dist.get_rank(), dist.get_world_size(), restarts)

    def device(self, asked: torch.device) -> torch.device:
        """Each process its own GPU, where a GPU without a number was asked for."""
        if self.count > 1 and asked.type == "cuda" and asked.index is None:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return asked

    @functools.cached_property
    def _store(self) -> Any:
        """The store that `torchrun` keeps, or the first process without it."""
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous  # a fifth of a second, for few

        with self._naming_losses():
            store = next(rendezvous("env://", timeout=timedelta(seconds=self.timeout)))[0]
        # torchrun restarts all processes when one fails, with the same store. Those before left
        # their addresses in it, which gloo would wait for.
        return dist.PrefixStore(f"vqvae2_fast/{self.restarts}", store)  # type: ignore[attr-defined]

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Makes the processes the default group in the block: gloo for CPU tensors, NCCL for GPUs.

        Raises:
            LostProcessError: Another process ended or did not answer.
            RuntimeError: This PyTorch lacks the backend of the device.
        """
        if self.count == 1:
            yield
            return
        import torch.distributed as dist

        on_gpu = device.type == "cuda"
        if not dist.is_available() or (on_gpu and not dist.is_nccl_available()):
            raise RuntimeError(
                f"torchrun: this PyTorch has no {'NCCL' if on_gpu else 'torch.distributed'}, which "
                f"several processes on {device.type} need. Install a build with it, or use "
                "device=cpu."
            )
        if on_gpu:
            torch.cuda.set_device(device)
        with self._naming_losses():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.count,
                timeout=timedelta(seconds=self.timeout),
            )
            yield
        # A wrapper of a model is part of a cycle and holds the group, whose threads would live on.
        gc.collect()
        dist.destroy_process_group()

    @contextmanager
    def _naming_losses(self) -> Iterator[None]:
        import torch.distributed as dist

        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise LostProcessError(
                f"process {self.rank} of {self.count} lost another one: it ended, or did not "
                f"answer within timeout={self.timeout:g} seconds; its own message says why. "
                "Continue the run with resume."
            ) from error

    def run_on_rank0_and_broadcast(self, prepare: Callable[[], Any]) -> Any:
        """What `prepare`, called only in the first process, returns; it must be ready for JSON.

        Raises:
            Exception: What `prepare` raised, in the first process.
            SystemExit: In the other processes then, with code 2; the first one prints why.
        """
        if self.count == 1:
            return prepare()
        import torch.distributed as dist

        in_group = dist.is_initialized()
        told: dict[str, Any] | None = None
        if self.rank:
            told = self._broadcast(None) if in_group else self._heard()
            if told is None:
                raise SystemExit(2)
            return told["value"]
        try:
            value = prepare()
            told = {"value": value}
        finally:
            if in_group:
                self._broadcast(told)
            else:
                self._tell(told)
        return value

    @staticmethod
    def _broadcast(told: dict[str, Any] | None) -> Any:
        import torch.distributed as dist

        box = [json.dumps(told)]
        dist.broadcast_object_list(box)
        return json.loads(box[0])

    def _key(self) -> str:
        return str(next(self._calls))

    def _tell(self, told: dict[str, Any] | None) -> None:
        key = self._key()
        self._store.set(f"{key}/told", json.dumps(told))
        # Without torchrun the store lives in this process, which may be done before all heard.
        heard = [f"{key}/heard/{rank}" for rank in range(1, self.count)]
        with self._naming_losses():
            self._store.wait(heard, timedelta(seconds=self.timeout))

    def _heard(self) -> Any:
        key = self._key()
        with self._naming_losses():
            self._store.wait([f"{key}/told"], _PREPARATION)
        told = json.loads(self._store.get(f"{key}/told"))
        self._store.set(f"{key}/heard/{self.rank}", "")
        return told

    def first_waits(self) -> None:
        """Returns at once in all processes but the first, and there once all others are here."""
        if self.count == 1:
            return
        key = self._key()
        if self.rank:
            self._store.set(f"{key}/here/{self.rank}", "")
            return
        here = [f"{key}/here/{rank}" for rank in range(1, self.count)]
        with self._naming_losses():
            self._store.wait(here, _PREPARATION)

    def rank0_first(self, make: Callable[[], _Made]) -> _Made:
        """What `make` returns, called in the first process and, once that is done, in the others.

        Files that it leaves are then there for the others. Raises as `run_on_rank0_and_broadcast`.
        """
        made: list[_Made] = []
        self.run_on_rank0_and_broadcast(lambda: made.append(make()))
        return made[0] if made else make()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the processes of the group, in place."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes of the group, ready for JSON, by their numbers."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, json.dumps(value))
        return [json.loads(text) for text in found]

    def max_over_ranks(self, number: int) -> int:
        """The largest of the processes' numbers; called by all of them, without a GPU's waiting."""
        if self.count == 1:
            return number
        import torch.distributed as dist

        box = torch.tensor(number, dtype=torch.int64, device="cpu")
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def wait(self) -> None:
        """Returns once all processes of the group are here."""
        self.max_over_ranks(0)

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises ValueError, on every process, unless all have the same facts (ready for JSON)."""
        plain = json.loads(json.dumps(facts, default=str, sort_keys=True))
        first, *others = self.gathered(plain)
        for rank, other in enumerate(others, start=1):
            differ = [
                f"{name} is {other.get(name)!r} on process {rank}, {first.get(name)!r} on process 0"
                for name in sorted({*first, *other})
                if other.get(name) != first.get(name)
            ]
            if differ:
                raise ValueError(
                    f"the processes of a run have to agree, but {'; '.join(differ)}. Start "
                    "all with the same options, data and versions."
                )
