"""Gated layers, attention and the conditioning stack."""

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from vqvae2_fast.modules.attention import CausalAttention
from vqvae2_fast.modules.causal_conv import CausalConv2d, ConvWeight
from vqvae2_fast.modules.conditioning import ConditionStack
from vqvae2_fast.modules.gated import GatedResidual
from vqvae2_fast.modules.stem import CausalStem, CodeConv2d


def test_gated_layer_is_its_formula():
    torch.manual_seed(0)
    layer = GatedResidual(
        4, 5, 3, "include", auxiliary_channels=3, condition_channels=2, num_labels=7
    )
    x, auxiliary, condition = (
        torch.randn(2, 4, 5, 6),
        torch.randn(2, 3, 5, 6),
        torch.randn(2, 2, 5, 6),
    )
    labels = torch.tensor([6, 1])
    h = layer.conv1(F.elu(x)) + layer.auxiliary(F.elu(auxiliary))
    h = layer.conv2(F.elu(h)) + layer.condition(condition)
    h = h + layer.classes(labels)[:, :, None, None]
    expected = x + h[:, :4] * h[:, 4:].sigmoid()
    torch.testing.assert_close(layer(x, auxiliary, condition, labels), expected)


def test_coarse_condition_is_repeated_and_cut_to_the_rows_given():
    torch.manual_seed(0)
    layer = GatedResidual(4, 5, condition_channels=2, condition_scale=(2, 3))
    full = GatedResidual(4, 5, condition_channels=2)
    full.load_state_dict(layer.state_dict())
    x, condition = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 4, 2)
    repeated = F.interpolate(condition, scale_factor=(2.0, 3.0), mode="nearest")[:, :, :5]
    torch.testing.assert_close(layer(x, condition=condition), full(x, condition=repeated))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    layer, x = GatedResidual(4, 5, dropout=0.5), torch.randn(2, 4, 3, 3)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("dropout_on", ["logits", "probabilities"])
def test_attention_dropout_follows_torchs_generator(dropout_on):
    torch.manual_seed(0)
    attention = CausalAttention(4, 6, 8, 2, dropout=0.5, dropout_on=dropout_on)
    query, key = torch.randn(2, 4, 3, 4), torch.randn(2, 6, 3, 4)
    torch.manual_seed(1)
    first, second = attention(query, key), attention(query, key)
    torch.manual_seed(1)
    assert torch.equal(attention(query, key), first)
    assert not torch.equal(first, second)


def test_attention_equals_masked_softmax_head_by_head():
    torch.manual_seed(0)
    attention = CausalAttention(4, 6, 8, 2).eval()
    query, key = torch.randn(2, 4, 3, 4), torch.randn(2, 6, 3, 4)
    q, k, v = attention.query(query), attention.key(key), attention.value(key)
    out = attention(query, key)
    earlier = torch.ones(12, 12, dtype=torch.bool).tril(-1)
    for head in range(2):
        qh, kh, vh = (x[:, 4 * head : 4 * head + 4].flatten(2).transpose(1, 2) for x in (q, k, v))
        logits = (qh @ kh.transpose(1, 2) / 2).masked_fill(~earlier, -torch.inf)
        expected = logits.softmax(dim=2).nan_to_num(0.0) @ vh  # [B, L, d]
        torch.testing.assert_close(out[:, 4 * head : 4 * head + 4].flatten(2), expected.mT)
    assert not out[:, :, 0, 0].any()


def test_conditioning_stack_adds_each_map_at_its_size():
    torch.manual_seed(0)
    stack = ConditionStack(5, 4, num_maps=2, num_layers=0, kernel_size=3)
    coarse, fine = torch.randint(5, (2, 2, 3)), torch.randint(5, (2, 4, 6))
    expected = F.interpolate(stack.stems[0](coarse), scale_factor=2.0) + stack.stems[1](fine)
    torch.testing.assert_close(stack([coarse, fine]), expected)


def test_conditioning_stack_sees_all_around():
    torch.manual_seed(0)
    stack = ConditionStack(5, 4, num_maps=1, num_layers=1, kernel_size=3)
    codes = torch.zeros(1, 5, 5, dtype=torch.int64)
    changed = codes.clone()
    changed[0, 2, 2] = 1
    differs = (stack([codes]) != stack([changed])).any(dim=1)[0]
    assert differs.all()


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


def test_buffers_of_a_masked_convolution_can_be_averaged():
    conv = CausalConv2d(3, 4, 3, "exclude")
    averaged = AveragedModel(conv, use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(conv)
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(averaged(x), conv(x))


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
