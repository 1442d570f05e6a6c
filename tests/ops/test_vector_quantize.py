"""The gradient of `vector_quantize` against its textbook form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast import ops
from vqvae2_fast.ops import _native
from vqvae2_fast.ops.vector_quantize.op import (
    VECTOR_QUANTIZE_BACKWARD,
    vector_quantize_backward_reference,
    vector_quantize_reference,
)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 7, 6, generator=generator, dtype=dtype, requires_grad=True)
    return z, torch.randn(11, 6, generator=generator, dtype=dtype)


def test_forward_is_the_exact_codebook_row():
    z, codebook = inputs(torch.float32)
    z_q, indices, _ = ops.vector_quantize(z, codebook)
    assert torch.equal(z_q, codebook[indices])


def test_gradient_is_straight_through_plus_commitment():
    z, codebook = inputs()
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)

    z_q, indices, commitment = ops.vector_quantize(z, codebook)
    (actual,) = torch.autograd.grad((z_q * weight).sum() + 3 * commitment, z)

    code = codebook[indices]
    straight_through = z + (code - z).detach()
    loss = (straight_through * weight).sum() + 3 * F.mse_loss(z, code)
    (expected,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_gradient_of_each_result_alone():
    z, codebook = inputs(torch.float32)
    z_q, indices, commitment = ops.vector_quantize(z, codebook)
    (straight,) = torch.autograd.grad(z_q.sum(), z, retain_graph=True)
    assert torch.equal(straight, torch.ones_like(z))
    (pulled,) = torch.autograd.grad(commitment, z)
    torch.testing.assert_close(pulled, 2 * (z - codebook[indices]).detach() / z.numel())


def test_no_gradient_reaches_the_codebook():
    z, codebook = inputs()
    codebook.requires_grad_()
    z_q, _, commitment = ops.vector_quantize(z, codebook)
    (z_q.sum() + commitment).backward()
    assert codebook.grad is None


def test_few_codes_and_many_have_the_same_gradient():
    """Whether backward reads codes from z_q or from a copy of the codebook does not show."""
    z, codebook = inputs(torch.float32)
    unused = torch.full((8, 6), 1e9)
    gradients = []
    for codes in (codebook[:3], torch.cat([codebook[:3], unused])):
        z_q, _, commitment = ops.vector_quantize(z, codes)
        gradients += torch.autograd.grad(z_q.square().sum() + 3 * commitment, z)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("copies", [1, 4])
def test_half_vectors_move_to_their_codes_as_the_codebook_holds_them(copies):
    """And not to z_q, which is rounded to their dtype by more than what separates them."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(64, 16, generator=generator)
    near = codebook + 0.003 * torch.randn(64, 16, generator=generator)
    z = near.repeat(copies, 1).bfloat16().requires_grad_()
    _, indices, commitment = ops.vector_quantize(z, codebook)
    (actual,) = torch.autograd.grad(commitment, z)
    expected = 2 * (z.double() - codebook[indices].double()) / z.numel()
    assert (actual - expected).norm() < 0.01 * expected.norm()


def test_a_result_larger_than_the_caches_has_the_same_values():
    """Results of 8 MiB are written past the caches, if their rows are whole vectors."""
    generator = torch.Generator().manual_seed(4)
    z, dz_q = (torch.randn(2**18, 16, generator=generator) for _ in range(2))
    codebook = torch.randn(5, 16, generator=generator)
    for dim in (16, 15):
        part = z[:, :dim].clone().requires_grad_()
        z_q, indices, commitment = ops.vector_quantize(part, codebook[:, :dim].contiguous())
        torch.autograd.backward([z_q, commitment], [dz_q[:, :dim], torch.ones(())])
        assert torch.equal(z_q, codebook[indices, :dim])
        expected = vector_quantize_backward_reference(
            dz_q[:, :dim], torch.ones(()), part.detach(), z_q
        )
        torch.testing.assert_close(part.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
def test_backward_refuses_an_index_outside_of_the_codebook():
    z, codebook = torch.zeros(5, 4), torch.zeros(3, 4)
    for k in (3, -1):
        indices = torch.tensor([0, 1, 2, k, 0])
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"expected indices in 0\.\.2"):
            VECTOR_QUANTIZE_BACKWARD(z, torch.ones(()), z, codebook, indices)


def test_commitment_is_float32_for_half_input():
    z, codebook = inputs(torch.bfloat16)
    assert ops.vector_quantize(z, codebook)[2].dtype == torch.float32


def test_commitment_is_finite_where_squares_are_not():
    z, codebook = 1e19 * torch.randn(9, 70), 1e19 * torch.randn(5, 70)
    commitment = ops.vector_quantize(z, codebook)[2]
    torch.testing.assert_close(commitment, vector_quantize_reference(z, codebook)[2])


@pytest.mark.parametrize("num_codes", [11, 3])
def test_backward_does_not_need_the_codebook_as_it_was(num_codes):
    """The averages may move the codebook between forward and backward, which reads z_q or, of few
    codes, a copy."""
    z, codebook = inputs(torch.float32)
    codebook = codebook[:num_codes]
    z_q, _, commitment = ops.vector_quantize(z, codebook)
    (expected,) = torch.autograd.grad(z_q.sum() + commitment, z, retain_graph=True)
    codebook.zero_()
    (actual,) = torch.autograd.grad(z_q.sum() + commitment, z)
    assert torch.equal(actual, expected)


def test_commitment_does_not_depend_on_threads():
    generator = torch.Generator().manual_seed(2)
    z, codebook = torch.randn(5000, 8, generator=generator), torch.randn(40, 8, generator=generator)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.vector_quantize(z, codebook)[2])
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("num_codes", [11, 3])
def test_compiled_gradient_equals_eager(num_codes):
    z, codebook = inputs(torch.float32)
    codebook = codebook[:num_codes]
    loss = lambda z: sum(r.sum() for r in ops.vector_quantize(z, codebook)[::2])  # noqa: E731
    (expected,) = torch.autograd.grad(loss(z), z)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (actual,) = torch.autograd.grad(compiled(z), z)
    assert torch.equal(actual, expected)


def test_the_commitment_of_many_half_vectors_has_a_gradient():
    """2/(N·D), here a gradient as small, is 0 in float16."""
    generator = torch.Generator().manual_seed(3)
    z, z_q = (100 * torch.randn(2, 7, 6, generator=generator)).half()
    gradient = torch.tensor(1e-7)
    actual = vector_quantize_backward_reference(torch.zeros_like(z), gradient, z, z_q)
    expected = gradient * 2 / z.numel() * (z.float() - z_q.float())
    assert actual.count_nonzero() > 0
    assert torch.equal(actual, expected.half())
