"""The port's models as native ones and back."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F

from vqvae2_fast.compat.rosinality import (
    VQVAE,
    PixelSNAIL,
    from_native,
    load_pixelsnail,
    load_vqvae,
    to_native,
)
from vqvae2_fast.models import pixelsnail as native_pixelsnail
from vqvae2_fast.models.configs import PixelSNAILConfig, VQVAE2Config
from vqvae2_fast.models.vqvae2 import VQVAE2

PRIORS = {
    "attention": {"n_out_res_block": 2},
    "conditioned": {"n_cond_res_block": 2, "cond_res_channel": 8, "cond_res_kernel": 5},
    "plain": {"attention": False, "n_cond_res_block": 1, "cond_res_channel": 8, "dropout": 0.3},
}


def port_vqvae(**changes) -> VQVAE:
    torch.manual_seed(0)
    sizes = {"channel": 16, "n_res_block": 2, "n_res_channel": 6, "embed_dim": 8, "n_embed": 32}
    return VQVAE(**{**sizes, **changes})


def port_prior(name: str, **changes) -> PixelSNAIL:
    torch.manual_seed(0)
    return PixelSNAIL([6, 8], 16, 32, 5, 2, 1, 24, **{**PRIORS[name], **changes})


def equal(state: dict, other: dict) -> bool:
    return list(state) == list(other) and all(torch.equal(state[k], other[k]) for k in state)


def inputs(name: str) -> tuple:
    torch.manual_seed(1)
    codes, condition = torch.randint(16, (2, 6, 8)), torch.randint(16, (2, 3, 4))
    return (codes,) if name == "attention" else (codes, condition)


def test_vqvae_round_trip_gives_equal_tensors():
    port = port_vqvae()
    port(torch.randn(2, 3, 16, 16))  # averages that differ from the codes
    assert equal(from_native(to_native(port)).state_dict(), port.state_dict())


@pytest.mark.parametrize("name", PRIORS)
def test_prior_round_trip_gives_equal_tensors(name):
    port = port_prior(name)
    again = from_native(to_native(port))
    assert equal(again.state_dict(), port.state_dict())
    assert again.blocks[0].resblocks[0].dropout.p == PRIORS[name].get("dropout", 0.1)


@pytest.mark.parametrize("levels", [1, 3])
def test_other_levels_compute_what_the_native_model_does(levels):
    port = port_vqvae(n_level=levels)
    native = to_native(port, image_size=(32, 32))
    assert equal(from_native(native).state_dict(), port.state_dict())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        codes = port.eval().encode(images)[levels + 1 :]
        expected = native.eval().encode(images)
        assert all(torch.equal(a, b) for a, b in zip(codes, expected, strict=True))
        decoded, expected = port.decode_code(*codes), native.decode(list(codes))
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def test_round_trip_from_the_native_side_gives_equal_tensors():
    config = VQVAE2Config(
        image_size=(32, 32),
        hidden_channels=16,
        residual_channels=8,
        num_embeddings=32,
        embedding_dim=8,
        init="normal",
    )
    native = VQVAE2(config)
    assert equal(to_native(from_native(native)).state_dict(), native.state_dict())


@pytest.mark.parametrize("channels", [1, 3])
def test_native_vqvae_gives_the_same_codes_and_images(channels):
    port = port_vqvae(in_channel=channels).eval()
    native = to_native(port, image_size=(24, 16))
    images = torch.randn(2, channels, 24, 16)
    with torch.no_grad():
        _, _, diff, id_t, id_b = port.encode(images)
        top, bottom = native.encode(images)
        assert torch.equal(top, id_t)
        assert torch.equal(bottom, id_b)
        decoded = native.decode([top, bottom])
        assert torch.allclose(decoded, port.decode_code(id_t, id_b), rtol=0, atol=1e-6)
        assert torch.allclose(native(images).commitment, 0.25 * diff[0], rtol=1e-5)
    assert native.config.image_size == (24, 16)
    assert not native.training


def test_native_vqvae_learns_as_the_port_does():
    port = port_vqvae()
    native = to_native(port)
    assert native.training
    optimisers = [torch.optim.SGD(model.parameters(), 0.05) for model in (port, native)]
    torch.manual_seed(1)
    for images in torch.randn(3, 2, 3, 16, 16):
        dec, diff = port(images)
        (F.mse_loss(dec, images) + 0.25 * diff.mean()).backward()
        native.loss(images, native(images)).backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        native.update_codebooks_()
    again = from_native(native).state_dict()
    for key, value in port.state_dict().items():
        assert torch.allclose(again[key], value, rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("name", PRIORS)
def test_native_prior_gives_the_same_logits(name):
    port = port_prior(name).eval()
    native = to_native(port)
    with torch.no_grad():
        expected = port(*inputs(name))[0]
        error = (native(*inputs(name)) - expected).abs().max() / expected.abs().max()
    assert error < 2e-6


def test_masked_weights_of_a_checkpoint_do_not_count_in_the_native_prior():
    port = port_prior("attention").eval()
    native = to_native(port)  # of weights whose masked entries are not zero
    weight = native.blocks[0].layers[0].conv1.kernel.weight_v
    assert weight[:, :, -1, 2:].abs().min() > 0
    with torch.no_grad():
        expected = port(*inputs("attention"))[0]
        assert torch.allclose(native(*inputs("attention")), expected, atol=1e-5)


def test_conversion_leaves_the_random_state_alone():
    port = port_prior("plain")
    state = torch.get_rng_state()
    from_native(to_native(port))
    assert torch.equal(torch.get_rng_state(), state)


def test_conversion_keeps_the_dtype():
    native = to_native(port_prior("plain").double())
    assert native.head.bias.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": "include"}, "mask 'include': it has 'exclude'"),
        ({"num_classes": 3}, "3 classes: it has none"),
        ({"weight_norm": False}, "plain weights"),
        ({"num_heads": 4}, "4 heads: it has 8"),
        ({"condition_sizes": ((2, 2), (4, 4))}, "condition sizes"),
    ],
)
def test_what_the_port_lacks_is_named(change, message):
    sizes = {"size": (8, 8), "num_embeddings": 8, "channels": 16, "residual_channels": 8}
    config = PixelSNAILConfig(**{**sizes, "num_blocks": 1, "mask": "exclude", **change})
    with pytest.raises(ValueError, match=message):
        from_native(native_pixelsnail.PixelSNAIL(config))


@pytest.mark.parametrize("quantizer", [("cosine",), ("ema", "fsq:8,8,8")], ids=str)
def test_quantisers_that_the_port_lacks_are_named(quantizer):
    config = VQVAE2Config(image_size=(32, 32), init="normal", quantizer=quantizer)
    with pytest.raises(ValueError, match="quantizer .*: it has 'ema'"):
        from_native(VQVAE2(config))


def test_a_condition_without_a_stack_is_refused():
    with pytest.raises(ValueError, match="no conditioning stack"):
        to_native(port_prior("attention", cond_res_channel=8))


def test_models_load_from_files_without_their_arguments(tmp_path):
    vqvae, prior = port_vqvae(), port_prior("plain")
    torch.save(vqvae.state_dict(), tmp_path / "vqvae.pt")
    args = argparse.Namespace(dropout=0.3)
    torch.save({"model": prior.state_dict(), "args": args}, tmp_path / "prior.pt")
    with pytest.warns(UserWarning, match="may have been trained before 2021-01-23"):
        loaded = load_vqvae(tmp_path / "vqvae.pt")
    assert equal(loaded.state_dict(), vqvae.state_dict())
    assert not loaded.training
    loaded = load_pixelsnail(tmp_path / "prior.pt")
    assert equal(loaded.state_dict(), prior.state_dict())
    assert loaded.blocks[0].resblocks[0].dropout.p == 0.3
