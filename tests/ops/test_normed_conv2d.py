"""When a convolution uses tiles, and that its dead taps have no effect there."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import ops
from vqvae2_fast.modules.causal_conv import CausalConv2d, SameConv2d
from vqvae2_fast.ops.normed_conv2d.op import normed_conv2d
from vqvae2_fast.ops.stride2_conv2d.op import stride2_conv2d

X_SIZE = (8, 64, 16, 16)  # large enough for tiles with 64 output channels


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


def conv_5x5(x):
    return normed_conv2d(x, weight(64, 64, 5), None, None, "exclude", ops.tap_mask("exclude", 5, 5))


def halve(x):
    return stride2_conv2d(x, weight(64, 64, 4), None)


def double(x):
    return stride2_conv2d(x, weight(64, 64, 4), None, transposed=True)


def weight(outputs, inputs, kernel):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(outputs, inputs, kernel, kernel, generator=generator).requires_grad_()


@pytest.mark.parametrize("layer", [conv_3x3, conv_5x5, halve, double])
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


@pytest.mark.parametrize("mask", ["exclude", "include"])
def test_dead_taps_are_ignored_even_if_nan_and_get_no_gradient(mask):
    torch.manual_seed(1)
    x, v, g = torch.randn(X_SIZE), torch.randn(64, 64, 3, 3), torch.rand(64, 1, 1, 1)
    live = ops.tap_mask(mask, 3, 3)
    poisoned = v.where(live, torch.nan).requires_grad_()
    out = normed_conv2d(x, poisoned, g, None, mask, live)
    assert torch.equal(out, normed_conv2d(x, v.clone().requires_grad_(), g, None, mask, live))
    out.sum().backward()
    assert (poisoned.grad[:, :, ~live] == 0).all()
    assert poisoned.grad[:, :, live].abs().sum() > 0


def test_results_may_be_changed_in_place():
    x, v = torch.randn(X_SIZE), torch.randn(64, 64, 3, 3, requires_grad=True)
    out = normed_conv2d(x, v, None, None, "same")
    torch.nn.functional.elu(out, inplace=True).sum().backward()
    h = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    ops.gated_residual(h, h[:, :4]).relu_().sum().backward()
