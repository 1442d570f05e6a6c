"""Attention with dropout on a CPU keeps no matrix of logits, whatever the dtype."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import ops
from vqvae2_fast.ops import _native
from vqvae2_fast.ops.causal_attention.op import (
    causal_attention_fused_reference,
    causal_attention_reference,
)


@pytest.mark.parametrize("dropout_on", ["logits", "probabilities"])
def test_half_precision_equals_the_definition(dropout_on):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 21, 5, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    rest = (0.4, dropout_on, torch.tensor(11))
    out = ops.causal_attention(q, k, v, *rest)
    assert out.dtype == torch.bfloat16
    expected = causal_attention_reference(q.double(), k.double(), v.double(), *rest)
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2**-8)
    dout = torch.randn_like(out)
    actual = torch.autograd.grad(out, (q, k, v), dout)
    exact = torch.autograd.grad(expected, (q, k, v), dout.double())
    torch.testing.assert_close(actual, exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_size_of_the_logits_is_kept(dtype):
    q, k, v = (torch.randn(1, 2, 64, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, id):
        ops.causal_attention(q, k, v, 0.1, "logits", torch.tensor(3))
    assert max(kept) <= q.numel()


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_gradients_are_finite_for_very_large_logits(dropout_p):
    """Of 1e9, whose ulp is 64: a prior has them if its activations grow in its first steps."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 64, 8) * 2e4 for _ in range(3))
    tensors = [tensor.requires_grad_() for tensor in (q, k, v)]
    out = ops.causal_attention(*tensors, dropout_p, "logits", torch.tensor(3))
    for gradient in torch.autograd.grad(out.sum(), tensors):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_positions_have_no_attention(dtype, dropout_p):
    q, k, v = (torch.randn(2, 3, 0, size, dtype=dtype) for size in (4, 4, 5))
    assert ops.causal_attention(q, k, v, dropout_p, "logits", torch.tensor(3)).shape == v.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queries_without_channels_see_all_earlier_positions_alike(dtype):
    q = k = torch.zeros(1, 1, 5, 0, dtype=dtype)
    v = torch.randn(1, 1, 5, 2, dtype=dtype)
    out = ops.causal_attention(q, k, v, 1e-12, "probabilities", torch.tensor(3))  # drops none
    means = torch.stack([v[0, 0, :i].mean(0) for i in range(1, 5)])
    torch.testing.assert_close(out[0, 0, 1:], means)


def test_no_positions_have_no_gradients():
    q, k, v = (torch.randn(2, 3, 0, size, requires_grad=True) for size in (4, 4, 5))
    out = ops.causal_attention(q, k, v, 0.1, "logits", torch.tensor(3))
    # The kernel has no second derivatives: the reference computes such a gradient.
    gradients = torch.autograd.grad(out.sum(), (q, k, v), create_graph=True)
    assert [dx.shape for dx in gradients] == [q.shape, k.shape, v.shape]


def test_no_positions_have_no_sums_of_exponentials():
    q, v = torch.zeros(2, 3, 0, 4), torch.zeros(2, 3, 0, 5)
    out, log_sum = causal_attention_fused_reference(q, q, v, 0.1, torch.tensor(3))
    assert out.shape == v.shape and log_sum.shape == (2, 3, 0)


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dropout_that_float32_rounds_to_one_goes_to_the_reference(dtype):
    q, seed = torch.zeros(1, 1, 4, 4, dtype=dtype), torch.tensor(1)
    owner = ops.owner("causal_attention", q, q, q, 1 - 1e-9, "logits", seed)
    assert owner == "reference: dropout_p that float32 rounds to 1"
