"""`forward(z, mask=...)`: what a mask leaves out counts nowhere."""

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from vqvae2_fast.modules import (
    BSQ,
    FSQ,
    IBQ,
    LFQ,
    GroupedResidualVQ,
    MultiHeadVQ,
    RandomProjectionQuantizer,
    ResidualFSQ,
    ResidualVQ,
    SimVQ,
    VectorQuantizer,
    VectorQuantizerEMA,
    VQBridge,
)

K, D = 8, 4
# Codes restart in these runs.
MOVING = {"decay": 0.7, "restart": 0.5}
MAKE = {
    "defaults": partial(VectorQuantizerEMA, K, D, **MOVING),
    "cosine": partial(VectorQuantizerEMA, K, D, metric="cosine", **MOVING),
    "rotation": partial(VectorQuantizerEMA, K, D, gradient="rotation", **MOVING),
    "debiased": partial(VectorQuantizerEMA, K, D, ema_start="debiased", **MOVING),
    "residual": partial(ResidualVQ, (K, 4), D, **MOVING),
    "residual_rotation": partial(ResidualVQ, K, D, 2, gradient="rotation", **MOVING),
    "residual_joint": partial(ResidualVQ, (K, 4), D, joint_code=True, **MOVING),
    "residual_dropout": partial(ResidualVQ, K, D, 3, quantizer_dropout=True, **MOVING),
    "grouped": partial(GroupedResidualVQ, 2, K, D, 2, **MOVING),
    "grouped_joint": partial(GroupedResidualVQ, 2, 4, D, 2, joint_code=True, **MOVING),
    "heads": partial(MultiHeadVQ, 2, K, D, **MOVING),
    "heads_shared": partial(MultiHeadVQ, 2, K, D, shared_codebook=True, **MOVING),
    "heads_joint": partial(MultiHeadVQ, 2, K, D, joint_code=True, **MOVING),
    "gradient": partial(VectorQuantizer, K, D),
    "gradient_cosine": partial(VectorQuantizer, K, D, metric="cosine"),
    "direction": partial(VectorQuantizer, K, D, metric="direction"),
    "gradient_rotation": partial(VectorQuantizer, K, D, gradient="rotation"),
    "simvq": partial(SimVQ, K, D),
    "bridge": partial(VQBridge, K, D, codes_per_token=2, hidden_dim=8),
    "ibq": partial(IBQ, K, D, temperature=0.5),
    "fsq": partial(FSQ, [4, 3, 5, 4]),
    "fsq_projected": partial(FSQ, [8, 5], D),
    "residual_fsq": partial(ResidualFSQ, [4, 3], 3, D),
    "residual_fsq_joint": partial(ResidualFSQ, [4, 3], 3, D, joint_code=True),
    "lfq": partial(LFQ, 16),
    "lfq_projected": partial(LFQ, 32, D),
    "bsq": partial(BSQ, 32, D),
}
STARTING = [name for name in MAKE if MAKE[name].keywords.keys() >= MOVING.keys()]


def made(name: str, **options):
    torch.manual_seed(0)
    return MAKE[name](**options)


def batches(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Vectors `[3, 20, D]` and masks `[3, 20]` of about half of them."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(3, 20, D, generator=generator), torch.rand(3, 20, generator=generator) < 0.5)
        for _ in range(count)
    ]


def books(quantizer) -> list[VectorQuantizerEMA]:
    return [part for part in quantizer.modules() if isinstance(part, VectorQuantizerEMA)]


