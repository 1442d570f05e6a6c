"""The port's VQ-VAE: keys and quirks as described, and the errors for its misuse."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vqvae2_fast.compat.rosinality import (
    VQVAE,
    Decoder,
    Encoder,
    Quantize,
    ResBlock,
)
from vqvae2_fast.ops import _native


def test_default_vqvae_has_the_ports_parameters_and_order_of_keys():
    model = VQVAE()
    assert sum(p.numel() for p in model.parameters()) == 1_388_867
    modules = list(dict.fromkeys(key.split(".")[0] for key in model.state_dict()))
    assert modules == [
        "enc_b",
        "enc_t",
        "quantize_conv_t",
        "quantize_t",
        "dec_t",
        "quantize_conv_b",
        "quantize_b",
        "upsample_t",
        "dec",
    ]
    assert list(model.quantize_t.state_dict()) == ["embed", "cluster_size", "embed_avg"]
    assert model.quantize_t.embed.shape == (64, 512)


def test_decay_of_the_vqvae_is_ignored():
    model = VQVAE(channel=8, embed_dim=4, n_embed=8, decay=0.5)
    assert model.quantize_t.decay == model.quantize_b.decay == 0.99


def test_an_unused_code_is_flung_out_and_comes_back():
    """Length of a code that takes no vector, relative to its first."""
    quantize = Quantize(2, 2)
    first = torch.tensor([[0.0, 3.0], [0.0, 4.0]])  # codes (0, 0) and (3, 4), as columns
    quantize.embed.copy_(first)
    quantize.embed_avg.copy_(first)
    x, ratio = torch.zeros(64, 2), {}
    for step in range(1, 1301):
        # Rows near code 0, wherever it is; code 1 gets none.
        quantize(x)
        ratio[step] = float(quantize.embed[:, 1].norm()) / 5
    assert ratio[1] == pytest.approx(99_003, rel=1e-3)
    assert ratio[500] == pytest.approx(657, rel=1e-2)
    assert ratio[1145] == pytest.approx(1.0, rel=2e-2)
    assert ratio[1300] == pytest.approx(0.21, rel=2e-2)


def test_quantize_returns_x_plus_difference_and_passes_gradients_straight():
    torch.manual_seed(0)
    quantize = Quantize(4, 8).eval()
    x = (100 * torch.randn(5, 4)).requires_grad_()
    out, diff, index = quantize(x)
    rows = quantize.embed_code(index)
    assert torch.equal(out, x + (rows - x))
    assert not torch.equal(out, rows)
    weight = torch.randn(5, 4)
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(gradient, weight)
    (gradient,) = torch.autograd.grad(diff, x)
    assert torch.allclose(gradient, 2 * (x - rows) / x.numel())


def test_quantize_looks_up_before_it_updates():
    torch.manual_seed(0)
    quantize = Quantize(4, 8)
    before = quantize.embed.clone()
    x = torch.randn(30, 4)
    out, _, index = quantize(x)
    assert torch.allclose(out, before.t()[index], atol=1e-5)
    assert not torch.allclose(quantize.embed, before)


@pytest.mark.skipif(_native.module is None, reason="this install has no kernels for the CPU")
def test_quantize_trains_with_kernels_alone(monkeypatch):
    monkeypatch.setattr(_native, "STRICT", True)
    Quantize(4, 8)(torch.randn(30, 4))


def test_quantize_computes_in_float32_whatever_comes_in():
    torch.manual_seed(0)
    quantize = Quantize(4, 8).eval()
    x = torch.randn(30, 4).half()
    out, diff, index = quantize(x)
    assert out.dtype == diff.dtype == torch.float32
    assert torch.equal(index, quantize(x.float())[2])


def test_codes_and_vectors_are_given_by_name_too():
    model = VQVAE(channel=8, n_embed=16).eval()
    top, bottom = torch.randint(16, (1, 2, 2)), torch.randint(16, (1, 4, 4))
    expected = model.decode_code(top, bottom)
    assert torch.equal(model.decode_code(code_b=bottom, code_t=top), expected)
    assert torch.equal(model.decode_code(top, code_b=bottom), expected)


@pytest.mark.parametrize(("levels", "side"), [(1, 4), (3, 16)])
def test_images_of_other_levels_have_other_least_sizes(levels, side):
    model = VQVAE(channel=8, n_embed=16, n_level=levels)
    out, diff = model(torch.rand(1, 3, side, side))
    assert out.shape == (1, 3, side, side)
    assert diff.shape == (1,)
    with pytest.raises(
        ValueError, match=f"multiples of {side}.*Resize or pad to {side}×{2 * side}"
    ):
        model(torch.rand(1, 3, side - 1, side + 1))


def test_resblock_keeps_its_input():
    x = torch.randn(1, 4, 5, 5)
    before = x.clone()
    ResBlock(4, 2)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_loss_has_the_dtype_of_the_module(dtype):
    torch.manual_seed(0)
    quantizer = Quantize(4, 8).to(dtype).eval()
    x = torch.randn(30, 4).to(dtype).requires_grad_()
    _, diff, indices = quantizer(x)
    # As the port computes it; in float64 a loss rounded to float32 is off by 1e-8.
    expected = (quantizer.embed_code(indices) - x).square().mean()
    assert diff.dtype == dtype
    tolerance = 1e-14 if dtype == torch.float64 else torch.finfo(dtype).eps
    torch.testing.assert_close(diff, expected, rtol=tolerance, atol=0)


SMALL = partial(VQVAE, channel=8, embed_dim=6, n_embed=16)
CODES = torch.zeros(1, 2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SMALL()(torch.randn(1, 3, 40, 44)), "multiples of 8 .* got 40×44"),
        (lambda: SMALL()(torch.randn(1, 1, 8, 8)), r"images \[B, 3, H, W\], got \[1, 1, 8, 8\]"),
        (lambda: SMALL().decode_code(CODES, CODES), r"code_t and code_b \[B, h, w\]"),
        (lambda: SMALL().decode_code(CODES), "code_t, code_b, got 1 maps"),
        (lambda: SMALL().decode_code(CODES + 16, CODES.repeat(1, 2, 2)), "got values in 16"),
        (lambda: SMALL(n_level=4), "n_level 1, 2 or 3, got 4"),
        (lambda: Quantize(6, 16)(torch.randn(2, 6, 4, 4)), "Images are NCHW: permute"),
        (lambda: Encoder(3, 8, 1, 4, 8), "stride 2 or 4, got 8"),
        (lambda: Decoder(3, 3, 8, 1, 4, 8), "stride 2 or 4, got 8"),
    ],
)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
