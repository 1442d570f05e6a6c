"""Times of the stages of engine `cuda`'s kernel, and the fit of its model's constants to them. The
times here are made up; `sampler_test` checks those that the kernel notes."""

import numpy as np
import pytest
import torch

from vqvae2_fast.models.pixelsnail import PixelSNAIL
from vqvae2_fast.sampling.engines import cuda
from vqvae2_fast.sampling.pixelsnail import pixelsnail_plan

PARTS = ("handover", "telling", "work")


@pytest.fixture
def tables(script, sampler_on_cpu):
    """Stages of the port's priors on an H100 at several batches, and the model's constants."""
    stages = []
    for config in script("sampler").PRIORS.values():
        with torch.device("meta"), torch.no_grad():
            plan = pixelsnail_plan(PixelSNAIL(config))
        for batch in (1, 8, 64):
            for name in ("cuda", "cuda_bfloat16"):
                card = cuda.Card(blocks=0, shared_bytes=0)
                values = cuda.plan_values(plan, card, cuda.PRECISIONS[name], batch, guided=False)
                rows, constants = script("shared.stage_times").tables(
                    sampler_on_cpu.stages(values | {"top_p": 0.9}, "h100")
                )
                stages += rows
    return stages, constants


def timed(script, stages, prices):
    """Stages with the times that the model expects at these prices."""
    expected = script("fit_sampler_model").expected
    return [stage | expected(stage, prices) for stage in stages]


def test_the_fits_model_is_that_of_the_plan(script, tables):
    stages, constants = tables
    prices = script("fit_sampler_model").prices_of(constants)
    for stage in timed(script, stages, prices):
        assert sum(stage[part] for part in PARTS) == pytest.approx(stage["expected"], rel=1e-6)


def test_constants_are_recovered_from_the_times_they_make(script, tables):
    model = script("fit_sampler_model")
    stages, constants = tables
    today = model.prices_of(constants)
    factors = dict(zip(model.NAMES, (1.7, 0.8, 2.1, 1.4, 1.5, 1.3, 1.2, 1.6, 1.1), strict=True))
    true = {name: price * factors[name] for name, price in today.items()}
    found = model.fit(timed(script, stages, true), today)
    determined = {name for name in model.NAMES if found.determined[name]}
    assert {"kTelling", "kL2Trip", "kSumLatency", "kDrawing", "kL2BytesPerCycle"} <= determined
    for name in determined:
        assert found.prices[name] == pytest.approx(true[name], rel=1e-6)
    for name in set(model.NAMES) - determined:
        assert found.prices[name] == today[name]


def test_intervals_of_a_row(script):
    # Two steps, three blocks, two stages; nanoseconds from a start that floats could not hold.
    start = 1_764_000_000_000_000_000
    times = np.zeros((2, 3, 2, 3), dtype=np.int64)
    for t in range(2):
        origin = start + 10_000 * t
        times[t, 0, 0] = (origin + 1000, origin + 2000, origin + 2600)
        times[t, 1, 0] = (origin + 1000, origin + 1500, origin + 2200)
        for block, work in ((0, 700), (1, 900), (2, 800)):
            ready = origin + 3100
            times[t, block, 1] = (ready, ready + work, ready + work + 550)
    stages = [
        {"wait_stage": 1.0, "wait_before": 1.0},
        {"wait_stage": 0.0, "wait_before": 0.0},
    ]
    first, second = script("shared.stage_times").intervals(times, stages)
    # Of the first stage only the second step waits, for what was told at 3100 + 900 + 550.
    assert first == pytest.approx(
        {"handover": 11000e-9 - 4550e-9, "work": 1000e-9, "telling": 650e-9}, abs=1e-12
    )
    assert second == pytest.approx(
        {"handover": 500e-9, "work": 900e-9, "telling": 550e-9}, abs=1e-12
    )
