"""The loss straight from features: value and gradients of the cross-entropy of all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.modules.code_loss import code_cross_entropy
from vqvae2_fast.testing.compare import assert_close_to_float64

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


def test_result_does_not_depend_on_the_number_of_threads():
    values, codes = inputs(1100)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(with_gradients(code_cross_entropy, values, codes))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_a_nan_among_the_features_is_one_in_the_loss():
    values, codes = inputs(100)
    values[0][37, 3] = float("nan")
    assert with_gradients(code_cross_entropy, values, codes)[0].isnan()


def test_training_in_float32_takes_the_kernel(operator_calls):
    values, codes = inputs(7)
    code_cross_entropy(*(value.requires_grad_() for value in values), codes)
    assert "code_cross_entropy" in operator_calls


def test_half_inputs_and_evaluation_take_the_plain_way():
    values, codes = inputs(7, torch.bfloat16)
    loss = code_cross_entropy(*(value.requires_grad_() for value in values), codes)
    assert loss.dtype == torch.float32
    values, codes = inputs(7)
    torch.testing.assert_close(code_cross_entropy(*values, codes), plain(*values, codes))
