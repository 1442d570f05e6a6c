"""Weights of the prior's convolutions: the norm, and the taps that do not count."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from vqvae2_fast.modules.causal_conv import CausalConv2d, ConvWeight, SameConv2d

MASKS = ("exclude", "include", "down", "downright")


def test_weight_is_v_scaled_to_length_g_per_output_channel():
    torch.manual_seed(0)
    weight = ConvWeight((4, 3, 3, 3))
    with torch.no_grad():
        weight.weight_g.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]).view(4, 1, 1, 1))
    lengths = weight().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 2.0, 0.5, 3.0]))


def test_weight_starts_as_v():
    torch.manual_seed(0)
    conv = CausalConv2d(3, 4, 3, "exclude")
    live = conv.kernel.live
    torch.testing.assert_close(conv.kernel()[:, :, live], conv.kernel.weight_v[:, :, live])


@pytest.mark.parametrize("mask", ["exclude", "include"])
@pytest.mark.parametrize("weight_norm", [True, False])
def test_values_of_dead_taps_change_nothing(mask, weight_norm):
    torch.manual_seed(0)
    conv = CausalConv2d(3, 4, 3, mask, weight_norm=weight_norm)
    x = torch.randn(2, 3, 5, 6)
    before = conv(x)
    with torch.no_grad():
        conv.kernel.weight_v[:, :, ~conv.kernel.live] = 7.0
    assert torch.equal(conv(x), before)


@pytest.mark.parametrize("weight_norm", [True, False])
def test_dead_taps_get_no_gradient(weight_norm):
    torch.manual_seed(0)
    conv = CausalConv2d(3, 4, 3, "exclude", weight_norm=weight_norm)
    conv(torch.randn(2, 3, 5, 6)).square().sum().backward()
    live = conv.kernel.live
    assert not conv.kernel.weight_v.grad[:, :, ~live].any()
    assert conv.kernel.weight_v.grad[:, :, live].any()


def test_buffers_of_a_masked_convolution_can_be_averaged():
    conv = CausalConv2d(3, 4, 3, "exclude")
    averaged = AveragedModel(conv, use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(conv)
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(averaged(x), conv(x))


@pytest.mark.parametrize("mask", MASKS)
def test_output_has_the_inputs_size(mask):
    torch.manual_seed(0)
    assert CausalConv2d(3, 4, 3, mask)(torch.randn(2, 3, 5, 7)).shape == (2, 4, 5, 7)


def test_plain_weights_have_no_length_of_their_own():
    assert [name for name, _ in SameConv2d(3, 4, weight_norm=False).named_parameters()] == [
        "bias",
        "kernel.weight_v",
    ]


def test_even_kernel_that_sees_all_around_is_an_error():
    with pytest.raises(ValueError, match="expected an odd kernel_size, got 4"):
        SameConv2d(3, 4, 4)
