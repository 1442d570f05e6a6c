"""Engine `cuda` on clusters: which draws take that design, and that they draw the same bits.
`csrc/tests/sampler` tests the design itself, under the sanitizers and with planted mistakes."""

from dataclasses import replace

import pytest
import torch
from helpers.models import tiny_prior

from vqvae2_fast.models.configs import PixelSNAILConfig
from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.sampling import interface_of, plan_of, sample_codes
from vqvae2_fast.sampling.engines import cuda
from vqvae2_fast.sampling.pixelsnail import pixelsnail_plan

PORT = PixelSNAILConfig(
    size=(64, 64),
    num_embeddings=512,
    channels=256,
    residual_channels=256,
    num_blocks=4,
    layers_per_block=4,
    kernel_size=5,
    attention=False,
)


def report(library, card="h100", batch=1, mask="exclude", **values):
    """The plan of a prior of the size of the port's bottom, on a known card."""
    with torch.device("meta"), torch.no_grad():
        plan = pixelsnail_plan(PixelSNAIL(replace(PORT, mask=mask)))
    nowhere = cuda.Card(blocks=0, shared_bytes=0)  # the card's name sets the size
    given = cuda.plan_values(plan, nowhere, cuda.PRECISIONS["cuda"], batch, guided=False)
    return library.report(given | values, card)


def test_one_sample_on_an_h100_takes_a_cluster_of_16(sampler_on_cpu):
    assert "chain of stages on a cluster of 16 blocks" in report(sampler_on_cpu)


@pytest.mark.parametrize(
    "draw",
    [{"card": "a100"}, {"mask": "include"}, {"batch": 64}],
    ids=["card without", "mask", "batch"],
)
def test_other_draws_take_no_cluster(draw, sampler_on_cpu):
    assert "cluster" not in report(sampler_on_cpu, **draw)


@pytest.mark.parametrize(("of_16", "of_8", "chosen"), [(0, 16, "cluster of 8"), (0, 0, None)])
def test_a_card_may_hold_smaller_clusters_or_none(of_16, of_8, chosen, sampler_on_cpu):
    size = {"card.blocks": 132, "card.shared_bytes": 227 << 10}
    text = report(sampler_on_cpu, **size, **{"card.clusters16": of_16, "card.clusters8": of_8})
    assert chosen in text if chosen else "cluster" not in text


def test_a_cluster_that_does_not_fit_is_refused_with_a_reason(sampler_on_cpu):
    with pytest.raises(RuntimeError, match="convolutions read their own position"):
        report(sampler_on_cpu, mask="include", **{"card.cluster": 16})


def test_codes_on_a_cluster_are_those_without(engines, card, sampler_on_cpu):
    prior = tiny_prior(
        channels=64,
        residual_channels=40,
        num_heads=4,
        size=(3, 4),
        num_classes=2,
        num_embeddings=41,
        mask="exclude",
    )
    drawing = {"labels": torch.tensor([1]), "engine": "on_cpu", "seed": 3, "guidance_scale": 1.5}
    without = sample_codes(prior, 1, **drawing)
    card[0] = replace(card[0], blocks=20, threads=96, shared_bytes=72 << 10, clusters8=2)
    plan = plan_of(prior, interface_of(prior))
    values = cuda.plan_values(plan, card[0], cuda.PRECISIONS["cuda"], 1, guided=True)
    assert sampler_on_cpu.sizes(values).blocks == 16  # two clusters; without them all 20
    assert torch.equal(sample_codes(prior, 1, **drawing), without)
