"""The near-tie rule itself: it accepts rounding and refuses everything else."""

import pytest
import torch
from helpers.models import tiny_prior
from helpers.near_tie import (
    _gaps,
    assert_near_tie,
    assert_same_draw,
    near_tie,
)

from vqvae2_fast.sampling import interface_of, sample_codes, sampler
from vqvae2_fast.sampling.settings import DrawSettings

LOGITS = torch.tensor([[2.0, 2.0005, 0.0]])
ZERO = torch.zeros(1, 3)


def gap(rule, code, error=1e-3, logits=LOGITS):
    gaps, not_best, tolerance = _gaps(rule, logits, ZERO, torch.tensor([code]), error)
    return bool(gaps[0] <= tolerance), bool(not_best[0])


def test_a_code_within_the_tolerance_counts_as_not_best_but_holds():
    assert gap(DrawSettings(), 0) == (True, True)
    assert gap(DrawSettings(), 1) == (True, False)


def test_a_code_beyond_the_tolerance_does_not_hold():
    assert gap(DrawSettings(), 2) == (False, True)
    assert gap(DrawSettings(), 0, error=1e-4) == (False, True)


def test_a_code_at_the_edge_of_a_filter_holds():
    # Top-1 keeps code 1; within the error it could also keep code 0, but never code 2.
    assert gap(DrawSettings(top_k=1), 0)[0]
    assert not gap(DrawSettings(top_k=1), 2)[0]
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert gap(DrawSettings(top_p=0.5), 1, error=1e-5, logits=logits) == (False, True)
    noise = torch.tensor([[0.0, 5.0, 0.0]])
    gaps, _, tolerance = _gaps(DrawSettings(top_p=0.5), logits, noise, torch.tensor([1]), 1e-5)
    assert gaps[0] <= tolerance


def test_a_code_outside_a_filter_does_not_hold_where_no_code_is_surely_inside():
    prior = tiny_prior()
    codes = (sample_codes(prior, 2, temperature=0.0) + 1) % 13
    result = near_tie(prior, codes, engine="eager", top_p=1e-9)
    assert result.tolerance > 1e-9
    assert result.num_beyond > 0


FOUND = {"logit_error": 1e-6, "raw_error": 1e-6, "largest_logit": 1.0}
FOUND |= {"tolerance": 4e-6, "num_drawn": 10_000}


def test_a_changed_code_is_found():
    prior = tiny_prior()
    codes = sample_codes(prior, 4, seed=1)
    assert_near_tie(prior, codes, seed=1)
    codes[2, 1, 3] = (codes[2, 1, 3] + 1) % 13
    assert near_tie(prior, codes, seed=1).num_not_best >= 1
    with pytest.raises(AssertionError, match="near-tie rule broken"):
        assert_near_tie(prior, codes, seed=1)


def test_codes_of_another_seed_are_refused():
    prior = tiny_prior()
    assert not near_tie(prior, sample_codes(prior, 2, seed=1), seed=2).holds


def drawn(prior, engine):
    return sample_codes(prior, 2, engine=engine, return_log_prob=True)


@pytest.fixture
def another(monkeypatch):
    """`another`: an engine that draws without a fault, but from another prior."""
    prior = tiny_prior(1)

    def draw(_prior, _interface, request):
        return sampler.ENGINES["reference"](prior, interface_of(prior), request)

    monkeypatch.setitem(sampler.ENGINES, "another", draw)


def test_an_engine_of_another_prior_passes_the_rule_but_does_not_draw_the_same(another):
    prior = tiny_prior()
    expected, found = drawn(prior, "reference"), drawn(prior, "another")
    assert near_tie(prior, found[0], engine="another").num_beyond == 0
    with pytest.raises(AssertionError, match="draw 0: engine another does not draw what"):
        assert_same_draw(prior, found, expected, engine="another", what="draw 0")


@pytest.mark.parametrize("error", [1e-3, torch.nan])
def test_equal_maps_need_equal_log_probabilities(error):
    prior = tiny_prior()
    codes, log_prob = drawn(prior, "reference")

    def check(changed):
        assert_same_draw(prior, (codes, changed), (codes, log_prob), engine="eager", what="draw")

    check(log_prob + 1e-6)
    with pytest.raises(AssertionError, match=f"its log-probabilities by (0.001|{error})"):
        check(log_prob + error)
