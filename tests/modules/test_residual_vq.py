"""Residual quantisers: the loop of the definition, statistics, dropout, shared codebooks."""

from __future__ import annotations

import pytest
import torch

import vqvae2_fast as vq2

D = 4


def batches(count: int, rows: int = 60) -> torch.Tensor:
    return torch.randn(count, rows, D, generator=torch.Generator().manual_seed(0))


def loop(quantizer: vq2.ResidualVQ, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Algorithm 1 of https://arxiv.org/abs/2107.03312 with `nearest_code`."""
    residual, total, indices = z, torch.zeros_like(z), []
    for number in range(len(quantizer.sizes)):
        codebook = quantizer.quantizers[0 if quantizer.shared_codebook else number].codebook
        index = vq2.ops.nearest_code(residual, codebook)[0]
        residual, total = residual - codebook[index], total + codebook[index]
        indices.append(index)
    return total, torch.stack(indices, dim=-1)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 3, 5)], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_codes_are_those_of_a_loop_over_residuals(sizes, shared):
    if shared and len(set(sizes)) > 1:
        sizes = (8,) * 4
    quantizer = vq2.ResidualVQ(sizes, D, shared_codebook=shared)
    for z in batches(3):
        quantizer(z)
    quantizer.eval()
    z = batches(1)[0]
    z_q, indices, _ = quantizer(z)
    expected, expected_indices = loop(quantizer, z)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(z_q, expected)


@pytest.mark.parametrize("update", ["forward", "step"])
def test_each_codebook_learns_from_its_residuals(update):
    quantizer = vq2.ResidualVQ((8, 4), D, update=update, restart=0.5, decay=0.8, seed=3, stream=1)
    apart = [
        vq2.VectorQuantizerEMA(
            size, D, update=update, restart=0.5, decay=0.8, seed=3, stream=1 + (number << 8)
        )
        for number, size in enumerate((8, 4))
    ]
    for z in batches(5):
        quantizer(z)
        residual = z
        for book in apart:
            residual = residual - book(residual)[0]
            if update == "step":
                book.update_codebook_()
        if update == "step":
            for book in quantizer.quantizers:
                book.update_codebook_()
        for ours, book in zip(quantizer.quantizers, apart, strict=True):
            torch.testing.assert_close(ours.state_dict(), book.state_dict())


def test_the_loss_is_the_sum_over_quantisers_and_moves_z():
    quantizer = vq2.ResidualVQ(8, D, 3, commitment_cost=0.5, update="step")
    quantizer(batches(1)[0])
    z = batches(1)[0].requires_grad_()
    _, indices, loss = quantizer(z)
    loss.backward()
    other = z.detach().clone().requires_grad_()
    residual, expected = other, 0.0
    for book, index in zip(quantizer.quantizers, indices.unbind(-1), strict=True):
        residual = residual - book.codebook[index]
        expected = expected + 0.5 * residual.square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(z.grad, other.grad)


def test_a_shared_codebook_learns_from_all_residuals():
    quantizer = vq2.ResidualVQ(8, D, 2, shared_codebook=True, update="step", restart=0, decay=0.5)
    z = batches(1)[0]
    _, indices, _ = quantizer(z)
    book = quantizer.quantizers[0]
    first = book.codebook[indices[:, 0]]
    vectors = torch.cat([z, z - first])
    counts, sums = vq2.ops.code_statistics(vectors, indices.T.flatten(), 8)
    before = book.cluster_size.clone()
    assert torch.equal(book.pending.counts, counts)
    torch.testing.assert_close(book.pending.sums, sums)
    book.update_codebook_()
    torch.testing.assert_close(book.cluster_size, 0.5 * before + 0.5 * counts)


def test_dropout_uses_a_prefix_that_differs_from_step_to_step():
    quantizer = vq2.ResidualVQ(8, D, 4, quantizer_dropout=True)
    again = vq2.ResidualVQ(8, D, 4, quantizer_dropout=True)
    numbers = []
    for z in batches(24):
        z_q, indices, loss = quantizer(z)
        used = (indices >= 0).all(0)
        assert torch.equal(used, (indices >= 0).any(0))
        assert torch.equal(used, used.sort(descending=True).values)
        numbers.append(int(used.sum()))
        assert torch.equal(again(z)[1], indices)
        assert z_q.isfinite().all()
        assert loss.isfinite()
    assert set(numbers) == {1, 2, 3, 4}
    assert (quantizer.eval()(batches(1)[0])[1] >= 0).all()


def test_codes_of_dropped_quantisers_add_nothing():
    quantizer = vq2.ResidualVQ(8, D, 3, quantizer_dropout=True)
    quantizer(batches(1)[0])
    quantizer.eval()
    indices = quantizer.encode(batches(1)[0])
    fewer = indices.clone()
    fewer[:, 1:] = -1
    assert torch.equal(quantizer.lookup(fewer), quantizer.quantizers[0].codebook[indices[:, 0]])


def test_groups_drop_the_same_quantisers_and_start_differently():
    quantizer = vq2.GroupedResidualVQ(2, 8, D, 3, quantizer_dropout=True)
    for z in batches(8):
        indices = quantizer(torch.cat([z[:, :2], z[:, :2]], dim=1))[1]
        assert torch.equal(indices[:, 0] >= 0, indices[:, 1] >= 0)
    first, second = (part.quantizers[0].codebook for part in quantizer.parts)
    assert not torch.equal(first, second)


def test_vectors_with_nan_move_no_code():
    quantizer = vq2.ResidualVQ(8, D, 2, restart=0)
    quantizer(batches(1)[0])
    z = batches(1)[0]
    z[5] = torch.nan
    quantizer(z)
    assert all(book.codebook.isfinite().all() for book in quantizer.quantizers)
