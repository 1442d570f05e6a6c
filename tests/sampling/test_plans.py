"""Plans that no prior of this package has, but the engines take."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling.engines.cpu import draw_cpu, packed_plan
from vqvae2_fast.sampling.engines.eager import draw_eager
from vqvae2_fast.sampling.plan import GatedPlan, SamplingPlan, conv_plan, stem_plan
from vqvae2_fast.sampling.request import DrawNoise, DrawRequest
from vqvae2_fast.sampling.settings import DrawSettings

K, C, INNER, HEIGHT, WIDTH = 16, 8, 6, 3, 5


def plan_with(*, kernel_height: int, stem_reads_above: bool) -> SamplingPlan:
    torch.manual_seed(0)
    taps = [((0, -1), torch.randn(K, C))]
    if stem_reads_above:
        taps.append(((-1, 0), torch.randn(K, C)))
    conv1 = torch.randn(INNER, C, kernel_height, 3) * 0.2
    conv2 = torch.randn(2 * C, INNER, kernel_height, 3) * 0.2
    return SamplingPlan(
        size=(HEIGHT, WIDTH),
        num_embeddings=K,
        num_classes=0,
        stem=stem_plan(taps, torch.randn(HEIGHT, WIDTH, C)),
        layers=GatedPlan(
            conv_plan([conv1], [torch.zeros(INNER)], "include"),
            conv_plan([conv2], [torch.zeros(2 * C)], "include"),
        ),
        layers_per_block=1,
        background=torch.zeros(HEIGHT, WIDTH, 2),
        attention=None,
        merge=torch.randn(1, C + 2, C) * 0.3,
        merge_bias=torch.zeros(1, C),
        output_layers=None,
        head=torch.randn(C, K),
        head_bias=torch.zeros(K),
        condition=None,
    )


@pytest.mark.skipif(_native.module is None, reason="this install has no compiled module")
@pytest.mark.parametrize("kernel_height", [1, 2])
@pytest.mark.parametrize("stem_reads_above", [False, True])
def test_eager_draws_what_the_cpu_engine_draws_without_taps_above(kernel_height, stem_reads_above):
    drawn = []
    for prepare, draw in ((packed_plan, draw_cpu), (lambda plan: plan, draw_eager)):
        plan = plan_with(kernel_height=kernel_height, stem_reads_above=stem_reads_above)
        noise = DrawNoise(2, WIDTH, K, torch.device("cpu"))
        request = DrawRequest(2, [], None, None, noise, DrawSettings())
        drawn.append(draw(prepare(plan), request).codes)
    assert len(drawn[0].unique()) > 1
    assert torch.equal(*drawn)
