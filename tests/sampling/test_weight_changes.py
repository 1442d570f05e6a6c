"""Draws with random changes of the weights between them: no engine uses outdated weights."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior
from helpers.near_tie import assert_same_draw
from torch import nn

from vqvae2_fast.models.weights_hash import weights_hash
from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.calibration import calibrate
from vqvae2_fast.sampling.quantized import Calibration
from vqvae2_fast.sampling.sampler import sample_codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae2_fast.models.prior import Prior

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)

EXACT, ROUNDING = ("reference", "eager", "cpu"), ("cpu_w8a8",)
_SMALL: dict[str, Any] = {
    "size": (2, 3),
    "num_embeddings": 7,
    "num_blocks": 1,
    "condition_sizes": ((1, 3),),
    "num_classes": 2,
}


def _some_tensor(prior: nn.Module, rng: random.Random) -> torch.Tensor:
    """A weight or buffer of more than one number."""
    tensors = [*prior.parameters(), *prior.buffers()]
    return rng.choice([t for t in tensors if t.numel() > 1 and t.is_floating_point()])


def _permute(prior: nn.Module, rng: random.Random) -> None:
    tensor = _some_tensor(prior, rng)
    dim = rng.choice([d for d in range(tensor.dim()) if tensor.shape[d] > 1])
    order = torch.tensor(rng.sample(range(tensor.shape[dim]), tensor.shape[dim]))
    tensor.copy_(tensor.index_select(dim, order))


def _flip_signs(prior: nn.Module, rng: random.Random) -> None:
    flat = _some_tensor(prior, rng).view(-1)
    rows = torch.tensor(rng.sample(range(len(flat)), 2 * min(8, len(flat) // 2)))
    flat[rows] = -flat[rows]


def _write_data(prior: nn.Module, rng: random.Random) -> None:
    flat = _some_tensor(prior, rng).data.view(-1)
    flat[rng.randrange(len(flat))] += rng.choice((-1.0, 1.0))


def _swap_contents(prior: nn.Module, rng: random.Random) -> None:
    """Exchanges the values of two weights of one shape."""
    one = _some_tensor(prior, rng)
    other = rng.choice([p for p in prior.parameters() if p.shape == one.shape] or [one])
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def _replace_parameter(prior: nn.Module, rng: random.Random) -> None:
    """Puts an equal parameter in place, and spoils the one that was there."""
    module = rng.choice([m for m in prior.modules() if any(True for _ in m.parameters(False))])
    name, parameter = rng.choice(list(module.named_parameters(recurse=False)))
    setattr(module, name, nn.Parameter(parameter.detach().clone()))
    parameter.fill_(9.0)


def _step(prior: nn.Module, rng: random.Random) -> None:
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for parameter in prior.parameters():
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    optimizer.zero_grad()


def _load(prior: nn.Module, rng: random.Random) -> None:
    prior.load_state_dict(tiny_prior(rng.randrange(1000), **_SMALL).state_dict())


CHANGES: dict[str, Callable[[nn.Module, random.Random], None]] = {
    "nothing": lambda prior, rng: None,
    "rows or columns permuted": _permute,
    "signs changed": _flip_signs,
    "a number written through .data": _write_data,
    "two weights exchanged": _swap_contents,
    "a parameter replaced": _replace_parameter,
    "an optimiser's step": _step,
    "other weights loaded": _load,
}


def draws_between_changes(count: int, seed: int = 0) -> Counter[str]:
    """Draw `count` times, each time by another engine and after another change.

    Exact engines must draw the reference's codes, except for near ties, with its log-probabilities.
    Rounding engines must draw, bit for bit, what they draw from a copy of the prior that has never
    been used. `cpu_w8a8` must refuse the calibration of earlier weights, and is then given another.

    Returns:
        How often each change changed the log-probabilities of the draw.

    Raises:
        AssertionError: An engine drew from weights that the prior no longer has.
    """
    rng, counts = random.Random(seed), Counter[str]()
    torch.manual_seed(seed)
    prior = tiny_prior(seed, **_SMALL)
    inputs = prior_inputs(prior, 2)
    context = {"condition": inputs["condition"], "labels": inputs["labels"]}

    def draw(prior: Prior, engine: str) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = sample_codes(prior, 2, **context, engine=engine, return_log_prob=True)
        assert isinstance(drawn, tuple)
        return drawn

    def calibrated(said: str) -> None:
        """Calibrates the prior on the reference's codes, if its calibration is of other weights."""
        kept = prior.calibration
        if isinstance(kept, Calibration) and kept.weights_hash == weights_hash(prior):
            return
        try:
            draw(prior, "cpu_w8a8")
        except RuntimeError as error:
            assert "Calibrate it" in str(error), f"{said}: {error}"
        else:
            raise AssertionError(f"{said}: the calibration of earlier weights was used")
        maps = (expected, context["condition"], context["labels"])
        calibrate(prior, [maps], margin=4.0)  # two maps show little of the ranges

    expected, expected_log_prob = draw(prior, "reference")
    for number in range(count):
        before = expected_log_prob
        name = rng.choice(list(CHANGES))
        with torch.no_grad():
            CHANGES[name](prior, rng)
        engine = rng.choice(EXACT[1:] + ROUNDING)
        said = f"draw {number}, engine {engine}, after: {name}"
        if engine == "cpu_w8a8":
            calibrated(said)
        codes, log_prob = draw(prior, engine)
        expected, expected_log_prob = draw(prior, "reference")
        counts[name] += int(not torch.equal(before, expected_log_prob))
        if engine in ROUNDING:
            fresh = draw(copy.deepcopy(prior), engine)
            assert torch.equal(codes, fresh[0]) and torch.equal(log_prob, fresh[1]), said
        else:
            found, reference = (codes, log_prob), (expected, expected_log_prob)
            assert_same_draw(prior, found, reference, engine=engine, what=said, **context)
    return counts


@pytest.mark.parametrize("draws", [120, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_each_draw_is_from_the_weights_as_they_are(draws):
    counts = draws_between_changes(draws)
    # Equal values in another tensor draw the same codes.
    same = {"nothing", "a parameter replaced"}
    assert {name for name, count in counts.items() if count} == CHANGES.keys() - same
