"""Codebooks of the compatible modules on two gloo processes, against one with all vectors.

The two processes run this file as a script, all cases in one start.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from vqvae2_fast.compat.encodec import ResidualVectorQuantization
from vqvae2_fast.compat.lucidrains import VectorQuantize
from vqvae2_fast.compat.rosinality import Quantize


class Encodec(ResidualVectorQuantization):
    """Takes vectors `[B, T, D]`, as the others do."""

    def __init__(self, kmeans_init: bool) -> None:
        super().__init__(num_quantizers=2, dim=6, codebook_size=16, kmeans_init=kmeans_init)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return super().forward(x.mT)


WORLD_SIZE = 2
MAKE = {
    "rosinality": lambda: Quantize(6, 16),
    "lucidrains": lambda: VectorQuantize(6, 16),
    "lucidrains_cosine_heads": lambda: VectorQuantize(
        6, 16, codebook_dim=3, heads=2, separate_codebook_per_head=True, use_cosine_sim=True
    ),
    "lucidrains_not_synchronised": lambda: VectorQuantize(6, 16, sync_codebook=False),
    "lucidrains_kmeans_and_dead_codes": lambda: VectorQuantize(
        6, 16, kmeans_init=True, threshold_ema_dead_code=2
    ),
    "lucidrains_all_codes_dead": lambda: VectorQuantize(6, 16, threshold_ema_dead_code=1e9),
    "encodec": lambda: Encodec(kmeans_init=False),
    "encodec_kmeans": lambda: Encodec(kmeans_init=True),
}
SUMS = ("rosinality", "lucidrains", "lucidrains_cosine_heads", "encodec")
STARTED = ("lucidrains_kmeans_and_dead_codes", "encodec_kmeans")


def batches() -> torch.Tensor:
    return torch.randn(4, 1, 80, 6, generator=torch.Generator().manual_seed(1))


def train(name: str, rank: int | None) -> nn.Module:
    """Four steps on a rank's half of the vectors, or (None) on all of them."""
    torch.manual_seed(0)
    module = MAKE[name]()
    for x in batches():
        module(x if rank is None else x[:, 40 * rank : 40 * rank + 40])
    return module


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD_SIZE
    )
    for name in MAKE:
        save_file(train(name, rank).state_dict(), folder / f"{name}-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, run_ranks) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, WORLD_SIZE, folder)
    return folder


@pytest.mark.parametrize("name", SUMS)
def test_halves_leave_the_codebook_of_the_whole(ranks: Path, name: str) -> None:
    whole = train(name, None).state_dict()
    for rank in range(WORLD_SIZE):
        shared = load_file(ranks / f"{name}-{rank}")
        for key, value in whole.items():
            assert torch.allclose(shared[key].float(), value.float(), rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", [*SUMS, *STARTED])
def test_both_processes_have_the_same_codebook_to_the_bit(ranks: Path, name: str) -> None:
    first, second = (load_file(ranks / f"{name}-{rank}") for rank in range(WORLD_SIZE))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_dead_codes_become_vectors_of_both_processes(ranks: Path) -> None:
    codes = load_file(ranks / "lucidrains_all_codes_dead-1")["_codebook.embed"][0]
    rows = [tuple(row.tolist()) for row in batches()[-1, 0]]
    places = [rows.index(tuple(code.tolist())) for code in codes]
    assert len(set(places)) == len(places)
    assert min(places) < 40 <= max(places)


def test_without_synchronisation_the_codebooks_differ(ranks: Path) -> None:
    name = "lucidrains_not_synchronised"
    first, second = (load_file(ranks / f"{name}-{rank}") for rank in range(WORLD_SIZE))
    assert not torch.equal(first["_codebook.embed"], second["_codebook.embed"])


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
