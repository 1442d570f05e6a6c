"""Two gloo processes on shares of given vectors, against one process on the whole.

The two processes run this file as a script, all scenarios in one start.
"""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.models import SMALL_VQVAE
from safetensors.torch import load_file, save_file

from vqvae2_fast.models.vqvae2 import VQVAE2
from vqvae2_fast.modules import BSQ, IBQ, LFQ, GroupedResidualVQ, MultiScaleVQ, ResidualVQ, SimVQ
from vqvae2_fast.modules.quantizer import VectorQuantizerEMA

K, D = 16, 6
# Numbers of vectors of (rank 0, rank 1) in each training forward; a row has at least two steps.
SHARES = {
    "halves": [(60, 60)] * 4,
    "unequal": [(13, 100), (90, 7), (50, 50)],
    "empty_share": [(80, 0), (0, 80), (80, 0)],
    "one_process_never_has_any": [(0, 80)] * 3,
    "fewer_vectors_than_codes": [(3, 4)] * 3,
    "nobody_has_any_at_first": [(0, 0), (40, 30), (0, 0), (40, 30)],
}
WORLD_SIZE = 2


def vectors(scenario: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(list(SHARES).index(scenario))
    return [torch.randn(sum(share), D, generator=generator) for share in SHARES[scenario]]


def train(scenario: str, update: str, rank: int | None) -> VectorQuantizerEMA:
    """The quantiser after all steps, on a rank's share or (None) on the whole."""
    # A low decay and a high threshold: some codes restart.
    quantizer = VectorQuantizerEMA(K, D, decay=0.7, restart=0.5, update=update, seed=4, stream=1)
    for z, (first, _) in zip(vectors(scenario), SHARES[scenario], strict=True):
        share = z if rank is None else (z[:first], z[first:])[rank]
        _, _, loss = quantizer(share)
        assert torch.isfinite(loss)
        if update == "step":
            quantizer.update_codebook_()
    return quantizer


def images() -> torch.Tensor:
    return torch.rand(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def train_model(rank: int | None) -> VQVAE2:
    """One optimiser step of two micro-batches, under DistributedDataParallel in a group.

    The model is part of a larger module, as in frameworks for training.
    """
    torch.manual_seed(0)
    config = replace(SMALL_VQVAE, image_size=(16, 16), image_channels=1)
    model = VQVAE2(config)
    wrapped = torch.nn.Sequential(model)
    if rank is not None:
        wrapped = torch.nn.parallel.DistributedDataParallel(wrapped)
    for batch in images():
        share = batch if rank is None else batch[4 * rank : 4 * rank + 4]
        model.loss(share, wrapped(share)).backward()
    model.update_codebooks_()
    return model


FAMILY = {
    "residual": lambda: ResidualVQ(8, D, 3, decay=0.7, restart=0.5, quantizer_dropout=True),
    "residual_shared": lambda: ResidualVQ(8, D, 2, decay=0.7, restart=0.5, shared_codebook=True),
    "grouped": lambda: GroupedResidualVQ(2, (8, 4), D, decay=0.7, restart=0.5),
    "lfq": lambda: LFQ(16, D),
    "bsq": lambda: BSQ(16, D),
    "simvq": lambda: SimVQ(16, D),
    "ibq": lambda: IBQ(16, D, temperature=0.5),
    "scales": lambda: MultiScaleVQ(8, D, (1, (2, 3)), decay=0.7, restart=0.5, num_phi=1),
    "own_scales": lambda: MultiScaleVQ(8, D, (1, (2, 3)), shared_codebook=False, restart=0.5),
}


def train_one_of_the_family(name: str, rank: int | None) -> dict[str, torch.Tensor]:
    """State after three steps on halves, under DistributedDataParallel in a group."""
    torch.manual_seed(0)
    quantizer = FAMILY[name]()
    wrapped = quantizer
    if rank is not None and list(quantizer.parameters()):
        wrapped = torch.nn.parallel.DistributedDataParallel(quantizer, broadcast_buffers=False)
    for z in vectors("halves")[:3]:
        share = z if rank is None else z.chunk(2)[rank]
        if isinstance(quantizer, MultiScaleVQ):
            share = share.view(-1, 2, 3, D)
        leaf = share.clone().requires_grad_()
        z_q, _, loss = wrapped(leaf)
        (z_q.square().mean() + loss).backward()
        with torch.no_grad():
            for weight in quantizer.parameters():
                weight -= 0.01 * weight.grad
                weight.grad = None
    return quantizer.state_dict()


MASKED = {
    "ema": lambda: VectorQuantizerEMA(K, D, decay=0.7, restart=0.5),
    "step": lambda: VectorQuantizerEMA(K, D, decay=0.7, restart=0.5, update="step"),
    "residual": FAMILY["residual"],
    "shared": FAMILY["residual_shared"],
}


def train_masked(name: str, rank: int | None) -> dict[str, torch.Tensor]:
    """State after five steps on shares of vectors of which a part counts, in one step none of
    rank 0."""
    quantizer, generator = MASKED[name](), torch.Generator().manual_seed(0)
    for step in range(5):
        z = torch.randn(2, 60, D, generator=generator)
        mask = torch.rand(2, 60, generator=generator) < 0.5
        mask[0] &= step != 2
        own = slice(None) if rank is None else slice(rank, rank + 1)
        quantizer(z[own], mask=mask[own])
        if name == "step":
            quantizer.update_codebook_()
    return quantizer.state_dict()


USES = {
    f"{kind.__name__}-{scenario}": (kind, scenario)
    for kind in (LFQ, BSQ)
    for scenario in ("unequal", "empty_share", "nobody_has_any_at_first")
}


def use_of_codes(name: str, rank: int | None) -> dict[str, torch.Tensor]:
    """The entropy loss of one forward, all but its part of use negligible, and its gradient."""
    kind, scenario = USES[name]
    torch.manual_seed(0)
    quantizer = kind(
        16, D, commitment_cost=0.0, entropy_weight=1e-6, diversity=1e6, temperature=1.0
    )
    z, first = vectors(scenario)[0], SHARES[scenario][0][0]
    share = z if rank is None else (z[:first], z[first:])[rank]
    leaf = share.clone().requires_grad_()
    loss = quantizer(leaf)[2]
    loss.backward()
    return {"loss": loss.detach(), "gradient": leaf.grad}


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD_SIZE
    )
    for update in ("forward", "step"):
        for scenario in SHARES:
            quantizer = train(scenario, update, rank)
            save_file(quantizer.state_dict(), folder / f"{scenario}-{update}-{rank}")
    save_file(train_model(rank).state_dict(), folder / f"model-{rank}")
    for name in FAMILY:
        save_file(train_one_of_the_family(name, rank), folder / f"{name}-{rank}")
    for name in MASKED:
        save_file(train_masked(name, rank), folder / f"masked-{name}-{rank}")
    for name in USES:
        save_file(use_of_codes(name, rank), folder / f"use-{name}-{rank}")
    # Wrappers of models are parts of cycles and hold the group, whose threads would outlive Python.
    gc.collect()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_ranks) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, WORLD_SIZE, folder)
    return folder


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("update", ["forward", "step"])
@pytest.mark.parametrize("scenario", SHARES)
def test_shares_leave_the_codebook_of_the_whole(folder: Path, scenario: str, update: str) -> None:
    whole = train(scenario, update, None).state_dict()
    for rank in range(WORLD_SIZE):
        shared = load_file(folder / f"{scenario}-{update}-{rank}")
        assert shared["initialised"]
        assert torch.equal(shared["steps"], whole["steps"])
        assert torch.equal(shared["cluster_size"], whole["cluster_size"])
        assert relative_error(shared["codebook"], whole["codebook"]) < 1e-6
        assert relative_error(shared["embed_avg"], whole["embed_avg"]) < 1e-6


