"""The stem: gathered columns are the convolution of the one-hot map."""

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.modules.stem import CausalStem, CodeConv2d


def shifted_convolution(one_hot, conv, mask, shift):
    """The convolution over a one-hot map with padding, then output and bias shifted by hand."""
    height, width = conv.kernel_size
    side = (width // 2, width // 2) if mask == "down" else (width - 1, 0)
    out = F.conv2d(F.pad(one_hot, (*side, height - 1, 0)), conv.kernel(), conv.bias)
    down, right = shift
    rows, columns = out.shape[2:]
    return F.pad(out, (right, 0, down, 0))[:, :, :rows, :columns]


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_equals_shifted_convolutions_of_the_one_hot_map(kernel_size):
    torch.manual_seed(0)
    stem = CausalStem(7, 6, kernel_size)
    for conv in (stem.above, stem.left):
        torch.nn.init.normal_(conv.bias)
    codes = torch.randint(7, (2, 5, 6))
    one_hot = F.one_hot(codes, 7).permute(0, 3, 1, 2).float()
    expected = shifted_convolution(one_hot, stem.above, "down", (1, 0))
    expected = expected + shifted_convolution(one_hot, stem.left, "downright", (0, 1))
    torch.testing.assert_close(stem(codes), expected)


def test_centred_code_convolution_equals_that_of_the_one_hot_map():
    torch.manual_seed(0)
    conv = CodeConv2d(7, 6, (3, 3), (1, 1, 1, 1))
    codes = torch.randint(7, (2, 4, 5))
    one_hot = F.one_hot(codes, 7).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(conv(codes), F.conv2d(one_hot, conv.kernel(), conv.bias, padding=1))


def test_gradient_equals_that_of_the_one_hot_convolution():
    torch.manual_seed(0)
    conv = CodeConv2d(7, 6, (3, 3), (1, 1, 1, 1), weight_norm=False)
    codes, weights = torch.randint(7, (2, 4, 5)), torch.randn(2, 6, 4, 5)
    (conv(codes) * weights).sum().backward()
    weight = conv.kernel.weight_v.detach().clone().requires_grad_()
    one_hot = F.one_hot(codes, 7).permute(0, 3, 1, 2).float()
    (F.conv2d(one_hot, weight, padding=1) * weights).sum().backward()
    torch.testing.assert_close(conv.kernel.weight_v.grad, weight.grad)


def test_sees_only_codes_before_the_position():
    torch.manual_seed(0)
    stem = CausalStem(7, 6, 5)
    codes = torch.randint(7, (1, 4, 5))
    before = stem(codes).flatten(2)
    for position in range(20):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 7
        same = (stem(changed).flatten(2) == before).all(dim=(0, 1))
        assert same[: position + 1].all()
        assert position == 19 or not same.all()


def test_kernel_without_taps_is_an_error():
    with pytest.raises(ValueError, match="expected kernel_size >= 2, got 1"):
        CausalStem(7, 6, 1)