@pytest.mark.parametrize("name", MAKE)
def test_training_equals_that_on_the_vectors_that_count(name) -> None:
    masked, alone = made(name), made(name)
    for z, mask in batches():
        whole, part = z.clone().requires_grad_(), z[mask].requires_grad_()
        z_q, indices, loss = masked(whole, mask=mask)
        expected_z_q, expected, expected_loss = alone(part)
        weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
        ((z_q * weight).sum() + loss).backward()
        ((expected_z_q * weight[mask]).sum() + expected_loss).backward()
        assert torch.equal(indices[mask], expected)
        assert (indices[~mask] == -1).all()
        torch.testing.assert_close(z_q[mask], expected_z_q)
        assert torch.equal(z_q[~mask], z[~mask])
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(masked.perplexity, alone.perplexity)
        torch.testing.assert_close(whole.grad[mask], part.grad)
        assert torch.equal(whole.grad[~mask], weight[~mask])
    for one, other in zip(books(masked), books(alone), strict=True):
        torch.testing.assert_close(one.usage, other.usage)
    torch.testing.assert_close(masked.state_dict(), alone.state_dict())
    for one, other in zip(masked.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_these_runs_restart_codes() -> None:
    with_restarts, without = made("defaults"), made("defaults", restart=0)
    for z, mask in batches():
        with_restarts(z, mask=mask)
        without(z, mask=mask)
    assert not torch.equal(with_restarts.codebook, without.codebook)


@pytest.mark.parametrize("name", MAKE)
def test_evaluation_equals_that_of_the_vectors_that_count(name) -> None:
    quantizer = made(name)
    quantizer(batches()[0][0])
    quantizer.eval()
    z, mask = batches()[1]
    z_q, indices, loss = quantizer(z, mask=mask)
    perplexity = quantizer.perplexity
    expected_z_q, expected, expected_loss = quantizer(z[mask])
    torch.testing.assert_close(z_q[mask], expected_z_q)
    assert torch.equal(indices[mask], expected)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(perplexity, quantizer.perplexity)


@pytest.mark.parametrize("name", MAKE)
def test_nothing_counts_where_all_is_masked(name) -> None:
    quantizer = made(name)
    quantizer(batches()[0][0])
    codebooks = [book.codebook.clone() for book in books(quantizer)]
    z = batches()[1][0].requires_grad_()
    z_q, indices, loss = quantizer(z, mask=torch.zeros(3, 20, dtype=torch.bool))
    (z_q.sum() + loss).backward()
    assert loss == 0
    assert quantizer.perplexity == 1
    assert (indices == -1).all()
    assert torch.equal(z_q, z)
    assert torch.equal(z.grad, torch.ones_like(z))
    for book, codes in zip(books(quantizer), codebooks, strict=True):
        # The average of no vectors: only the smoothing's ε moves codes.
        torch.testing.assert_close(book.codebook, codes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", STARTING)
def test_a_start_waits_for_a_vector_that_counts(name) -> None:
    quantizer = made(name)
    z, mask = batches()[0]
    quantizer(z, mask=torch.zeros_like(mask))
    assert not any(book.initialised for book in books(quantizer))
    quantizer(z, mask=mask)
    assert all(book.initialised for book in books(quantizer))


@pytest.mark.parametrize("name", MAKE)
def test_what_is_masked_may_be_anything(name) -> None:
    quantizer, clean = made(name), made(name)
    for z, mask in batches(3):
        spoiled = torch.where(mask[..., None], z, torch.nan).requires_grad_()
        z_q, _, loss = quantizer(spoiled, mask=mask)
        clean(z, mask=mask)
        (z_q[mask].sum() + loss).backward()
        assert spoiled.grad.isfinite().all()
    torch.testing.assert_close(quantizer.state_dict(), clean.state_dict(), rtol=0, atol=0)


def test_while_quantisation_waits_only_indices_tell() -> None:
    quantizer = VectorQuantizerEMA(K, D, metric="cosine", update="step", quantize_after=2)
    z, mask = batches()[0]
    z_q, indices, loss = quantizer(z, mask=mask)
    assert torch.equal(z_q[~mask], z[~mask])
    torch.testing.assert_close(z_q[mask].norm(dim=-1), torch.ones(int(mask.sum())))
    assert torch.equal(indices, mask.long() - 1)
    assert loss == 0


@pytest.mark.parametrize("name", ["defaults", "residual"])
def test_micro_batches_restart_from_the_latest_that_counts(name) -> None:
    masked, alone = made(name, update="step"), made(name, update="step")
    for _ in range(2):
        for z, mask in batches(2):
            own = mask.clone()
            masked(z, mask=own)
            own.fill_(True)  # a caller may write the mask of the next batch into the same memory
            alone(z[mask])
        for quantizer in (masked, alone):
            for book in books(quantizer):
                book.update_codebook_()
    torch.testing.assert_close(masked.state_dict(), alone.state_dict())


@pytest.mark.parametrize(
    "name", ["defaults", "cosine", "residual", "grouped", "heads_shared", "fsq", "lfq", "simvq"]
)
def test_a_training_step_is_one_graph(name) -> None:
    torch._dynamo.reset()
    counters.clear()
    eager = made(name)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for z, mask in batches():
        results = []
        for call in (eager, compiled):
            leaf = z.clone().requires_grad_()
            z_q, indices, loss = call(leaf, mask=mask)
            (z_q.square().sum() + loss).backward()
            results.append([z_q, indices, loss, leaf.grad])
        torch.testing.assert_close(*results)
    torch.testing.assert_close(module.state_dict(), eager.state_dict())
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(3, 19).bool(), ValueError, r"expected mask \[3, 20\] .*, got \[3, 19\]"),
        (torch.ones(20).bool(), ValueError, r"expected mask \[3, 20\] .*, got \[20\]"),
        (torch.ones(3, 20), TypeError, r"expected mask bool, got float32: pass mask\.bool\(\)"),
        ([[True]], TypeError, "expected mask to be a tensor, got a list"),
    ],
    ids=["size", "rank", "dtype", "list"],
)
def test_another_mask_is_refused(name, mask, error, message) -> None:
    with pytest.raises(error, match=message):
        made(name)(torch.randn(3, 20, D), mask=mask)


def test_labels_of_masked_vectors_are_none() -> None:
    quantizer = RandomProjectionQuantizer(K, D, 3)
    z, mask = batches()[0]
    codes, indices, _ = quantizer(z, mask=mask)
    perplexity = quantizer.perplexity
    expected_codes, expected, _ = quantizer(z[mask])
    assert torch.equal(codes[mask], expected_codes)
    assert torch.equal(indices[mask], expected)
    assert not codes[~mask].any()
    assert (indices[~mask] == -1).all()
    torch.testing.assert_close(perplexity, quantizer.perplexity)
