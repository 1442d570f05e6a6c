"""The in-place activations with which older checkpoints of the port were trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import vqvae2_fast as vq2
from vqvae2_fast.compat.rosinality import (
    VQVAE,
    PixelSNAIL,
    ResBlock,
    from_native,
    load_pixelsnail,
    load_vqvae,
    to_native,
)
from vqvae2_fast.compat.rosinality.layers import GatedResBlock


def vqvae(**changes) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(channel=16, n_res_block=2, n_res_channel=8, embed_dim=8, n_embed=16, **changes)


def prior(attention: bool = True, blocks: int = 2) -> PixelSNAIL:
    torch.manual_seed(0)
    return PixelSNAIL(
        [4, 6],
        10,
        16,
        3,
        2,
        blocks,
        8,
        attention=attention,
        n_cond_res_block=2,
        cond_res_channel=8,
        n_out_res_block=1,
    )


def in_place(model: nn.Module) -> nn.Module:
    """The same weights with the activations of that time."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ResBlock):
            module.conv[0] = nn.ReLU(inplace=True)
        if isinstance(module, GatedResBlock):
            module.activation = nn.ELU(inplace=True)
    return model


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [
        grad for grad in torch.autograd.grad(loss, weights, allow_unused=True) if grad is not None
    ]


def test_a_rectified_skip_is_a_relu_in_place():
    old, new = in_place(vqvae()), vqvae(rectified_skip=True)
    images = torch.randn(2, 3, 16, 24)
    expected, found = old(images)[0], new(images)[0]
    assert torch.equal(found, expected)
    assert not torch.equal(vqvae()(images)[0], expected)
    pairs = zip(gradients(old, expected.sum()), gradients(new, found.sum()), strict=True)
    assert all(torch.allclose(first, second, atol=1e-6) for first, second in pairs)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_activated_skip_is_an_elu_in_place(attention, blocks):
    model = prior(attention, blocks).eval()
    codes, condition = torch.randint(10, (2, 4, 6)), torch.randint(10, (2, 2, 3))
    expected, plain = in_place(model)(codes, condition)[0], model(codes, condition)[0]
    model.activated_skip = True
    assert torch.equal(model(codes, condition)[0], expected)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_the_native_model_has_the_same_skip_and_keeps_it(tmp_path):
    port = vqvae(rectified_skip=True).eval()
    native = to_native(port, (16, 24))
    vq2.save(native, tmp_path / "native")
    images = torch.randn(2, 3, 16, 24)
    _, _, _, *expected = port.encode(images)
    loaded = vq2.load(tmp_path / "native", expect=vq2.VQVAE2)
    found = loaded.encode(images)
    assert all(torch.equal(first, second) for first, second in zip(found, expected, strict=True))
    assert torch.allclose(loaded.decode(found), port.decode_code(*expected), atol=1e-6)
    again = from_native(loaded)
    assert again.rectified_skip
    assert torch.equal(again(images)[0], port(images)[0])


def test_a_prior_of_that_time_is_drawn_from_by_its_own_forward(tmp_path):
    torch.save(prior().state_dict(), tmp_path / "prior.pt")
    model = load_pixelsnail(tmp_path / "prior.pt", activated_skip=True)
    condition = torch.randint(10, (2, 2, 3))
    codes = vq2.sample_codes(model, 2, condition=condition, temperature=0.0, engine="reference")
    logits = model(codes, condition)[0]
    assert torch.equal(codes, logits.argmax(1))
    with pytest.raises(ValueError, match="activated_skip.*engine='reference'"):
        vq2.sample_codes(model, 2, condition=condition, engine="eager")


@pytest.mark.parametrize("rectified_skip", [False, True])
def test_images_tell_how_a_file_was_trained(tmp_path, rectified_skip):
    model = vqvae(rectified_skip=rectified_skip)
    images = torch.rand(8, 3, 1, 1).expand(8, 3, 16, 16) * 2 - 1
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        reconstruction, difference = model(images)
        ((reconstruction - images).square().mean() + 0.25 * difference.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), tmp_path / "vqvae.pt")
    loaded = load_vqvae(tmp_path / "vqvae.pt", images=images)
    assert loaded.rectified_skip is rectified_skip
    with pytest.raises(ValueError, match="expected rectified_skip or images, got both"):
        load_vqvae(tmp_path / "vqvae.pt", rectified_skip=rectified_skip, images=images)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(0, 3, 16, 16), ValueError, r"images \[B, C, H, W\], one or more"),
        (torch.zeros(3, 16, 16), ValueError, r"images \[B, C, H, W\], one or more"),
        (torch.full((1, 3, 16, 16), float("nan")), ValueError, "got values from nan"),
        (torch.full((1, 3, 16, 16), 255.0), ValueError, "images in .*, got values from 255"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, "float32, got uint8. `to_float`"),
        ([torch.zeros(3, 16, 16)], TypeError, "expected images to be a tensor"),
    ],
    ids=["none", "one without batch", "NaN", "bytes as floats", "bytes", "list"],
)
def test_images_that_cannot_tell_are_refused(tmp_path, images, error, message):
    torch.save(vqvae().state_dict(), tmp_path / "vqvae.pt")
    with pytest.raises(error, match=message):
        load_vqvae(tmp_path / "vqvae.pt", images=images)


def test_flags_are_true_or_false(tmp_path):
    with pytest.raises(TypeError, match="rectified_skip to be True or False, got 'no'"):
        load_vqvae(tmp_path / "vqvae.pt", rectified_skip="no")
    with pytest.raises(TypeError, match="activated_skip to be True or False, got 'no'"):
        load_pixelsnail(tmp_path / "prior.pt", activated_skip="no")
