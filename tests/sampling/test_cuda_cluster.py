"""Engine `cuda` on clusters: which draws fit that design, that the faster one is taken, and that
they draw the same bits.
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


H100 = cuda.Card(blocks=132, shared_bytes=227 << 10, clusters16=7, clusters8=16)


def fitting(library, card=H100, batch=1, mask="exclude"):
    """The designs by which a prior of the size of the port's bottom fits a card."""
    with torch.device("meta"), torch.no_grad():
        plan = pixelsnail_plan(PixelSNAIL(replace(PORT, mask=mask)))
    precision = cuda.PRECISIONS["cuda"]
    return cuda.fitting_designs(library, card, plan, batch, guided=False, precision=precision)


def test_one_sample_fits_every_design_of_an_h100(sampler_on_cpu):
    assert fitting(sampler_on_cpu) == ["clusters16", "clusters8", "blocks"]


@pytest.mark.parametrize(
    "draw",
    [{"card": replace(H100, clusters16=0, clusters8=0)}, {"mask": "include"}, {"batch": 64}],
    ids=["card without", "mask", "batch"],
)
def test_other_draws_fit_no_cluster(draw, sampler_on_cpu):
    assert fitting(sampler_on_cpu, **draw) == ["blocks"]


def test_the_environment_forces_a_design(sampler_on_cpu, monkeypatch):
    monkeypatch.setenv("VQVAE2_FAST_CUDA_DESIGN", "clusters8")
    assert fitting(sampler_on_cpu) == ["clusters8"]
    with pytest.raises(RuntimeError, match="DESIGN=clusters8: the card has no such clusters"):
        fitting(sampler_on_cpu, replace(H100, clusters8=0))
    with pytest.raises(RuntimeError, match="convolutions read their own position"):
        fitting(sampler_on_cpu, mask="include")
    monkeypatch.setenv("VQVAE2_FAST_CUDA_DESIGN", "fast")
    with pytest.raises(ValueError, match="one of clusters16, clusters8, blocks, got 'fast'"):
        fitting(sampler_on_cpu)


@pytest.fixture
def prior(card):
    """One whose draws fit clusters of the test's card."""
    card[0] = replace(card[0], blocks=20, threads=96, shared_bytes=72 << 10, clusters8=2)
    return tiny_prior(
        channels=64,
        residual_channels=40,
        num_heads=4,
        size=(3, 4),
        num_classes=2,
        num_embeddings=41,
        mask="exclude",
    )


DRAWING = {"labels": torch.tensor([1]), "engine": "on_cpu", "seed": 3, "guidance_scale": 1.5}


def test_codes_on_a_cluster_are_those_without(prior, engines, card, sampler_on_cpu, monkeypatch):
    codes = {}
    for design, blocks in (("clusters8", 16), ("blocks", 20)):
        monkeypatch.setenv("VQVAE2_FAST_CUDA_DESIGN", design)
        plan = plan_of(prior, interface_of(prior))
        precision = cuda.PRECISIONS["cuda"]
        values = cuda.plan_values(plan, card[0], precision, 1, design, guided=True)
        assert sampler_on_cpu.sizes(values).blocks == blocks
        codes[design] = sample_codes(prior, 1, **DRAWING)
    assert torch.equal(codes["clusters8"], codes["blocks"])


@pytest.mark.parametrize("fastest", ["clusters8", "blocks"])
def test_the_design_whose_row_is_fastest_draws_and_is_kept(
    fastest, prior, engines, sampler_on_cpu, monkeypatch
):
    grids, timed = [], []
    program, seconds_of_row = sampler_on_cpu.program, cuda._Program.seconds_of_row

    def watched(values, address):
        grids.append(values["card.cluster"])
        program(values, address)

    def seconds(self, i, stream):
        seconds_of_row(self, i, stream)
        timed.append(self)
        return 1.0 if fastest == ("clusters8" if len(timed) % 2 else "blocks") else 2.0

    monkeypatch.setattr(sampler_on_cpu, "program", watched)
    monkeypatch.setattr(cuda._Program, "seconds_of_row", seconds)
    codes = sample_codes(prior, 1, **DRAWING)
    taken = cuda.DESIGNS[fastest]
    assert grids == [8, 0, taken]
    assert len(timed) == 6
    assert torch.equal(sample_codes(prior, 1, **DRAWING), codes)
    assert grids == [8, 0, taken, taken]
    assert len(timed) == 6
    monkeypatch.setenv("VQVAE2_FAST_CUDA_DESIGN", "blocks")
    assert torch.equal(sample_codes(prior, 1, **DRAWING), codes)
