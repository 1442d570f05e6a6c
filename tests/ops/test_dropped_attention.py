"""Attention in blocks is the attention of the definition."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import ops
from vqvae2_fast.ops.causal_attention.reference import causal_attention_reference


@pytest.mark.parametrize("dropout_on", ["logits", "probabilities"])
@pytest.mark.parametrize("length", [7, 300])
def test_blocks_equal_the_definition(dropout_on, length):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3))
    rest = (0.4, dropout_on, torch.tensor(11))
    out, expected = ops.causal_attention(q, k, v, *rest), causal_attention_reference(q, k, v, *rest)
    torch.testing.assert_close(out, expected)
    dout = torch.randn_like(out)
    gradients = torch.autograd.grad(out, (q, k, v), dout)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (q, k, v), dout))


def test_nothing_of_the_size_of_the_logits_is_kept():
    q, k, v = (torch.randn(1, 2, 64, 4, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, id):
        ops.causal_attention(q, k, v, 0.1, "logits", torch.tensor(3))
    assert max(kept) <= q.numel()
