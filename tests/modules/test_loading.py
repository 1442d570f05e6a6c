"""Modules that a state is loaded into: after a forward, or built on the device `meta`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.models import SMALL_TOP, SMALL_VQVAE

import vqvae2_fast as vq2
from vqvae2_fast.modules.causal_conv import CausalConv2d

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