@pytest.mark.parametrize("scenario", SHARES)
def test_both_processes_have_the_same_codebook_to_the_bit(folder: Path, scenario: str) -> None:
    first, second = (load_file(folder / f"{scenario}-forward-{rank}") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_scenarios_restart_codes() -> None:
    with_restarts = train("unequal", "forward", None)
    mean = with_restarts.cluster_size.mean()
    without = VectorQuantizerEMA(K, D, decay=0.7, restart=0, seed=4, stream=1)
    for z in vectors("unequal"):
        without(z)
    assert (without.cluster_size < 0.5 * mean).any()
    assert not torch.equal(with_restarts.codebook, without.codebook)


def test_data_parallel_micro_batches_keep_each_process_statistics(folder: Path) -> None:
    whole = train_model(None).state_dict()
    shared = load_file(folder / "model-1")
    for level in range(2):
        name = f"quantizers.{level}.cluster_size"
        assert torch.equal(shared[name], whole[name])
        name = f"quantizers.{level}.codebook"
        # Convolutions of half a batch may round differently.
        assert relative_error(shared[name], whole[name]) < 1e-5


@pytest.mark.parametrize("name", USES)
def test_the_use_of_codes_is_that_of_all_vectors(folder: Path, name: str) -> None:
    """Also if a process has none: it takes part in the sum."""
    whole = use_of_codes(name, None)
    shares = [load_file(folder / f"use-{name}-{rank}") for rank in range(WORLD_SIZE)]
    for share in shares:
        torch.testing.assert_close(share["loss"], whole["loss"], rtol=1e-4, atol=1e-6)
    # DistributedDataParallel takes the mean of the processes' gradients.
    gradient = torch.cat([share["gradient"] for share in shares]) / WORLD_SIZE
    torch.testing.assert_close(gradient, whole["gradient"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_two_processes_leave_the_quantiser_of_one(folder: Path, name: str) -> None:
    whole = train_one_of_the_family(name, None)
    for rank in range(WORLD_SIZE):
        shared = load_file(folder / f"{name}-{rank}")
        assert shared.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(shared[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", MASKED)
def test_two_processes_count_what_one_would_of_a_mask(folder: Path, name: str) -> None:
    whole = train_masked(name, None)
    for rank in range(WORLD_SIZE):
        shared = load_file(folder / f"masked-{name}-{rank}")
        for key, value in whole.items():
            torch.testing.assert_close(shared[key], value, rtol=1e-5, atol=1e-6, msg=key)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
