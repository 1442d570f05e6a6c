"""Modules that a state is loaded into: after a forward, or built on the device `meta`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.models import SMALL_TOP, SMALL_VQVAE

import vqvae2_fast as vq2
from vqvae2_fast.modules.causal_conv import CausalConv2d
from vqvae2_fast.presets import preset

if TYPE_CHECKING:
    from torch import nn

D = 4


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def codebook() -> vq2.VectorQuantizerEMA:
    return vq2.VectorQuantizerEMA(8, D, update="step", restart=0.5)


@pytest.mark.parametrize("batches", [0, 1], ids=["without_a_batch", "with_a_batch"])
def test_a_forward_before_loading_leaves_nothing_for_the_next_update(batches):
    torch.manual_seed(0)
    trained = codebook()
    trained(torch.randn(64, D))
    trained.update_codebook_()
    state, after = state_of(trained), torch.randn(batches, 20, D)
    states = []
    for before in ([], [torch.randn(64, D) + 50]):
        loaded = codebook()
        for z in before:
            loaded(z)
        loaded.load_state_dict(state)
        for z in after:
            loaded(z)
        loaded.update_codebook_()
        states.append(state_of(loaded))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def fill_with_garbage(module: nn.Module) -> None:
    """What `to_empty` may find in memory."""
    for value in (*module.parameters(), *module.buffers()):
        value.detach().fill_(7)


MAKE = {
    "ema": (codebook, lambda: torch.randn(40, D)),
    "residual_fsq": (lambda: vq2.ResidualFSQ([5, 4], 2, D), lambda: torch.randn(40, D)),
    "masked_convolution": (
        lambda: CausalConv2d(3, 4, 3, "exclude"),
        lambda: torch.randn(2, 3, 5, 6),
    ),
    "prior": (lambda: vq2.PixelSNAIL(SMALL_TOP), lambda: torch.randint(8, (2, 2, 2))),
    "vqvae": (lambda: vq2.VQVAE2(SMALL_VQVAE), lambda: torch.rand(2, 3, 8, 8)),
}


@pytest.mark.parametrize("way", ["to_empty", "assign"])
@pytest.mark.parametrize("name", MAKE)
def test_a_module_from_the_meta_device_computes_what_was_loaded(name, way):
    torch.manual_seed(0)
    make, inputs = MAKE[name]
    module, x = make(), inputs()
    with torch.device("meta"):
        loaded = make()
    if way == "to_empty":
        fill_with_garbage(loaded.to_empty(device="cpu"))
    loaded.load_state_dict(copy.deepcopy(module.state_dict()), assign=way == "assign")
    results = []
    for one in (module, loaded):
        torch.manual_seed(1)  # of dropout
        trained, evaluated = one(x), one.eval()(x)  # the first also counts codes
        one.train()
        for update in ("update_codebook_", "update_codebooks_"):
            getattr(one, update, lambda: None)()
        if name == "vqvae":
            trained, evaluated = trained.reconstruction, evaluated.reconstruction
        results.append((trained, evaluated, state_of(one)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


PRESET = preset("emoji32")


@pytest.mark.parametrize("train", [True, False], ids=["trains", "evaluates"])
@pytest.mark.parametrize(
    "start",
    [{"init": "kmeans"}, {"init": "normal"}, {"update": "step", "quantize_after": 5}],
    ids=str,
)
def test_a_quantizer_without_values_has_the_shapes_of_one_with(start, train):
    quantizer = vq2.VectorQuantizerEMA(8, 4, restart=0.03, **start).train(train).to("meta")
    z_q, indices, loss = quantizer(torch.zeros(2, 3, 4, device="meta"))
    assert (z_q.shape, indices.shape, loss.shape) == ((2, 3, 4), (2, 3), ())
    assert z_q.is_meta and indices.is_meta and loss.is_meta


@pytest.mark.parametrize("train", [True, False], ids=["trains", "evaluates"])
def test_a_vqvae_without_values_has_the_shapes_of_one_with(train):
    model = vq2.VQVAE2(PRESET.vqvae).train(train).to("meta")
    output = model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert output.reconstruction.is_meta
    assert output.reconstruction.shape == (2, 3, 32, 32)
    assert [list(codes.shape) for codes in output.codes] == [[2, 8, 8], [2, 16, 16]]
    assert model.decode(output.codes).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("train", [True, False], ids=["trains", "evaluates"])
@pytest.mark.parametrize("config", PRESET.priors, ids=["top", "bottom"])
def test_a_prior_without_values_has_the_shapes_of_one_with(config, train):
    prior = vq2.PixelSNAIL(config).train(train).to("meta")
    codes, *condition = (
        torch.zeros(2, *size, dtype=torch.int64, device="meta")
        for size in (config.size, *config.condition_sizes)
    )
    logits = prior(codes, condition or None, torch.zeros(2, dtype=torch.int64, device="meta"))
    assert logits.is_meta
    assert logits.shape == (2, config.num_embeddings, *config.size)
