"""A training forward that an activation checkpoint computes again."""

import copy
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vqvae2_fast.modules.quantizer import VectorQuantizerEMA
from vqvae2_fast.modules.residual_vq import ResidualVQ

K, D = 12, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("update", ["forward", "step"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_does_not_count_twice(update: str, use_reentrant: bool) -> None:
    plain = VectorQuantizerEMA(K, D, init="normal", decay=0.5, update=update)
    checkpointed = copy.deepcopy(plain)
    z = torch.randn(40, D)
    gradients = []
    for quantizer in (plain, checkpointed):
        inputs = z.clone().requires_grad_()

        def run(x: torch.Tensor, quantizer: VectorQuantizerEMA = quantizer) -> torch.Tensor:
            z_q, _, loss = quantizer(x)
            return z_q.square().sum() + loss

        if quantizer is checkpointed:
            checkpoint(run, inputs, use_reentrant=use_reentrant).backward()
        else:
            run(inputs).backward()
        if update == "step":
            assert quantizer.pending.counts.sum() == 40
            quantizer.update_codebook_()
        gradients.append(inputs.grad)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    # The recomputation looks up the codes of the forward, not the updated ones.
    assert torch.equal(*gradients)


def losses_of(quantizer, batches, use_reentrant: bool) -> list[torch.Tensor]:
    return [checkpoint(lambda z: quantizer(z)[2], z, use_reentrant=use_reentrant) for z in batches]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("make", [partial(VectorQuantizerEMA, K), partial(ResidualVQ, (K, K))])
def test_only_the_latest_forward_can_be_recomputed(make, use_reentrant: bool) -> None:
    quantizer = make(D, init="normal", decay=0.5)
    # The same vectors twice: the codebook has moved in between all the same.
    inputs = torch.randn(40, D).expand(2, 40, D).clone().requires_grad_()
    losses = losses_of(quantizer, inputs, use_reentrant)
    with pytest.raises(RuntimeError, match="recomputes another forward than the latest.*'step'"):
        sum(losses).backward()


def test_forwards_in_one_checkpoint_are_refused() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", decay=0.5)
    inputs = torch.randn(40, D).expand(2, 40, D).clone().requires_grad_()
    loss = checkpoint(lambda z: sum(quantizer(part)[2] for part in z), inputs, use_reentrant=False)
    with pytest.raises(RuntimeError, match="recomputes another forward than the latest"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_recomputation_may_see_other_bits(use_reentrant: bool, depth: int) -> None:
    """An encoder need not be deterministic to the last bit."""
    plain = VectorQuantizerEMA(K, D, init="normal", decay=0.5)
    checkpointed = copy.deepcopy(plain)
    scale = 1.0

    def run(z: torch.Tensor) -> torch.Tensor:
        return checkpointed(z * scale)[2]

    for _ in range(depth):
        run = partial(checkpoint, run, use_reentrant=use_reentrant)
    gradients = []
    for _ in range(2):
        z = torch.randn(40, D)
        expected, actual = z.clone().requires_grad_(), z.clone().requires_grad_()
        plain(expected)[2].backward()
        scale = 1.0
        loss = run(actual)
        scale = 1 + 2**-20
        loss.backward()
        gradients.append((actual.grad, expected.grad))
    for pair in gradients:
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_decoder_behind_a_frozen_encoder_is_not_given_later_codes(use_reentrant: bool) -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", decay=0.5)
    decoder = torch.nn.Linear(D, D)

    def run(z: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return decoder(quantizer(z)[0]).square().sum() * scale

    scale = torch.ones((), requires_grad=True)
    z = torch.randn(40, D)
    losses = [checkpoint(run, z, scale, use_reentrant=use_reentrant) for _ in range(2)]
    losses[1].backward()
    with pytest.raises(RuntimeError, match="recomputes another forward than the latest"):
        losses[0].backward()


def test_forwards_of_one_step_can_be_recomputed_together() -> None:
    quantizer = VectorQuantizerEMA(K, D, init="normal", decay=0.5, update="step")
    gradients = []
    for run in (quantizer, lambda z: checkpoint(quantizer, z, use_reentrant=False)):
        inputs = torch.randn(2, 40, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sum(run(z)[2] for z in inputs).backward()
        gradients.append(inputs.grad)
    assert torch.equal(*gradients)
