"""`score_codes`: the log-likelihood of given codes."""

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import sample_codes, score_codes, teacher_forced_logits

ENGINES = ["reference", "eager"] + ([] if _native.module is None else ["cpu"])


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_are_the_log_probabilities_returned_for_known_codes(engine):
    prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),))
    inputs = prior_inputs(prior, 3)
    context = {"condition": inputs["condition"], "labels": inputs["labels"], "engine": engine}
    scores = score_codes(prior, inputs["codes"], **context)
    _, known = sample_codes(prior, 3, known=inputs["codes"], return_log_prob=True, **context)
    assert torch.equal(scores, known)
    drawn, log_prob = sample_codes(prior, 3, return_log_prob=True, **context)
    assert torch.equal(score_codes(prior, drawn, **context), log_prob)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_maps_have_no_scores(engine):
    prior = tiny_prior(num_classes=3)
    none, labels = torch.zeros(0, 4, 6, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert score_codes(prior, none, labels=labels, engine=engine).shape == (0, 4, 6)
    logits = teacher_forced_logits(prior, none, labels=labels, engine=engine)
    assert logits.shape == (0, prior.config.num_embeddings, 4, 6)


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
def test_scores_of_a_map_are_the_same_bits_in_any_batch():
    prior = tiny_prior()
    codes = prior_inputs(prior, 5)["codes"]
    together = score_codes(prior, codes, engine="cpu")
    for n in range(5):
        assert torch.equal(score_codes(prior, codes[n : n + 1], engine="cpu")[0], together[n])


@pytest.mark.parametrize("function", [score_codes, teacher_forced_logits])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda codes: codes - 1, ValueError, r"codes in 0\.\.12, got values in -1\.\."),
        (lambda codes: codes + 13, ValueError, r"codes in 0\.\.12"),
        (lambda codes: codes[:, :3], ValueError, r"codes \[2, 4, 6\], got \[2, 3, 6\]"),
        (lambda codes: codes[0], ValueError, r"codes \[1, 4, 6\], got \[4, 6\]"),
        (lambda codes: codes.float(), TypeError, "codes int64"),
    ],
    ids=["below 0", "beyond K", "rows", "no batch", "dtype"],
)
def test_bad_codes_are_named(function, change, error, message):
    codes = torch.zeros(2, 4, 6, dtype=torch.int64)
    with pytest.raises(error, match=f"^expected {message}"):
        function(tiny_prior(), change(codes))


def test_context_is_checked_under_the_functions_name():
    prior = tiny_prior(num_classes=3)
    with pytest.raises(ValueError, match=".*labels are missing"):
        score_codes(prior, torch.zeros(1, 4, 6, dtype=torch.int64))
