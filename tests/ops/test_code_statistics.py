"""What is special to `code_statistics` and `ema_update_`: threads, large codes, versions, modes."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import ops


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0], ids=["spread", "mostly_one", "one_code"])
def test_number_of_threads_does_not_matter(share):
    generator = torch.Generator().manual_seed(0)
    n, k = 30_000, 50
    z = torch.randn(n, 7, generator=generator)
    indices = torch.randint(k, (n,), generator=generator)
    indices[torch.rand(n, generator=generator) < share] = 17
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.code_statistics(z, indices, k))
    finally:
        torch.set_num_threads(before)
    for counts, sums in results:
        assert torch.equal(counts, indices.bincount(minlength=k))
        assert torch.equal(sums, results[0][1])
    exact = torch.zeros(k, 7, dtype=torch.float64).index_add_(0, indices, z.double())
    weight = torch.zeros(k, 7, dtype=torch.float64).index_add_(0, indices, z.double().abs())
    assert ((results[0][1].double() - exact).abs() <= 2.0**-23 * weight).all()


def test_the_first_bad_index_is_named():
    indices = torch.zeros(40_000, dtype=torch.int64)
    indices[[25_000, 39_000]] = 5
    with pytest.raises(RuntimeError, match=r"expected indices in 0..4, got 5 at row 25000\."):
        ops.code_statistics(torch.zeros(40_000, 2), indices, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [-2, 5])
def test_a_bad_index_of_residual_codes_is_an_error(dtype, index):
    z, codebooks = torch.zeros(3, 2, dtype=dtype), torch.zeros(2, 5, 2, dtype=dtype)
    indices = torch.tensor([[0, -1], [4, index], [1, 2]])
    with pytest.raises(RuntimeError, match=r"expected ind.*-1\.\.4, got"):
        ops.residual_code_statistics(z, codebooks, indices)


def test_a_bad_index_of_float64_vectors_is_an_error():
    with pytest.raises(RuntimeError, match=r"expected indices in 0\.\.4, got one"):
        ops.code_statistics(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 5]), 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averages_of_statistics_with_a_gradient_have_none(dtype):
    sums = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    cluster_size, embed_avg = torch.ones(3, dtype=dtype), torch.ones(3, 2, dtype=dtype)
    codebook = torch.nn.Parameter(torch.zeros(3, 2, dtype=dtype))
    ops.ema_update_(torch.ones(3), sums, cluster_size, embed_avg, codebook)
    assert codebook.is_leaf
    assert not embed_avg.requires_grad
    assert torch.all(codebook == 1)


def test_averages_changed_in_place_are_known_to_autograd():
    cluster_size, embed_avg, codebook = torch.ones(3), torch.ones(3, 2), torch.ones(3, 2)
    weight = torch.ones(3, 2, requires_grad=True)
    product = weight * codebook
    ops.ema_update_(torch.ones(3), torch.ones(3, 2), cluster_size, embed_avg, codebook)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_tensors_of_inference_mode_change_only_there():
    counts, sums = torch.ones(9), torch.randn(9, 6)
    with torch.inference_mode():
        averages = torch.ones(9), torch.randn(9, 6), torch.randn(9, 6)
        ops.ema_update_(counts, sums, *averages)
    with pytest.raises(RuntimeError, match="cluster_size to be an ordinary tensor"):
        ops.ema_update_(counts, sums, *averages)
