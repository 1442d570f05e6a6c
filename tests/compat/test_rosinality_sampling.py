"""Draws from the port's priors by every engine; the golden noise gives the golden codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.compare import needs_kernels
from safetensors.torch import load_file

from vqvae2_fast.compat.rosinality import VQVAE, PixelSNAIL, to_native
from vqvae2_fast.sampling import Pipeline, sample_codes, sample_images
from vqvae2_fast.sampling.sampler import ENGINES

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SPEC = json.loads((GOLDEN / "golden.json").read_text())
# Engines that need another device than the CPU have separate tests.
CPU_ENGINES = [engine for engine in ENGINES if engine != "cuda"]
each_engine = pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=[needs_kernels] * (e == "cpu")) for e in CPU_ENGINES]
)


def golden_prior(name: str) -> tuple[PixelSNAIL, dict[str, torch.Tensor]]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    model = PixelSNAIL(*SPEC[name]["constructor"], **SPEC[name]["keywords"])
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("state.")})
    return model.eval(), tensors


def small_models() -> tuple[VQVAE, PixelSNAIL, PixelSNAIL]:
    torch.manual_seed(0)
    vqvae = VQVAE(channel=16, n_res_block=1, n_res_channel=8, embed_dim=8, n_embed=12)
    top = PixelSNAIL([3, 4], 12, 16, 3, 1, 1, 12)
    bottom = PixelSNAIL(
        [6, 8], 12, 16, 3, 1, 1, 12, attention=False, n_cond_res_block=1, cond_res_channel=8
    )
    return vqvae.eval(), top.eval(), bottom.eval()


@each_engine
@pytest.mark.parametrize("name", ["pixelsnail_top", "pixelsnail_bottom"])
def test_engines_draw_the_golden_maps(name, engine):
    prior, tensors = golden_prior(name)
    codes = sample_codes(
        prior, 2, condition=tensors.get("condition"), noise=tensors["gumbel"], engine=engine
    )
    assert torch.equal(codes, tensors["sampled"])


@each_engine
def test_conversion_to_native_draws_the_same_codes(engine):
    _, top, bottom = small_models()
    coarse = sample_codes(top, 2, seed=3, engine=engine)
    assert torch.equal(sample_codes(to_native(top), 2, seed=3, engine=engine), coarse)
    fine = sample_codes(bottom, 2, condition=coarse, seed=3, stream=1, engine=engine)
    native = sample_codes(to_native(bottom), 2, condition=coarse, seed=3, stream=1, engine=engine)
    assert torch.equal(native, fine)


def test_image_of_the_native_pipeline_equals_the_ports():
    vqvae, top, bottom = small_models()
    coarse = sample_codes(top, 2, seed=5)
    fine = sample_codes(bottom, 2, condition=coarse, seed=5, stream=1)
    with torch.no_grad():
        expected = vqvae.decode_code(coarse, fine).clamp(-1, 1)
    native = to_native(vqvae, image_size=(24, 32))
    for priors in ([to_native(top), to_native(bottom)], [top, bottom]):
        images = sample_images(Pipeline(native, priors), 2, seed=5)
        assert torch.allclose(images, expected, rtol=0, atol=1e-6)


def test_masked_weights_that_are_not_zero_do_not_count():
    """As in a checkpoint written after an optimiser step, before any forward has zeroed them."""
    prior, tensors = golden_prior("pixelsnail_top")
    weight = prior.blocks[0].resblocks[0].conv1.conv.conv.weight_v
    assert weight[:, :, -1, 2:].abs().min() > 0
    codes = sample_codes(prior, 2, noise=tensors["gumbel"], engine="eager")
    assert torch.equal(codes, tensors["sampled"])


def test_a_prior_that_learnt_is_drawn_from_as_it_is_now():
    _, top, _ = small_models()
    before = sample_codes(top, 2, seed=1)
    with torch.no_grad():
        top.out[-1].conv.bias.add_(torch.linspace(0, 20, 12))
    after = sample_codes(top, 2, seed=1)
    assert not torch.equal(after, before)
    assert torch.equal(after, sample_codes(top, 2, seed=1, engine="reference"))


@needs_kernels
def test_a_prior_in_training_mode_is_drawn_from_without_dropout():
    _, top, _ = small_models()
    expected = sample_codes(top, 2, seed=1)
    for engine in CPU_ENGINES:
        assert torch.equal(sample_codes(top.train(), 2, seed=1, engine=engine), expected)
    assert top.training
