"""Priors whose forward or parameters somebody changed: drawn as they are now, or refused."""

from __future__ import annotations

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior
from torch import nn
from torch.nn.utils import parametrize

from vqvae2_fast import PixelSNAIL
from vqvae2_fast.modules import as_made
from vqvae2_fast.modules.causal_conv import SameConv2d
from vqvae2_fast.sampling import choose_engine, sample_codes, score_codes
from vqvae2_fast.sampling.bounds import watched_activations


class Scaled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return -3.0 * weight


def drawn(prior: PixelSNAIL, engine: str) -> torch.Tensor:
    return sample_codes(prior, 4, labels=[0, 1, 2, 0], engine=engine)


def scores(prior: PixelSNAIL, engine: str) -> torch.Tensor:
    return score_codes(prior, **prior_inputs(prior, 4), engine=engine)


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


class LowRank(nn.Module):
    """A layer with a correction beside it, as LoRA adds one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.kernel, self.bias = layer.kernel, layer.bias

    def forward(self, x: torch.Tensor, **options: bool) -> torch.Tensor:
        return 0.1 * self.layer(x, **options)


class Doubled(SameConv2d):
    def forward(self, x: torch.Tensor, **options: bool) -> torch.Tensor:
        return 2 * super().forward(x, **options)


def wrapped(prior: PixelSNAIL) -> PixelSNAIL:
    prior.head = LowRank(prior.head)
    return prior


def of_another_class(prior: PixelSNAIL) -> PixelSNAIL:
    prior.head.__class__ = Doubled
    return prior


def parametrized(prior: PixelSNAIL) -> PixelSNAIL:
    parametrize.register_parametrization(prior.head, "bias", Scaled())
    return prior


def with_other_heads(prior: PixelSNAIL) -> PixelSNAIL:
    prior.blocks[0].attention.num_heads = 1
    return prior


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (wrapped, "its module head is a LowRank, not a SameConv2d"),
        (of_another_class, "Doubled replaces SameConv2d.forward"),
        (parametrized, "its module head is parametrized"),
        (with_other_heads, "its module blocks.0.attention has another num_heads: 1, not 2"),
        (subclassed, "Flatter replaces PixelSNAIL.forward"),
        (hooked, "it has a hook on its forward"),
        (hooked_within, "its module head has a hook on its forward"),
        (replaced, "it has another forward"),
    ],
)
def test_another_forward_is_drawn_from_by_the_reference_alone(alter, reason) -> None:
    prior = tiny_prior(num_classes=3)
    plain = scores(prior, "reference")
    prior = alter(prior)
    with pytest.warns(RuntimeWarning, match=f"engine reference draws, .*: {reason}"):
        own = scores(prior, "auto")
    assert torch.equal(own, scores(prior, "reference"))
    assert not torch.equal(own, plain)
    with pytest.raises(RuntimeError, match=f"prior: {reason}, which no plan knows of"):
        drawn(prior, "eager")


class WithMethods(PixelSNAIL):
    """Adds to a prior what does not concern its draws."""

    def loss(self, *arguments, **options):
        return 2 * super().loss(*arguments, **options)

    def share(self) -> None:
        pass


def test_what_does_not_concern_a_draw_may_change() -> None:
    prior = WithMethods(tiny_prior(num_classes=3).config).eval()
    prior.blocks[0].layers[0].dropout = 0.7
    prior.note = "mine"
    prior.head.compile(backend="eager")
    assert choose_engine("auto", prior)[0] == choose_engine("auto", tiny_prior())[0]


def test_a_draw_by_the_reference_does_not_alter_the_prior_for_others() -> None:
    prior = tiny_prior()
    engine = choose_engine("auto", prior)
    with watched_activations(prior):
        assert choose_engine("auto", prior) == engine


def test_an_altered_prior_of_another_process_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, altered = tiny_prior(), tiny_prior()
    altered.stem.left.padding = (1, 1)
    monkeypatch.setattr(as_made, "_remembered", {})  # as after unpickling both
    assert choose_engine("auto", plain)[0] != "reference"
    engine, why = choose_engine("auto", altered)
    assert engine == "reference"
    assert "stem.left has another padding" in why
