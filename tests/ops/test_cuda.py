"""Operators on a GPU, against their references on the CPU: what `benchmarks/gpu.sh` runs first."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from vqvae2_fast import ops
from vqvae2_fast.ops.nearest_code.reference import nearest_code_reference
from vqvae2_fast.testing.compare import assert_close_to_float64, to_float64

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPERATORS = {name: op for name, op in ops.OPERATORS.items() if "cuda" in op.owners}
CASES = [
    pytest.param(operator, case, id=f"{name}-{case.name}")
    for name, operator in OPERATORS.items()
    for case in importlib.import_module(f"vqvae2_fast.ops.{name.rstrip('_')}.cases").CASES
]


def make(case, change=lambda value: value):
    return [change(value) for value in case.make(torch.Generator().manual_seed(0))]


def on_device(value):
    return value.to(DEVICE, copy=True) if isinstance(value, Tensor) else value


def results_of(function, case, arguments):
    results = function(*arguments)
    if case.in_place:
        results = tuple(arguments[position] for position in case.in_place)
    return results if isinstance(results, tuple) else (results,)


def gradients_of(function, case, arguments):
    for position in case.gradients:
        arguments[position] = arguments[position].detach().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    for result in results_of(function, case, arguments):
        if result.requires_grad:
            weights = torch.randn(result.shape, generator=generator).to(result.device)
            loss = loss + (result.double() * weights).sum()
    return torch.autograd.grad(loss, [arguments[position] for position in case.gradients])


def reference_at(operator, case, change):
    return results_of(operator.reference, case, make(case, change))


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_forward_matches_reference(operator, case):
    actual = results_of(operator, case, make(case, on_device))
    eager = reference_at(operator, case, lambda v: v.clone() if isinstance(v, Tensor) else v)
    exact = reference_at(operator, case, to_float64)
    for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
        if case.exact or not a.is_floating_point():
            torch.testing.assert_close(a.cpu(), e, rtol=0, atol=0, equal_nan=True)
        else:
            assert_close_to_float64(a.cpu(), e, x, factor=2, what=f"result {i}")


@pytest.mark.parametrize(("operator", "case"), [p for p in CASES if p.values[1].gradients])
def test_gradients_match_float64(operator, case):
    actual = gradients_of(operator, case, make(case, on_device))
    eager = gradients_of(operator.reference, case, make(case))
    exact = gradients_of(operator.reference, case, make(case, to_float64))
    for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
        assert_close_to_float64(a.cpu(), e, x, factor=3, what=f"gradient {case.gradients[i]}")


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_repeats_are_bit_equal(operator, case):
    first = results_of(operator, case, make(case, on_device))
    second = results_of(operator, case, make(case, on_device))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_compiled_equals_eager(operator, case):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *arguments: operator(*arguments), fullgraph=True)
    actual = results_of(compiled, case, make(case, on_device))
    expected = results_of(operator, case, make(case, on_device))
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if case.exact:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        elif a.is_floating_point():
            assert_close_to_float64(a, b, b.double(), factor=2, what=f"result {i}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k", "d"), [(20_001, 512, 64), (3000, 8192, 32), (2000, 1024, 256)])
def test_large_search_is_exact(n, k, d, dtype):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator).to(dtype).to(DEVICE)
    codebook = torch.randn(k, d, generator=generator).to(DEVICE)
    indices, sqdist = ops.nearest_code(z, codebook)
    expected_indices, expected_sqdist = nearest_code_reference(z, codebook)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(sqdist, expected_sqdist)


def test_search_between_midpoints_is_exact():
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randn(512, 64, generator=generator).to(DEVICE)
    pairs = torch.randint(512, (10_000, 2), generator=generator).to(DEVICE)
    z = codebook[pairs].mean(dim=1)
    assert torch.equal(ops.nearest_code(z, codebook)[0], nearest_code_reference(z, codebook)[0])


@pytest.mark.parametrize("length", [1024, 1500])
def test_long_attention_matches_float64(length):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, length, 16, generator=generator).to(DEVICE) for _ in range(3))
    arguments = (0.1, "logits", torch.tensor(5, device=DEVICE))
    operator = ops.OPERATORS["causal_attention"]
    assert operator.owner(q, k, v, *arguments) == "triton"
    exact = operator.reference(q.double(), k.double(), v.double(), *arguments)
    eager = operator.reference(q, k, v, *arguments)
    actual = operator(q, k, v, *arguments)
    assert_close_to_float64(actual, eager, exact, factor=2, what="attention")


def test_training_step_can_be_captured_in_a_graph():
    """No operator of the quantiser waits for the device."""
    z, codebook = torch.randn(512, 32, device=DEVICE), torch.randn(64, 32, device=DEVICE)
    size, average = torch.ones(64, device=DEVICE), codebook.clone()

    def step():
        _, indices, commitment = ops.vector_quantize(z, codebook)
        counts, sums = ops.code_statistics(z, indices, 64)
        ops.ema_update_(counts, sums, size, average, codebook)
        return commitment

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        commitment = step()
    graph.replay()
    assert torch.isfinite(commitment)
