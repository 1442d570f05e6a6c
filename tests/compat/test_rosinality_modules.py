"""The port's prior and its layers: keys, sizes and quirks, and the errors for misuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqvae2_fast import sample_codes
from vqvae2_fast.compat.rosinality import (
    CausalAttention,
    CausalConv2d,
    CondResNet,
    GatedResBlock,
    PixelBlock,
    PixelSNAIL,
    WNConv2d,
    causal_mask,
    shift_down,
    shift_right,
    wn_linear,
)


def small_prior(**keywords) -> PixelSNAIL:
    torch.manual_seed(0)
    return PixelSNAIL([6, 4], 10, 16, 3, 2, 1, 12, **keywords)


@pytest.mark.parametrize(
    ("shape", "keywords", "keys", "parameters"),
    [
        ([32, 32], {}, 226, 84.9),
        ([64, 64], {"attention": False, "n_cond_res_block": 3, "cond_res_channel": 256}, 171, 89.8),
    ],
    ids=["top", "bottom"],
)
def test_default_priors_have_the_ports_keys_and_size(shape, keywords, keys, parameters):
    with torch.device("meta"):
        model = PixelSNAIL(shape, 512, 256, 5, 4, 4, 256, **keywords)
    assert len(model.state_dict()) == keys
    assert next(iter(model.state_dict())) == "background"
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == parameters


def test_keys_of_a_weight_normed_layer_come_in_the_ports_order():
    keys = list(GatedResBlock(4, 6, 3, conv="causal", condition_dim=2).state_dict())
    expected = [
        f"conv{i}.conv.conv.{name}" for i in (1, 2) for name in ("bias", "weight_g", "weight_v")
    ]
    assert keys == [*expected, "condition.conv.weight_g", "condition.conv.weight_v"]


def test_causal_weights_are_masked_in_place_at_forward_and_g_is_of_unmasked_ones():
    torch.manual_seed(0)
    conv = CausalConv2d(3, 4, 5, padding="causal")
    weight_v, weight_g = conv.conv.conv.weight_v, conv.conv.conv.weight_g
    assert torch.allclose(weight_g.flatten(), weight_v.flatten(1).norm(dim=1))
    assert weight_v[:, :, -1, 2:].abs().min() > 0
    conv(torch.randn(1, 3, 6, 6))
    assert weight_v[:, :, -1, 2:].abs().max() == 0
    assert weight_v[:, :, -1, :2].abs().min() > 0
    norm = (weight_g * weight_v / weight_v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).flatten(1)
    assert torch.allclose(conv.conv.conv.weight.flatten(1), norm)


def test_two_forwards_before_one_backward_are_allowed():
    conv = CausalConv2d(3, 4, 3, padding="causal")
    (conv(torch.randn(1, 3, 6, 6)).sum() + conv(torch.randn(1, 3, 6, 6)).sum()).backward()
    assert conv.conv.conv.weight_v.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("padding", "pads"),
    [("downright", (2, 0, 1, 0)), ("down", (1, 1, 1, 0)), ("causal", (1, 1, 1, 0))],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_causal_convolution_pads_as_described(padding, pads, stride):
    torch.manual_seed(0)
    conv = CausalConv2d(3, 4, [2, 3], stride=stride, padding=padding, activation=F.relu)
    x = torch.randn(2, 3, 5, 6)
    out = conv(x)
    weight, bias = conv.conv.conv.weight, conv.conv.conv.bias
    expected = F.relu(F.conv2d(F.pad(x, pads), weight, bias, stride))
    assert torch.allclose(out, expected, atol=1e-5)


def test_plain_convolution_is_weight_normed():
    torch.manual_seed(0)
    conv = WNConv2d(3, 4, 3, stride=2, padding=1, bias=False, activation=F.elu)
    x = torch.randn(2, 3, 6, 6)
    v, g = conv.conv.weight_v, conv.conv.weight_g
    weight = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(conv(x), F.elu(F.conv2d(x, weight, None, 2, 1)), atol=1e-6)


def test_linear_is_weight_normed():
    torch.manual_seed(0)
    linear = wn_linear(5, 3)
    linear.weight_g.data *= 2
    v = linear.weight_v
    weight = linear.weight_g * v / v.norm(dim=1, keepdim=True)
    x = torch.randn(2, 5)
    assert torch.allclose(linear(x), F.linear(x, weight, linear.bias), atol=1e-6)


@pytest.mark.parametrize(("shift", "dim"), [(shift_down, 2), (shift_right, 3)])
def test_shifts_bring_zeros_in(shift, dim):
    x = torch.randn(1, 2, 4, 5)
    out = shift(x, 2)
    assert out.shape == x.shape
    assert (out.narrow(dim, 0, 2) == 0).all()
    size = x.shape[dim] - 2
    assert torch.equal(out.narrow(dim, 2, size), x.narrow(dim, 0, size))


def test_gated_block_takes_auxiliary_input_and_condition():
    torch.manual_seed(0)
    block = GatedResBlock(4, 6, 1, auxiliary_channel=3, condition_dim=2).eval()
    x, aux, condition = (torch.randn(1, c, 2, 2) for c in (4, 3, 2))
    hidden = F.elu(block.conv1(F.elu(x)) + block.aux_conv(F.elu(aux)))
    gate = block.conv2(hidden) + block.condition(condition)
    expected = gate[:, :4] * gate[:, 4:].sigmoid() + x
    assert torch.allclose(block(x, aux, condition), expected, atol=1e-6)


def test_block_without_attention_has_no_residual_path():
    block = PixelBlock(16, 8, 3, 1, attention=False).eval()
    for name in ("weight_g", "bias"):
        getattr(block.out.conv, name).data.zero_()
    assert (block(torch.randn(1, 16, 4, 4), torch.randn(1, 2, 4, 4)) == 0).all()


def test_attention_equals_the_masked_softmax_of_the_description():
    torch.manual_seed(0)
    attention = CausalAttention(5, 6, 16, n_head=4).eval()
    query, key = torch.randn(2, 5, 3, 4), torch.randn(2, 6, 3, 4)

    def heads(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return linear(x.flatten(2).transpose(1, 2)).view(2, 12, 4, 4).transpose(1, 2)

    q, k, v = heads(attention.query, query), heads(attention.key, key), heads(attention.value, key)
    mask, start_mask = causal_mask(12)
    logits = (q @ k.transpose(2, 3) / 2).masked_fill(mask == 0, -1e4)
    out = (logits.softmax(3) * start_mask) @ v
    expected = out.transpose(1, 2).reshape(2, 12, 16).transpose(1, 2).view(2, 16, 3, 4)
    assert torch.allclose(attention(query, key), expected, atol=1e-6)


def test_attention_drops_in_training_by_the_seed_of_torch():
    attention = CausalAttention(5, 6, 16, dropout=0.5)
    query, key = torch.randn(1, 5, 3, 4), torch.randn(1, 6, 3, 4)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(attention(query, key))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_dropout_of_conditioning_and_output_stacks_is_a_tenth_whatever_is_asked():
    model = small_prior(dropout=0.7, n_cond_res_block=1, cond_res_channel=8, n_out_res_block=1)
    rates = {
        name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)
    }
    for name, rate in rates.items():
        assert rate == (0.1 if name.startswith(("cond_resnet", "out.")) else 0.7), name


@pytest.mark.parametrize("attention", [True, False])
def test_logits_depend_on_earlier_codes_only(attention):
    model = small_prior(attention=attention).eval()
    torch.manual_seed(1)
    codes = torch.randint(10, (1, 6, 4))
    with torch.no_grad():
        before = model(codes)[0]
        for position in range(24):
            other = codes.clone().view(-1)
            other[position] = (other[position] + 1) % 10
            after = model(other.view(1, 6, 4))[0]
            changed = (after != before).any(1).flatten()
            assert not changed[: position + 1].any()
            if position % 4 < 3:  # the next one lies in the same row
                assert changed[position + 1]


def test_row_prefix_gives_the_logits_of_the_whole_map():
    model = small_prior(n_cond_res_block=1, cond_res_channel=8).eval()
    codes, condition = torch.randint(10, (2, 6, 4)), torch.randint(10, (2, 3, 2))
    with torch.no_grad():
        whole = model(codes, condition)[0]
        for rows in range(1, 7):
            part = model(codes[:, :rows], condition)[0]
            assert torch.allclose(part, whole[:, :, :rows], atol=1e-5)


@pytest.mark.parametrize("batch", [2, 50], ids=["channels_first", "channels_last"])
def test_logits_are_the_same_with_and_without_gradients(batch):
    model = small_prior(n_out_res_block=1).eval()
    codes = torch.randint(10, (batch, 6, 4))
    with torch.no_grad():
        without = model(codes)[0]
    torch.testing.assert_close(without, model(codes)[0].detach(), atol=1e-5, rtol=1e-5)


def test_condition_is_computed_once_per_cache_and_kept_detached():
    model = small_prior(n_cond_res_block=1, cond_res_channel=8).eval()
    codes = torch.randint(10, (1, 6, 4))
    first, second = (torch.full((1, 3, 2), value) for value in (1, 2))
    logits, cache = model(codes, first)
    assert cache["condition"].shape == (1, 8, 6, 4)
    assert not cache["condition"].requires_grad
    again, same_cache = model(codes, second, cache)
    assert same_cache is cache
    assert torch.equal(again, logits)
    assert not torch.equal(model(codes, second)[0], logits)


def test_condition_gets_gradients_when_it_is_computed():
    model = small_prior(n_cond_res_block=1, cond_res_channel=8).eval()
    logits, _ = model(torch.randint(10, (1, 6, 4)), torch.randint(10, (1, 3, 2)))
    logits.square().sum().backward()
    assert model.cond_resnet.blocks[0].conv.weight_v.grad.abs().sum() > 0


@pytest.mark.parametrize("empty", ["n_block", "n_res_block"])
def test_a_prior_without_gated_layers_is_drawn_from_by_its_own_forward(empty):
    sizes = {"n_block": 1, "n_res_block": 1, empty: 0}
    prior = PixelSNAIL([3, 4], 10, 16, 3, res_channel=8, attention=False, **sizes).eval()
    codes = sample_codes(prior, 2, temperature=0.0, engine="reference")
    assert torch.equal(codes, prior(codes)[0].argmax(1))
    with pytest.raises(ValueError, match="no gated layers.*engine='reference'"):
        sample_codes(prior, 2, engine="eager")


def test_apply_sees_convolutions_and_linear_layers():
    model = PixelSNAIL([4, 4], 8, 16, 3, 1, 1, 8, n_cond_res_block=1, cond_res_channel=8)
    seen = {nn.Conv2d: 0, nn.Linear: 0}

    def visit(module: nn.Module) -> None:
        for kind in seen:
            if isinstance(module, kind):
                seen[kind] += 1
                assert module.weight.shape == module.weight_v.shape

    model.apply(visit)
    assert sum(seen.values()) == sum(name.endswith("weight_v") for name in model.state_dict())
    assert seen[nn.Linear] == 3
    first = model.horizontal.conv.conv
    assert (first.kernel_size, first.in_channels, first.out_channels) == ((1, 3), 8, 16)


CODES = torch.zeros(1, 6, 4, dtype=torch.int64)
CONDITIONED = {"n_cond_res_block": 1, "cond_res_channel": 8}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small_prior()(CODES.new_zeros(1, 7, 4)), r"codes \[B, h, 4\] with h <= 6"),
        (lambda: small_prior()(CODES[..., :3]), r"codes \[B, h, 4\]"),
        (lambda: small_prior()(CODES + 11), r"input in 0\.\.9, got values in 11"),
        (lambda: small_prior()(CODES.float()), "input int64, got float32"),
        (lambda: small_prior()(CODES, CODES[:, :3, :2]), "n_cond_res_block=0"),
        (lambda: small_prior(**CONDITIONED)(CODES, CODES), r"condition \[B, 3, 2\]"),
        (lambda: small_prior(n_cond_res_block=1), "cond_res_channel >= 1"),
        (lambda: PixelSNAIL([6, 4, 2], 10, 16, 3, 1, 1, 8), r"shape \[H, W\], got \[6, 4, 2\]"),
        (lambda: PixelSNAIL([6, 4], 10, 16, 4, 1, 1, 8), "odd kernel_size >= 3, got 4"),
        (lambda: PixelSNAIL([6, 4], 10, 24, 3, 1, 1, 8), "multiple of 16 with attention"),
        (lambda: CondResNet(4, 6, 4, 1), "odd kernel_size, got 4"),
        (lambda: CausalAttention(5, 6, 18, n_head=4), "multiple of n_head=4, got 18"),
        (lambda: GatedResBlock(4, 6, 3, conv="conv2d"), "got 'conv2d'"),
        (lambda: CausalConv2d(3, 4, 3, padding="same"), "got 'same'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
