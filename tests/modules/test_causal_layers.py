"""Gated layers, attention and the conditioning stack."""

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.modules.attention import CausalAttention
from vqvae2_fast.modules.conditioning import ConditionStack
from vqvae2_fast.modules.gated import GatedResidual, upsample_nearest


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


def test_upsampling_is_nearest():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 4)
    expected = F.interpolate(x, scale_factor=(3.0, 2.0), mode="nearest")
    assert torch.equal(upsample_nearest(x, (3, 2), 6), expected)


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
