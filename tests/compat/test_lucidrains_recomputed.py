"""Training forwards of `compat.lucidrains` that an activation checkpoint computes again."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vqvae2_fast.compat.lucidrains import GroupedResidualVQ, ResidualVQ, VectorQuantize

K, D = 12, 8
RESIDUAL = partial(ResidualVQ, dim=D, codebook_size=K, num_quantizers=3)
MODULES = {
    "plain": partial(VectorQuantize, D, K),
    "started and replaced": partial(
        VectorQuantize, D, K, kmeans_init=True, threshold_ema_dead_code=2
    ),
    "projected": partial(VectorQuantize, D, K, codebook_dim=4, use_cosine_sim=True),
    "at once": partial(RESIDUAL, threshold_ema_dead_code=2),
    "straight through at once": partial(RESIDUAL, rotation_trick=False),
    "one by one": partial(RESIDUAL, kmeans_init=True, threshold_ema_dead_code=2),
    "shared": partial(RESIDUAL, shared_codebook=True),
    "beam": partial(RESIDUAL, beam_size=2),
    "grouped": partial(GroupedResidualVQ, dim=D, groups=2, codebook_size=K, num_quantizers=2),
}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_activation_checkpointing_does_not_move_codes_twice(name: str, use_reentrant: bool) -> None:
    torch.manual_seed(0)
    # The dropout has to draw the same mask again.
    plain = nn.ModuleList([nn.Linear(D, D), MODULES[name](), nn.Dropout(0.5)])
    checkpointed = copy.deepcopy(plain)
    x = torch.randn(2, 3, 40, D)

    def run(module: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        encoder, quantizer, dropout = module
        quantized, _, loss = quantizer(encoder(x))
        return dropout(quantized).square().sum() + loss.sum()

    gradients = []
    for module in (plain, checkpointed):
        torch.manual_seed(1)
        inputs = x.clone().requires_grad_()
        for batch in inputs:
            if module is checkpointed:
                checkpoint(run, module, batch, use_reentrant=use_reentrant).backward()
            else:
                run(module, batch).backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("make", [MODULES["plain"], MODULES["at once"]])
def test_only_the_latest_forward_can_be_recomputed(make) -> None:
    module = make()
    x = torch.randn(2, 3, 40, D, requires_grad=True)
    losses = [checkpoint(lambda z: module(z)[2].sum(), z, use_reentrant=False) for z in x]
    with pytest.raises(RuntimeError, match="recomputes another forward than the latest"):
        sum(losses).backward()


def test_several_forwards_can_be_recomputed_if_no_code_moves() -> None:
    module = VectorQuantize(D, K, freeze_codebook=True)
    x = torch.randn(2, 3, 40, D, requires_grad=True)
    sum(checkpoint(lambda z: module(z)[2], z, use_reentrant=False) for z in x).backward()
    assert x.grad.any()


def test_a_step_of_the_in_place_optimiser_is_not_recomputed() -> None:
    module = VectorQuantize(
        D,
        K,
        learnable_codebook=True,
        ema_update=False,
        in_place_codebook_optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    x = torch.randn(3, 40, D, requires_grad=True)
    with pytest.raises(RuntimeError, match="recomputes a forward in which the in-place optimiser"):
        checkpoint(lambda z: module(z)[2], x, use_reentrant=False).backward()
