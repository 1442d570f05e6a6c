"""Samples of several callers in one draw: each is the sample that its caller would draw alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.models import tiny_prior

from vqvae2_fast import sample_codes
from vqvae2_fast.sampling import DrawSettings
from vqvae2_fast.sampling.together import SampleRequest, draw_together

RULES = (
    DrawSettings(seed=5),
    DrawSettings(seed=5, temperature=0.7, top_k=4),
    DrawSettings(seed=6, guidance_scale=2.0),
    DrawSettings(seed=2**64 - 1),
    DrawSettings(seed=-9),
    DrawSettings(seed=7, temperature=0.0),
)


@pytest.fixture(scope="module")
def prior():
    return tiny_prior(size=(4, 6), num_classes=3, condition_sizes=((2, 3),))


def requests(engine: str) -> list[SampleRequest]:
    known = torch.full((4, 6), -1)
    known[:2] = 7
    condition = [torch.arange(6).reshape(2, 3)]
    return [
        SampleRequest(
            replace(settings, engine=engine),
            sample=3 * n,
            condition=condition,
            label=None if n == 1 else n % 3,
            known=known if n == 3 else None,
        )
        for n, settings in enumerate(RULES)
    ]


def alone(prior, request: SampleRequest) -> list[torch.Tensor]:
    settings = request.settings
    return sample_codes(
        prior,
        1,
        condition=[maps[None] for maps in request.condition],
        labels=[request.label],
        seed=settings.seed,
        first_sample=request.sample,
        stream=1,
        temperature=settings.temperature,
        top_k=settings.top_k,
        guidance_scale=settings.guidance_scale,
        known=None if request.known is None else request.known[None],
        engine=settings.engine,
        return_log_prob=True,
    )


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_sample_is_the_one_that_its_caller_would_draw_alone(prior, engine):
    wanted = requests(engine)
    for request, (codes, log_prob) in zip(
        wanted, draw_together(prior, wanted, 1, lambda *_: None), strict=True
    ):
        expected, of_codes = alone(prior, request)
        assert torch.equal(codes, expected[0])
        torch.testing.assert_close(
            log_prob, of_codes[0], rtol=0, atol=0 if engine == "cpu" else 1e-5
        )


@pytest.mark.parametrize("engine", ["cpu", "eager", "reference"])
def test_every_row_is_told_with_the_codes_of_its_requests(prior, engine):
    wanted = requests(engine)
    maps = torch.full((len(wanted), 4, 6), -1)

    def on_row(indices, row, codes):
        maps[list(indices), row] = codes

    drawn = draw_together(prior, wanted, 1, on_row)
    assert torch.equal(maps, torch.stack([codes for codes, _ in drawn]))


def test_an_error_of_on_row_ends_the_draw(prior):
    rows = []

    def on_row(indices, row, codes):
        rows.append(row)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        draw_together(prior, requests("cpu")[:1], 1, on_row)
    assert rows == [0]
