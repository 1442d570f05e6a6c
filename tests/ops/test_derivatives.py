"""Derivatives of every public operator that has one, and of the private ones of the layers: forward
mode, second derivatives, `torch.func.grad` and `vmap` are right, or an error."""

from __future__ import annotations

import pytest
import torch
from helpers.cases import cases_of, functions_of, values
from helpers.compare import every_call_trains
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vqvae2_fast import ops

FUNCTIONS = {
    name: function
    for operator in ops.OPERATORS.values()
    for name, function in functions_of(operator, "DERIVATIVES").items()
}
CONSTANTS = {
    name: function
    for operator in ops.OPERATORS.values()
    for name, function in functions_of(operator, "CONSTANTS").items()
}
# Errors of PyTorch for the calls in the references; and one of ours.
NO_SECOND_DERIVATIVE = {
    "code_cross_entropy": "expected a first derivative, got a second one",
    "code_cross_entropy_weight": "expected a first derivative, got a second one",
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(autouse=True)
def kernels_take_small_calls():
    with every_call_trains():
        yield


def double(function):
    """The function computed in float64 throughout, which no CPU kernel takes."""
    return lambda x: function(x.double())


def loss_of(function):
    """A number that weighs every entry of the result, and its square, differently."""

    def loss(x):
        out = function(x).double()
        weights = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).view(out.shape)
        return (weights * (out + out.square())).sum()

    return loss


def gradient(loss, x, **options):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x, **options)[0]


def second_derivative(loss, x):
    """The gradient of a weighting of the gradient, by two passes of backward."""
    x = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (ddx,) = torch.autograd.grad((dx * torch.cos(x.detach())).sum(), x)
    return ddx


def assert_close(actual: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * float(expected.detach().abs().max()) + 1e-12
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=bound)


@every_function
def test_forward_mode_equals_reverse_mode(name):
    function, x = FUNCTIONS[name]
    direction = torch.sin(3 * x)
    _, actual = torch.func.jvp(loss_of(function), (x,), (direction,))
    expected = (gradient(loss_of(double(function)), x).double() * direction).sum()
    assert_close(actual, expected)


@every_function
def test_dual_numbers_equal_reverse_mode(name):
    function, x = FUNCTIONS[name]
    direction = torch.sin(3 * x)
    with torch.autograd.forward_ad.dual_level():
        out = loss_of(function)(torch.autograd.forward_ad.make_dual(x, direction))
        actual = torch.autograd.forward_ad.unpack_dual(out).tangent
    expected = (gradient(loss_of(double(function)), x).double() * direction).sum()
    assert_close(actual, expected)


@every_function
def test_gradient_by_torch_func(name):
    function, x = FUNCTIONS[name]
    assert_close(torch.func.grad(loss_of(function))(x), gradient(loss_of(double(function)), x))


@every_function
def test_second_derivative_is_right_or_refused(name):
    function, x = FUNCTIONS[name]
    loss = loss_of(function)
    if name in NO_SECOND_DERIVATIVE:
        with pytest.raises((RuntimeError, NotImplementedError), match=NO_SECOND_DERIVATIVE[name]):
            second_derivative(loss, x)
    else:
        with sdpa_kernel(SDPBackend.MATH):  # PyTorch's other attention has none
            expected = second_derivative(loss_of(double(function)), x)
        assert_close(second_derivative(loss, x), expected)


@every_function
def test_second_derivative_by_torch_func(name):
    """Forward over reverse equals reverse over reverse in float64."""
    function, x = FUNCTIONS[name]
    direction = torch.sin(3 * x)
    _, actual = torch.func.jvp(torch.func.grad(loss_of(function)), (x,), (direction,))
    slope = torch.func.grad(loss_of(double(function)))
    assert_close(actual, torch.func.grad(lambda x: (slope(x) * direction).sum())(x))


@every_function
def test_vmap_equals_a_loop(name):
    function, x = FUNCTIONS[name]
    several = torch.stack([x, x.flip(0), -x])
    assert_close(torch.func.vmap(function)(several), torch.stack([function(x) for x in several]))


