"""The port's modules against tensors computed with the port itself (tests/data/golden)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vqvae2_fast.compat.rosinality import VQVAE, PixelSNAIL, Quantize

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SPEC = json.loads((GOLDEN / "golden.json").read_text())
PRIORS = ("pixelsnail_top", "pixelsnail_bottom")

# Relative to the largest value: float32 sums in another order than the port's.
FORWARD, GRADIENT, BUFFER = 2e-5, 1e-4, 1e-4


def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    prefix += "."
    return {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    error = (actual.detach() - expected).abs().max()
    return float(error / expected.abs().max().clamp(min=1e-12))


@pytest.fixture
def vqvae() -> tuple[VQVAE, dict[str, torch.Tensor]]:
    tensors = golden("vqvae")
    model = VQVAE(**SPEC["vqvae"]["constructor"])
    model.load_state_dict(part(tensors, "state"))
    return model, tensors


def prior(name: str) -> tuple[PixelSNAIL, dict[str, torch.Tensor]]:
    tensors = golden(name)
    model = PixelSNAIL(*SPEC[name]["constructor"], **SPEC[name]["keywords"])
    model.load_state_dict(part(tensors, "state"))
    return model.eval(), tensors


def test_vqvae_eval_outputs(vqvae):
    model, tensors = vqvae
    model.eval()
    dec, diff = model(tensors["x"])
    quant_t, quant_b, diff_too, id_t, id_b = model.encode(tensors["x"])
    assert diff.shape == (1,)
    assert torch.equal(diff, diff_too)
    assert torch.equal(id_t, tensors["id_t"])
    assert torch.equal(id_b, tensors["id_b"])
    assert relative_error(dec, tensors["dec"]) < FORWARD
    assert relative_error(diff, tensors["diff"]) < FORWARD
    assert relative_error(quant_t, tensors["quant_t"]) < FORWARD
    assert relative_error(quant_b, tensors["quant_b"]) < FORWARD
    decoded = model.decode_code(tensors["id_t"], tensors["id_b"])
    assert relative_error(decoded, tensors["decode_code"]) < FORWARD


def test_vqvae_eval_leaves_the_buffers_alone(vqvae):
    model, tensors = vqvae
    model.eval()(tensors["x"])
    for key, value in part(tensors, "state").items():
        assert torch.equal(model.state_dict()[key], value), key


def test_vqvae_training_step(vqvae):
    model, tensors = vqvae
    model.train()
    x = tensors["train_x"].clone().requires_grad_()
    dec, diff = model(x)
    assert relative_error(dec, tensors["train_dec"]) < FORWARD
    assert relative_error(diff, tensors["train_diff"]) < FORWARD
    (dec.pow(2).mean() + 0.25 * diff.mean()).backward()
    assert relative_error(x.grad, tensors["train_x_grad"]) < GRADIENT
    gradients = part(tensors, "grad")
    parameters = dict(model.named_parameters())
    assert gradients.keys() == parameters.keys()
    for key, gradient in gradients.items():
        assert relative_error(parameters[key].grad, gradient) < GRADIENT, key
    for key, value in part(tensors, "after").items():
        assert relative_error(model.state_dict()[key], value) < BUFFER, key


def test_quantize_training_trajectory():
    tensors = golden("quantize")
    model = Quantize(*SPEC["quantize"]["constructor"])
    model.load_state_dict(part(tensors, "state"))
    for step in range(4):
        expected = part(tensors, f"step{step}")
        quantize, diff, index = model(expected["x"])
        assert torch.equal(index, expected["index"]), step
        assert diff.dim() == 0
        assert relative_error(quantize, expected["quantize"]) < FORWARD, step
        assert relative_error(diff, expected["diff"]) < FORWARD, step
        for key in ("embed", "cluster_size", "embed_avg"):
            assert relative_error(getattr(model, key), expected[key]) < BUFFER, (step, key)


@pytest.mark.parametrize("name", PRIORS)
def test_prior_logits(name):
    model, tensors = prior(name)
    logits, _ = model(tensors["codes"], tensors.get("condition"))
    assert relative_error(logits, tensors["logits"]) < FORWARD


@pytest.mark.parametrize("name", PRIORS)
def test_saved_checkpoint_has_masked_entries_to_zero(name):
    """Without this the test of the logits would not notice a norm over masked entries."""
    weight = golden(name)["state.blocks.0.resblocks.0.conv1.conv.conv.weight_v"]
    assert weight[:, :, -1, weight.shape[3] // 2 :].abs().min() > 0


@pytest.mark.parametrize("name", PRIORS)
def test_naive_sampling_as_the_port_does_it(name):
    """Row prefixes with the cache passed along, as in the port's sample.py."""
    model, tensors = prior(name)
    batch, height, width = tensors["sampled"].shape
    row, cache = torch.zeros(batch, height, width, dtype=torch.int64), {}
    with torch.no_grad():
        for i in range(height):
            for j in range(width):
                logits, cache = model(row[:, : i + 1], tensors.get("condition"), cache)
                row[:, i, j] = (logits[:, :, i, j] + tensors["gumbel"][:, i, j]).argmax(1)
    assert torch.equal(row, tensors["sampled"])
