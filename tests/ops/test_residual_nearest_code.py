"""`residual_nearest_code` and its statistics: exact to the bit, whoever computes them."""

from __future__ import annotations

import pytest
import torch
from helpers.compare import simd_level, simd_levels

from vqvae2_fast import ops
from vqvae2_fast.ops.nearest_code.op import nearest_code_reference

every_level = pytest.mark.parametrize("level", simd_levels())


def inputs(n=500, q=3, k=37, d=12, scale=0.6):
    g = torch.Generator().manual_seed(0)
    books = torch.stack([torch.randn(k, d, generator=g) * scale**i for i in range(q)])
    return torch.randn(n, d, generator=g), books


def by_definition(z, codebooks):
    """Section "Residual quantisation" of the definition, one `nearest_code` after the other."""
    residual, total, indices = z, torch.zeros_like(z), []
    for codebook in codebooks:
        index, _ = nearest_code_reference(residual, codebook)
        residual = residual - codebook[index]
        total = total + codebook[index]
        indices.append(index)
    return total, torch.stack(indices, 1), residual


def midpoints():
    """Vectors within some ulp of the middle of two sums of codes, so that most picks are near-ties.

    Codes are small multiples of 1/64: residuals are exact, and ties are ties."""
    g = torch.Generator().manual_seed(1)
    books = torch.randint(-64, 65, (3, 24, 10), generator=g) / 64.0
    first = books[0][torch.randint(24, (700,), generator=g)]
    second = books[1][torch.randint(24, (700, 2), generator=g)].mean(1)
    nudge = torch.randint(-2, 3, (700, 10), generator=g) * 2.0**-22
    return first + second + nudge, books


@every_level
@pytest.mark.parametrize("make", [inputs, midpoints])
def test_equals_the_definition_bit_for_bit(make, level):
    z, codebooks = make()
    with simd_level(level):
        z_q, indices, _ = ops.residual_nearest_code(z, codebooks)
    expected_z_q, expected, _ = by_definition(z, codebooks)
    assert torch.equal(indices, expected)
    assert torch.equal(z_q, expected_z_q)


@every_level
def test_one_quantiser_is_vector_quantize(level):
    z, codebooks = inputs(q=1)
    with simd_level(level):
        z_q, indices, commitments = ops.residual_nearest_code(z, codebooks)
        expected_z_q, expected, commitment = ops.vector_quantize(z, codebooks[0])
    assert torch.equal(indices[:, 0], expected)
    assert torch.equal(z_q, expected_z_q)
    torch.testing.assert_close(commitments[0], commitment, rtol=1e-6, atol=0)


@every_level
def test_a_shared_codebook_equals_copies_of_it(level):
    z, codebooks = inputs()
    shared = codebooks[:1].expand(4, -1, -1)
    z = z.requires_grad_()
    with simd_level(level):
        actual = ops.residual_nearest_code(z, shared)
        expected = ops.residual_nearest_code(z, shared.clone())
        gradients = [torch.autograd.grad(each[2].sum(), z)[0] for each in (actual, expected)]
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert torch.equal(*gradients)


@every_level
def test_nan_fills_up_a_smaller_codebook(level):
    z, codebooks = inputs()
    padded = codebooks.clone()
    padded[1, 20:] = torch.nan
    with simd_level(level):
        _, indices, _ = ops.residual_nearest_code(z, padded)
    _, first, residual = by_definition(z, codebooks[:1])
    assert torch.equal(indices[:, 0], first[:, 0])
    assert torch.equal(indices[:, 1], nearest_code_reference(residual, codebooks[1, :20])[0])


def test_inactive_quantisers_leave_no_trace():
    z, codebooks = inputs()
    z_q, indices, commitments = ops.residual_nearest_code(z, codebooks, num_active=2)
    expected = ops.residual_nearest_code(z, codebooks[:2])
    assert torch.equal(z_q, expected[0])
    assert torch.equal(indices[:, :2], expected[1])
    assert torch.equal(commitments[:2], expected[2])
    assert bool((indices[:, 2] == -1).all())
    assert float(commitments[2]) == 0
    counts, sums = ops.residual_code_statistics(z, codebooks, indices)
    assert int(counts[2].sum()) == 0
    assert not bool(sums[2].any())


@pytest.mark.parametrize("rotate", [False, True], ids=["straight_through", "rotate"])
def test_codebooks_may_move_before_backward(rotate):
    z, codebooks = inputs()
    z.requires_grad_()
    results = ops.residual_nearest_code(z, codebooks, rotate=rotate)
    (expected,) = torch.autograd.grad(results[0].sum() + results[2].sum(), z, retain_graph=True)
    codebooks.mul_(3)
    (actual,) = torch.autograd.grad(results[0].sum() + results[2].sum(), z)
    assert torch.equal(actual, expected)


@every_level
def test_commitments_are_finite_where_squares_are_not(level):
    z, codebooks = (1e19 * tensor for tensor in inputs(n=30, d=70))
    with simd_level(level):
        commitments = ops.residual_nearest_code(z, codebooks)[2]
    residual = by_definition(z, codebooks)[2]
    torch.testing.assert_close(commitments[-1], residual.double().square().mean().float())


def test_leading_sizes_are_kept():
    z, codebooks = inputs(n=24)
    flat = ops.residual_nearest_code(z, codebooks)
    z_q, indices, _ = ops.residual_nearest_code(z.view(2, 3, 4, -1), codebooks)
    assert indices.shape == (2, 3, 4, 3)
    assert torch.equal(z_q.view(24, -1), flat[0])
    counts, sums = ops.residual_code_statistics(z.view(2, 3, 4, -1), codebooks, indices)
    for actual, expected in zip(
        (counts, sums), ops.residual_code_statistics(z, codebooks, flat[1]), strict=True
    ):
        assert torch.equal(actual, expected)


@every_level
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_equal_bits_on_any_number_of_threads(threads, level, with_threads):
    z, codebooks = inputs(n=1500, q=4, k=70, d=33)
    dz_q = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    z.requires_grad_()

    def run():
        z_q, indices, commitments = ops.residual_nearest_code(z, codebooks, rotate=True)
        (dz,) = torch.autograd.grad([z_q, commitments.sum()], z, [dz_q, torch.ones(())])
        statistics = ops.residual_code_statistics(z, codebooks, indices)
        return z_q, indices, commitments, dz, *statistics

    with simd_level(level):
        actual, expected = with_threads(threads, run), with_threads(3, run)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@every_level
def test_statistics_equal_those_of_each_quantiser(level):
    z, codebooks = inputs()
    with simd_level(level):
        _, indices, _ = ops.residual_nearest_code(z, codebooks)
        counts, sums = ops.residual_code_statistics(z, codebooks, indices)
    residual = z
    for q, codebook in enumerate(codebooks):
        expected = ops.code_statistics(residual, indices[:, q], len(codebook))
        assert torch.equal(counts[q], expected[0])
        assert torch.equal(sums[q], expected[1])
        residual = residual - codebook[indices[:, q]]
