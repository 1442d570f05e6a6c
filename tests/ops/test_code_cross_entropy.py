"""The loss directly from features has the value and gradients of the cross-entropy of all
logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import assert_close_to_float64

from vqvae2_fast.ops.code_cross_entropy.op import code_cross_entropy

K, C = 512, 24


def inputs(num_positions, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_positions, C), (K, C), (K,))
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return values, torch.randint(K, (num_positions,), generator=generator)


def plain(features, weight, bias, codes):
    return F.cross_entropy(F.linear(features, weight, bias), codes)


def with_gradients(loss, values, codes):
    leaves = [value.detach().requires_grad_() for value in values]
    result = loss(*leaves, codes)
    return result.detach(), *torch.autograd.grad(result * 1.7, leaves)


@pytest.mark.parametrize("num_positions", [1, 48, 1100])
def test_value_and_gradients_are_those_of_all_logits(num_positions):
    values, codes = inputs(num_positions)
    actual = with_gradients(code_cross_entropy, values, codes)
    eager = with_gradients(plain, values, codes)
    exact = with_gradients(plain, [value.double() for value in values], codes)
    for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
        assert_close_to_float64(a, e, x, factor=3, what=f"result {i}")


def test_result_does_not_depend_on_the_number_of_threads(with_threads):
    values, codes = inputs(1100)
    one, five = (
        with_threads(number, lambda: with_gradients(code_cross_entropy, values, codes))
        for number in (1, 5)
    )
    for a, b in zip(one, five, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("where", ["features", "bias"])
def test_a_nan_that_goes_in_comes_out_in_the_loss(where):
    values, codes = inputs(100)
    values[("features", "weight", "bias").index(where)].view(-1)[37] = float("nan")
    assert with_gradients(code_cross_entropy, values, codes)[0].isnan()


def test_a_second_derivative_is_refused():
    values, codes = inputs(7)
    leaves = [value.requires_grad_() for value in values]
    loss = code_cross_entropy(*leaves, codes)
    (dfeatures,) = torch.autograd.grad(loss, leaves[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second"):
        dfeatures.sum().backward()


def test_training_in_float32_takes_the_kernel(operator_calls):
    values, codes = inputs(7)
    code_cross_entropy(*(value.requires_grad_() for value in values), codes)
    assert operator_calls == ["code_cross_entropy"]


def test_compiling_takes_the_plain_way():
    values, codes = inputs(60)
    graphs = []
    compiled = torch.compile(
        code_cross_entropy,
        backend=lambda graph, _: graphs.append(graph.code) or graph,
        fullgraph=True,
    )
    compiled(*(value.requires_grad_() for value in values), codes)
    assert "cross_entropy" in graphs[0]
    assert "vqvae2_fast" not in graphs[0]


def test_half_inputs_take_the_plain_way(operator_calls):
    values, codes = inputs(7, torch.bfloat16)
    loss = code_cross_entropy(*(value.requires_grad_() for value in values), codes)
    assert loss.dtype == torch.float32
    assert operator_calls == []


def test_autocast_takes_the_plain_way(operator_calls):
    values, codes = inputs(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code_cross_entropy(*(value.requires_grad_() for value in values), codes)
    assert operator_calls == []


def test_evaluation_takes_the_plain_way(operator_calls):
    values, codes = inputs(7)
    torch.testing.assert_close(code_cross_entropy(*values, codes), plain(*values, codes))
    assert operator_calls == []
