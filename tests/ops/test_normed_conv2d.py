"""When a convolution uses tiles, what its dead taps may do there, and what rounding does."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.compare import simd_level

from vqvae2_fast import ops
from vqvae2_fast.modules.causal_conv import CausalConv2d, SameConv2d
from vqvae2_fast.ops import _native
from vqvae2_fast.ops._training import rounded_convolutions
from vqvae2_fast.ops.causal_conv2d.op import placement
from vqvae2_fast.ops.normed_conv2d.op import (
    normed_conv2d,
    normed_conv2d_backward_reference,
    normed_conv2d_reference,
)
from vqvae2_fast.ops.stride2_conv2d.op import stride2_conv2d

X_SIZE = (8, 64, 16, 16)  # large enough for tiles with 64 output channels

needs_amx = pytest.mark.skipif(not _native.has_tiles(), reason="a processor with AMX")


def test_training_goes_in_tiles(operator_calls):
    layer, x = CausalConv2d(64, 64, 3, "include"), torch.randn(X_SIZE)
    layer(x)
    assert "normed_conv2d" in operator_calls


def test_evaluation_does_not(operator_calls):
    layer, x = CausalConv2d(64, 64, 3, "include"), torch.randn(X_SIZE)
    with torch.no_grad():
        layer(x)
    assert "normed_conv2d" not in operator_calls


def test_autocast_does_not(operator_calls):
    layer, x = CausalConv2d(64, 64, 3, "include"), torch.randn(X_SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    assert "normed_conv2d" not in operator_calls


@pytest.mark.parametrize("mask", ["exclude", "include", "same"])
def test_layers_train_as_they_evaluate(mask):
    torch.manual_seed(0)
    layer = SameConv2d(64, 64, 3) if mask == "same" else CausalConv2d(64, 64, 5, mask)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(X_SIZE)
    with torch.no_grad():
        direct = layer(x)
    torch.testing.assert_close(layer(x), direct, rtol=0, atol=1e-5 * float(direct.abs().max()))


def test_a_1x1_kernel_that_does_not_read_the_position_trains_as_it_evaluates():
    layer, x = CausalConv2d(32, 32, 1, "down", weight_norm=False), torch.randn(4, 32, 16, 16)
    with torch.no_grad():
        direct = layer(x)
    torch.testing.assert_close(layer(x), direct, rtol=0, atol=1e-5)


def conv_3x3(x):
    return normed_conv2d(x, weight(64, 64, 3), None, None, "same")


def rounded_3x3(x):
    with rounded_convolutions():
        return normed_conv2d(x, weight(64, 64, 3), None, None, "include")


def conv_5x5(x):
    return normed_conv2d(x, weight(64, 64, 5), None, None, "exclude", ops.tap_mask("exclude", 5, 5))


def halve(x):
    return stride2_conv2d(x, weight(64, 64, 4), None)


def double(x):
    return stride2_conv2d(x, weight(64, 64, 4), None, transposed=True)


def halve_an_image(x):
    return stride2_conv2d(x[:, :3], weight(64, 3, 4), None)


def double_to_an_image(x):
    return stride2_conv2d(x, weight(64, 3, 4), None, transposed=True)


def conv_3x3_of_few_positions(x):
    return normed_conv2d(x[:, :, :3], weight(50, 64, 3), None, None, "same")


def weight(outputs, inputs, kernel):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(outputs, inputs, kernel, kernel, generator=generator).requires_grad_()


@pytest.mark.parametrize(
    "layer",
    [
        conv_3x3,
        pytest.param(rounded_3x3, marks=needs_amx),
        conv_5x5,
        halve,
        double,
        halve_an_image,
        double_to_an_image,
        conv_3x3_of_few_positions,
    ],
)
def test_results_do_not_depend_on_the_number_of_threads(layer, with_threads, operator_calls):
    def run():
        # The rows of a single image are cut if there are more threads.
        x = torch.randn(1, 64, 68, 68, generator=torch.Generator().manual_seed(3))
        x.requires_grad_()
        out = layer(x)
        (dx,) = torch.autograd.grad(out, x, torch.cos(out.detach()))
        return out.detach(), dx

    one, five = with_threads(1, run), with_threads(5, run)
    assert "_conv2d" in operator_calls[0]
    for a, b in zip(one, five, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", [nullcontext, rounded_convolutions])
@pytest.mark.parametrize("mask", ["exclude", "include"])
def test_dead_taps_are_ignored_even_if_nan_and_get_no_gradient(mask, precision):
    torch.manual_seed(1)
    x, v, g = torch.randn(X_SIZE), torch.randn(64, 64, 3, 3), torch.rand(64, 1, 1, 1)
    live = ops.tap_mask(mask, 3, 3)
    poisoned = v.where(live, torch.nan).requires_grad_()
    with precision():
        out = normed_conv2d(x, poisoned, g, None, mask, live)
        expected = normed_conv2d(x, v.clone().requires_grad_(), g, None, mask, live)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert (poisoned.grad[:, :, ~live] == 0).all()
    assert poisoned.grad[:, :, live].abs().sum() > 0


def test_results_may_be_changed_in_place():
    x, v = torch.randn(X_SIZE), torch.randn(64, 64, 3, 3, requires_grad=True)
    out = normed_conv2d(x, v, None, None, "same")
    torch.nn.functional.elu(out, inplace=True).sum().backward()
    h = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    ops.gated_residual(h, h[:, :4]).relu_().sum().backward()


def normed_layer():
    """x, v, g, bias, and options of a call with all that the kernels do."""
    torch.manual_seed(4)
    x, v = torch.randn(X_SIZE), torch.randn(64, 64, 3, 3)
    g, bias = torch.rand(64, 1, 1, 1) + 0.5, torch.randn(64)
    return x, v, g, bias, (*placement("include", 3, 3), True, 0.25, torch.tensor(9), True)


@needs_amx
def test_rounding_is_that_of_the_reference():
    """A last bit of ELU or of the norm decides how a few factors are rounded."""
    x, v, g, bias, options = normed_layer()
    out = torch.ops.vqvae2_fast.normed_conv2d(x, v, g, bias, *options)
    expected = normed_conv2d_reference(x, v, g, bias, *options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)
    assert (out - expected).abs().mean() < 1e-5
    dy = torch.randn(out.shape)
    found = torch.ops.vqvae2_fast.normed_conv2d_backward(dy, x, v, g, *options)
    wanted = normed_conv2d_backward_reference(dy, x, v, g, *options)
    for name, a, b in zip(("dx", "dv", "dg", "dbias"), found, wanted, strict=True):
        scale = float(b.abs().max())
        assert (a - b).abs().max() <= 1e-3 * scale, name
        assert (a - b).abs().mean() <= 1e-5 * scale, name


@needs_amx
def test_only_training_inside_the_context_is_rounded():
    x, layer = torch.randn(X_SIZE), CausalConv2d(64, 64, 3, "include")
    exact = layer(x)
    with rounded_convolutions():
        with rounded_convolutions():
            pass
        rounded = layer(x)
        with torch.no_grad():
            evaluated = layer(x)
    size = float(exact.detach().abs().max())
    assert 1e-4 * size < (rounded - exact).abs().max() < 1e-2 * size
    assert (evaluated - exact).abs().max() < 1e-5 * size
    assert torch.equal(layer(x), exact)


@needs_amx
def test_other_kernels_than_3x3_are_not_rounded():
    for kernel in (1, 5):
        layer, x = CausalConv2d(64, 64, kernel, "include"), torch.randn(X_SIZE)
        exact = layer(x)
        with rounded_convolutions():
            assert torch.equal(layer(x), exact)


@needs_amx
def test_rounded_convolution_is_causal_to_the_bit():
    torch.manual_seed(5)
    x, v = torch.randn(X_SIZE), torch.randn(64, 64, 3, 3, requires_grad=True)
    later = x.clone()
    later.flatten(2)[:, :, 101:] = torch.nan
    with rounded_convolutions():
        out, of_later = (normed_conv2d(m, v, None, None, "include") for m in (x, later))
    assert torch.equal(out.flatten(2)[:, :, :101], of_later.flatten(2)[:, :, :101])
    assert of_later.flatten(2)[:, :, 101:].isnan().any()


def test_a_level_without_tiles_does_not_round():
    x, layer = torch.randn(X_SIZE), CausalConv2d(64, 64, 3, "include")
    with simd_level("scalar"):
        exact = layer(x)
        with rounded_convolutions():
            assert torch.equal(layer(x), exact)


def test_rounding_at_a_level_without_tiles_is_refused():
    x, v, g, bias, options = normed_layer()
    with simd_level("scalar"), pytest.raises(RuntimeError, match="AMX.*level scalar"):
        torch.ops.vqvae2_fast.normed_conv2d(x, v, g, bias, *options)
