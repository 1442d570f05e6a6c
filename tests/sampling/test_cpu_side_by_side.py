"""Engine `cpu` with several samples per thread: the threads draw samples of their own."""

import pytest
import torch
from helpers.models import prior_inputs, tiny_prior

from vqvae2_fast.sampling.sampler import draw
from vqvae2_fast.sampling.settings import DrawSettings

BATCH = 7
KIND = {"num_classes": 3, "condition_sizes": ((1, 3), (2, 3))}


def drawn_rows(prior, rows, settings=None, **more):
    """A draw of some of BATCH samples, each of which has inputs, a seed and a number of its own."""
    inputs = prior_inputs(prior, BATCH)
    known = torch.where(torch.arange(24).view(4, 6) % 5 == 0, inputs["codes"], -1)
    seeds = torch.stack([torch.arange(BATCH) * 3 + 1, torch.arange(BATCH) ** 2], 1)
    own = [codes[rows] for codes in inputs["condition"]]
    return draw(
        prior,
        len(known[rows]),
        DrawSettings(engine="cpu", **(settings or {})),
        condition=own,
        labels=None if inputs["labels"] is None else inputs["labels"][rows],
        known=known[rows],
        rows=seeds[rows],
        return_log_prob=True,
        **more,
    )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7, "top_k": 5, "guidance_scale": 2.0}],
    ids=["plain", "guided"],
)
def test_a_sample_has_the_bits_of_one_drawn_alone(threads, count, settings):
    prior = tiny_prior(**KIND)
    threads(count)
    together = drawn_rows(prior, slice(None), settings)
    threads(1)
    for n in range(BATCH):
        alone = drawn_rows(prior, slice(n, n + 1), settings)
        assert torch.equal(together.codes[n], alone.codes[0])
        assert torch.equal(together.log_prob[n], alone.log_prob[0])


def test_given_noise_goes_to_its_sample(threads):
    prior = tiny_prior(**KIND)
    noise = torch.randn(BATCH, 4, 6, 13, generator=torch.Generator().manual_seed(1))
    threads(2)
    together = drawn_rows(prior, slice(None), noise=noise)
    threads(1)
    assert torch.equal(together.codes, drawn_rows(prior, slice(None), noise=noise).codes)


def test_rows_are_told_in_order_when_all_samples_have_them(threads):
    prior, told = tiny_prior(**KIND), []
    threads(3)
    drawn = drawn_rows(
        prior, slice(None), on_row=lambda row, codes: told.append((row, codes.clone()))
    )
    assert [row for row, _ in told] == [0, 1, 2, 3]
    for row, codes in told:
        assert torch.equal(codes, drawn.codes[:, row])