@every_function
def test_vmap_of_gradients_equals_a_loop(name):
    function, x = FUNCTIONS[name]
    several, slope = torch.stack([x, -x]), torch.func.grad(loss_of(function))
    assert_close(torch.func.vmap(slope)(several), torch.stack([slope(x) for x in several]))


@every_function
def test_gradients_in_a_batch_equal_a_loop(name):
    """`is_grads_batched` runs the operators' gradients under vmap."""
    function, x = FUNCTIONS[name]
    x = x.detach().requires_grad_()
    out = function(x)
    several = torch.stack([torch.ones_like(out), torch.cos(out.detach())])
    (actual,) = torch.autograd.grad(out, x, several, retain_graph=True, is_grads_batched=True)
    loop = [torch.autograd.grad(out, x, dout, retain_graph=True)[0] for dout in several]
    assert_close(actual, torch.stack(loop))


@pytest.mark.parametrize("name", ["commitment", "gated_residual", "causal_attention_logits"])
def test_compiled_transforms_equal_eager_ones(name):
    function, x = FUNCTIONS[name]

    def derivatives(x):
        slope = torch.func.grad(loss_of(function))(x)
        return slope, torch.func.jvp(function, (x,), (torch.cos(x),))[1]

    torch._dynamo.reset()
    compiled = torch.compile(derivatives, backend="aot_eager")
    for a, b in zip(compiled(x), derivatives(x), strict=True):
        assert_close(a, b)


Z = values(0, 4, 6)


@pytest.mark.parametrize("name", [n for n, o in ops.OPERATORS.items() if not o.private])
def test_every_public_operator_is_tested_here(name):
    case = cases_of(ops.OPERATORS[name])[0]
    arguments = case.make(torch.Generator().manual_seed(0))
    of_numbers = any(torch.is_tensor(value) and value.is_floating_point() for value in arguments)
    assert name in FUNCTIONS or name in CONSTANTS or case.in_place or not of_numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONSTANTS)
def test_results_without_a_gradient_are_constants(name, dtype):
    function, z = CONSTANTS[name], Z.to(dtype)
    assert not function(z.clone().requires_grad_()).requires_grad
    assert (torch.func.grad(lambda z: function(z).sum())(z) == 0).all()
    assert (torch.func.jvp(function, (z,), (torch.ones_like(z),))[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONSTANTS)
def test_vmap_of_results_without_a_gradient_equals_a_loop(name, dtype):
    function = CONSTANTS[name]
    several = torch.stack([Z, -Z]).to(dtype)
    assert_close(torch.func.vmap(function)(several), torch.stack([function(z) for z in several]))


def test_vmap_of_noise_equals_a_loop():
    samples = torch.tensor([[0, 3], [5, 2]])
    make = lambda rows: ops.gumbel_noise(rows, torch.arange(4), 6)  # noqa: E731
    assert torch.equal(torch.func.vmap(make)(samples), torch.stack([make(row) for row in samples]))


def test_vmap_of_known_codes_equals_a_loop():
    known = torch.tensor([[0, -1], [-1, 2]])
    draw = lambda rows: ops.draw_codes(torch.eye(2, 5), torch.zeros(2, 5), known=rows)[0]  # noqa: E731
    assert torch.equal(torch.func.vmap(draw)(known), torch.stack([draw(row) for row in known]))


def test_vmap_of_dropout_masks_equals_a_loop():
    seeds = torch.tensor([4, 9])
    make = lambda seed: ops.dropout_mask(seed, 2, 3, 5, 0.4)  # noqa: E731
    assert torch.equal(torch.func.vmap(make)(seeds), torch.stack([make(seed) for seed in seeds]))


def test_averages_refuse_vmap():
    averages = torch.ones(2, 5), torch.ones(2, 5, 6), torch.ones(2, 5, 6)
    with pytest.raises(RuntimeError, match="not implemented for vqvae2_fast::ema_update_"):
        torch.func.vmap(ops.ema_update_)(torch.ones(2, 5), torch.ones(2, 5, 6), *averages)
