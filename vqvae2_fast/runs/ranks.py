"""The processes of one run under `torchrun`: their ranks, and what the first sends the others."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """This process's number among those of the run, and how many there are."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_this_run(cls) -> Ranks:
        """From the variables that `torchrun` sets; one process without them."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(int(os.environ.get("RANK", "0")), count) if count > 1 else cls()

    def device(self, asked: torch.device) -> torch.device:
        """Each process its own GPU, where a GPU without a number was asked for."""
        if self.count > 1 and asked.type == "cuda" and asked.index is None:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return asked

    def told_by_first(self, prepare: Callable[[], Any]) -> Any:
        """What `prepare` returns, JSON-ready, called in the first process only.

        Raises:
            Exception: What `prepare` raised, in the first process.
            SystemExit: In the others then, with code 2: the first tells why.
        """
        if self.count == 1:
            return prepare()
        from torch.distributed.rendezvous import rendezvous  # a fifth of a second, for few

        store, _, _ = next(rendezvous("env://"))
        # torchrun starts all processes anew when one fails, with the same store.
        key = f"vqvae2_fast/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        if self.rank:
            told = json.loads(store.get(f"{key}/told"))
            store.set(f"{key}/heard/{self.rank}", "")
            if told is None:
                raise SystemExit(2)
            return told["value"]
        told = None
        try:
            value = prepare()
            told = {"value": value}
        finally:
            store.set(f"{key}/told", json.dumps(told))
            # Without torchrun the store lives in this process, which may be done before all heard.
            store.wait([f"{key}/heard/{rank}" for rank in range(1, self.count)])
        return value
