"""Top-k and top-p of engine `cuda`, executed on the CPU: they keep the reference's codes, ties and
cumulative probabilities that meet p exactly included. `csrc/tests/sampler/filter_checks.h` tests
more sizes, and logits that a draw would refuse."""

import pytest
import torch
from helpers.models import tiny_prior

from vqvae2_fast.sampling import sample_codes
from vqvae2_fast.sampling.settings import DrawSettings

K = 75
SIZE, BATCH = (3, 5), 5  # as many positions as codes


def logits_named(name):
    torch.manual_seed(3)
    normal = torch.randn(K)
    return {
        "spread": 3 * normal,
        "narrow": 1e-3 * normal,
        "many equal": (1.5 * normal).round(),
        "all equal": torch.full((K,), -2.5),
        "zeros of both signs": torch.where(normal > 0, 0.0, -0.0),
        "one far ahead": torch.where(torch.arange(K) == 40, 60.0, normal),
    }[name]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("spread", {"top_k": 1}),
        ("spread", {"top_k": K - 1}),
        ("spread", {"top_k": K, "top_p": 0.6}),
        ("spread", {"top_k": 20, "top_p": 0.9, "temperature": 0.7}),
        ("spread", {"top_p": 1e-6}),
        ("spread", {"top_p": 0.9999}),
        ("narrow", {"top_k": 33}),
        ("narrow", {"top_p": 0.43}),
        ("many equal", {"top_k": 1}),
        ("many equal", {"top_k": 30}),
        ("many equal", {"top_k": 60, "top_p": 0.8}),
        ("all equal", {"top_k": 30}),
        ("all equal", {"top_p": 0.2}),
        ("all equal", {"top_p": 0.48}),
        ("all equal", {"top_p": 0.96}),
        ("zeros of both signs", {"top_k": 40}),
        ("zeros of both signs", {"top_p": 0.8}),
        ("one far ahead", {"top_k": 2, "top_p": 0.999}),
    ],
    ids=str,
)
def test_the_codes_kept_are_those_of_the_reference(name, rule, engines):
    prior = tiny_prior(
        size=SIZE, num_embeddings=K, attention=False, num_blocks=1, layers_per_block=1
    )
    with torch.no_grad():
        prior.head.kernel.weight_g.zero_()
        prior.head.bias.copy_(logits_named(name))
    # Position n's noise favours code n, which is drawn only where the filters keep it.
    noise = 1e3 * torch.eye(K)
    codes = sample_codes(prior, BATCH, noise=noise.view(BATCH, *SIZE, K), engine="on_cpu", **rule)
    logits = prior.head.bias.detach().expand(K, K)
    assert torch.equal(codes.flatten(), DrawSettings(**rule).draw(logits, noise))
