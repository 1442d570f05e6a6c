"""Priors whose forward or parameters somebody changed: drawn as they are now, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from vqvae2_fast import PixelSNAIL
from vqvae2_fast.sampling import sample_codes, score_codes
from vqvae2_fast.testing.priors import prior_inputs, tiny_prior


class Scaled(nn.Module):
    """A parametrization with state that is no tensor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.factor


def drawn(prior: PixelSNAIL, engine: str) -> torch.Tensor:
    return sample_codes(prior, 4, labels=[0, 1, 2, 0], engine=engine)


def scores(prior: PixelSNAIL, engine: str) -> torch.Tensor:
    return score_codes(prior, **prior_inputs(prior, 4), engine=engine)


def classes_of(prior: PixelSNAIL) -> nn.Module:
    return next(m for m in prior.modules() if isinstance(getattr(m, "classes", None), nn.Embedding))


def test_a_parametrization_is_drawn_with_while_it_is_there_and_as_it_is() -> None:
    prior = tiny_prior(num_classes=3)
    table = classes_of(prior).classes
    plain = scores(prior, "auto")
    scaled = Scaled(-3.0)
    parametrize.register_parametrization(table, "weight", scaled)
    for factor in (-3.0, 5.0):
        scaled.factor = factor
        assert not torch.allclose(scores(prior, "auto"), plain)
        torch.testing.assert_close(scores(prior, "auto"), scores(prior, "reference"))
    parametrize.remove_parametrizations(table, "weight", leave_parametrized=False)
    assert torch.equal(scores(prior, "auto"), plain)


class Flatter(PixelSNAIL):
    def forward(self, *arguments, **options):
        return 0.1 * super().forward(*arguments, **options)


def subclassed(prior: PixelSNAIL) -> PixelSNAIL:
    other = Flatter(prior.config)
    other.load_state_dict(prior.state_dict())
    return other.eval()


def hooked(prior: PixelSNAIL) -> PixelSNAIL:
    prior.register_forward_hook(lambda _module, _inputs, logits: 0.1 * logits)
    return prior


def hooked_within(prior: PixelSNAIL) -> PixelSNAIL:
    prior.head.register_forward_hook(lambda _module, _inputs, logits: 0.1 * logits)
    return prior


def replaced(prior: PixelSNAIL) -> PixelSNAIL:
    forward = prior.forward
    prior.forward = lambda *arguments, **options: 0.1 * forward(*arguments, **options)
    return prior


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (subclassed, "Flatter replaces PixelSNAIL.forward"),
        (hooked, "it has a hook on its forward"),
        (hooked_within, "its module head has a hook on its forward"),
        (replaced, "it has another forward"),
    ],
)
def test_another_forward_is_drawn_from_by_the_reference_alone(alter, reason) -> None:
    prior = tiny_prior(num_classes=3)
    plain = drawn(prior, "auto")
    prior = alter(prior)
    with pytest.warns(RuntimeWarning, match=f"engine reference draws, .*: {reason}"):
        own = drawn(prior, "auto")
    assert torch.equal(own, drawn(prior, "reference"))
    assert not torch.equal(own, plain)
    with pytest.raises(RuntimeError, match=f"prior: {reason}, which no plan knows of"):
        drawn(prior, "eager")
