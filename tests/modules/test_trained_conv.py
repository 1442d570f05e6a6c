"""The VQ-VAE's convolutions: our kernels while they train on a CPU, torch's elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.modules.encoder_decoder import (
    DoublingConv2d,
    HalvingConv2d,
    PlainConv2d,
    ResidualBlock,
)

SIZE = (4, 64, 32, 32)  # large enough for tiles with 64 output channels


def test_a_residual_block_trains_by_our_kernels(operator_calls):
    ResidualBlock(64, 64)(torch.randn(SIZE)).sum().backward()
    assert operator_calls.count("normed_conv2d") == 2


def test_evaluation_and_autocast_take_torchs(operator_calls):
    block, x = ResidualBlock(64, 64), torch.randn(SIZE)
    with torch.no_grad():
        block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(x)
    assert not operator_calls


def assert_torchs_values_and_gradients(layer, x, convolve):
    inputs = (x, layer.weight, layer.bias)
    out = layer(x)
    dout = torch.randn_like(out)
    exact_inputs = [value.detach().double().requires_grad_() for value in inputs]
    exact = convolve(*exact_inputs)
    pairs = [(out, exact)]
    pairs += zip(
        torch.autograd.grad(out, inputs, dout),
        torch.autograd.grad(exact, exact_inputs, dout.double()),
        strict=True,
    )
    for actual, expected in pairs:
        bound = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_gives_torchs_values_and_gradients(kernel_size, memory_format, operator_calls):
    torch.manual_seed(0)
    layer = PlainConv2d(64, 48, kernel_size).to(memory_format=memory_format)
    x = torch.randn(SIZE).contiguous(memory_format=memory_format).requires_grad_()
    assert_torchs_values_and_gradients(
        layer, x, lambda *inputs: F.conv2d(*inputs, padding=kernel_size // 2)
    )
    assert "normed_conv2d" in operator_calls


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [HalvingConv2d, DoublingConv2d])
def test_layers_of_stride_2_give_torchs_values_and_gradients(kind, memory_format, operator_calls):
    torch.manual_seed(0)
    layer = kind(64, 64).to(memory_format=memory_format)
    x = torch.randn(SIZE).contiguous(memory_format=memory_format).requires_grad_()
    convolve = F.conv2d if kind is HalvingConv2d else F.conv_transpose2d
    assert_torchs_values_and_gradients(
        layer, x, lambda *inputs: convolve(*inputs, stride=2, padding=1)
    )
    assert "stride2_conv2d" in operator_calls


@pytest.mark.parametrize("kind", [HalvingConv2d, DoublingConv2d])
def test_stride_2_in_evaluation_autocast_and_odd_sizes_takes_torchs(kind, operator_calls):
    layer, x = kind(64, 64), torch.randn(SIZE)
    with torch.no_grad():
        layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    HalvingConv2d(64, 64)(x[:, :, 1:])
    assert not operator_calls
