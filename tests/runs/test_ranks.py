"""The processes of a run: what those see that torchrun starts anew."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from vqvae2_fast.runs.ranks import Ranks


def test_restarted_processes_do_not_see_what_those_before_left_in_the_store(monkeypatch):
    server = dist.TCPStore("localhost", 0, is_master=True)
    shared = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(server.port),
        "WORLD_SIZE": "2",
        "RANK": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    stores = []
    for restarts in ("0", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        stores.append(Ranks.of_this_run()._store)
    stores[0].set("address of gloo", "gone")
    assert stores[1].check(["address of gloo"])
    assert not stores[2].check(["address of gloo"])


@pytest.mark.parametrize(
    ("device", "missing", "words"),
    [
        ("cuda", "is_nccl_available", "has no NCCL, .* on cuda need.* use device=cpu"),
        ("cpu", "is_available", "has no torch.distributed, .* on cpu need"),
    ],
)
def test_a_pytorch_without_the_backend_is_named(monkeypatch, device, missing, words):
    monkeypatch.setattr(f"torch.distributed.{missing}", lambda: False)
    joined = Ranks(0, 2).joined(torch.device(device))
    with pytest.raises(RuntimeError, match=words), joined:
        pass
