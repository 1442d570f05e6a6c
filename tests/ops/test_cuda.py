"""Operators on a GPU, against their references on the CPU; `benchmarks/gpu.sh` runs it."""

from __future__ import annotations

import pytest
import torch
from helpers.cases import cases_of
from helpers.compare import assert_close_to_float64, to_float64
from torch import Tensor

import vqvae2_fast as vq2
from vqvae2_fast import ops
from vqvae2_fast.ops.causal_conv2d.op import CAUSAL_CONV2D_FUSED, MASKS, causal_conv2d_reference
from vqvae2_fast.ops.nearest_code.op import nearest_code_reference

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def without_tf32():
    """Turns TF32 off: the owner of a convolution and all bounds are those for float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


OPERATORS = {name: op for name, op in ops.OPERATORS.items() if "cuda" in op.owners}
CASES = [
    pytest.param(operator, case, id=f"{name}-{case.name}")
    for name, operator in OPERATORS.items()
    for case in cases_of(operator)
]


def make(case, change=lambda value: value):
    return [change(value) for value in case.make(torch.Generator().manual_seed(0))]


def on_device(value):
    return value.to(DEVICE, copy=True) if isinstance(value, Tensor) else value


def results_of(function, case, arguments):
    with torch.set_grad_enabled(bool(case.gradients)):
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


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (48, 200)])
def test_kernels_of_a_convolution_match_float64(mask, dtype, inputs, outputs):
    """Tests the kernels themselves, whoever owns the call."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, inputs, 17, 13, generator=generator).to(dtype)
    weight = torch.randn(outputs, inputs, 5, 5, generator=generator).to(dtype) / 30
    bias = torch.randn(outputs, generator=generator).to(dtype)
    dout = torch.randn(3, outputs, 17, 13, generator=generator).to(dtype)

    def run(function, change):
        leaves = [change(tensor).detach().requires_grad_() for tensor in (x, weight, bias)]
        out = function(*leaves, mask)
        return [out.detach(), *torch.autograd.grad(out, leaves, change(dout))]

    actual = run(CAUSAL_CONV2D_FUSED.kernel, lambda tensor: tensor.to(DEVICE))
    eager = run(causal_conv2d_reference, lambda tensor: tensor.clone())
    exact = run(causal_conv2d_reference, lambda tensor: tensor.double())
    for name, a, e, t in zip(("out", "dx", "dweight", "dbias"), actual, eager, exact, strict=True):
        assert_close_to_float64(a.cpu(), e, t, factor=3, what=name)


@pytest.mark.parametrize("one_code", [False, True])
def test_long_rows_of_a_code_convolution_match_float64(one_code):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(512, (8, 32, 32), generator=generator)
    if one_code:
        codes.fill_(17)
    offsets = [-1, -1, -1, 0, 0, -2, 0, -1]
    table = torch.randn(4, 512, 130, generator=generator)
    dout = torch.randn(8, 130, 32, 32, generator=generator)
    operator = ops.OPERATORS["code_conv2d"]

    def run(function, codes, table, dout):
        leaf = table.detach().requires_grad_()
        out = function(codes, leaf, offsets)
        return out.detach(), torch.autograd.grad(out, leaf, dout)[0]

    actual = run(operator, *(tensor.to(DEVICE) for tensor in (codes, table, dout)))
    eager = run(operator.reference, codes, table, dout)
    exact = run(operator.reference, codes, table.double(), dout.double())
    for name, a, e, t in zip(("out", "dtable"), actual, eager, exact, strict=True):
        assert_close_to_float64(a.cpu(), e, t, factor=3, what=name)


@pytest.mark.parametrize("num_embeddings", [512, 1000, 8192])
def test_draws_are_those_of_the_reference(num_embeddings):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, num_embeddings, generator=generator)
    samples, positions = torch.arange(300), torch.tensor([77])
    noise = ops.gumbel_noise(samples, positions, num_embeddings, seed=5)[:, 0]
    on_card = ops.gumbel_noise(samples.to(DEVICE), positions.to(DEVICE), num_embeddings, seed=5)
    assert torch.equal(on_card[:, 0].cpu(), noise)
    for top_k in (None, 40):
        expected, _ = ops.draw_codes(logits, noise, temperature=0.9, top_k=top_k)
        codes, _ = ops.draw_codes(logits.to(DEVICE), on_card[:, 0], temperature=0.9, top_k=top_k)
        assert torch.equal(codes.cpu(), expected)


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


@pytest.mark.parametrize(
    "quantizer", [vq2.FSQ([8, 5, 4]), vq2.ResidualFSQ([4, 3], 3)], ids=["fsq", "residual_fsq"]
)
def test_a_look_up_can_be_captured_in_a_graph(quantizer):
    quantizer = quantizer.to(DEVICE)
    z_q, indices, _ = quantizer(torch.randn(7, len(quantizer.grid.levels), device=DEVICE))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        quantizer.lookup(indices)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = quantizer.lookup(indices)
    graph.replay()
    torch.testing.assert_close(found, z_q)


def test_convolutions_run_after_fp32_precision_was_set():
    """Reading `allow_tf32` then raises an error."""
    x, weight = torch.randn(2, 32, 9, 9, device=DEVICE), torch.randn(64, 32, 5, 5, device=DEVICE)
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        found = []
        for precision in ("ieee", "tf32"):
            conv.fp32_precision = precision
            found.append(ops.causal_conv2d(x, weight, None, "exclude"))
    finally:
        conv.fp32_precision = before
    exact = causal_conv2d_reference(x.double(), weight.double(), None, "exclude")
    errors = [float((out - exact).abs().max() / exact.abs().max()) for out in found]
    assert errors[0] < 1e-5 and errors[1] < 1e-2
