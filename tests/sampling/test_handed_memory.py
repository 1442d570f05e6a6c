"""What is handed to the compiled sampler: a wrong buffer is an exception and never a write."""

from __future__ import annotations

import pytest
import torch
from helpers.models import tiny_prior

from vqvae2_fast.ops import _native
from vqvae2_fast.sampling import interface_of
from vqvae2_fast.sampling.engines.cpu import cpu_plan_of

pytestmark = pytest.mark.skipif(
    _native.module is None, reason="this install has no compiled module"
)
POSITIONS = 2 * 4 * 6  # of two maps of `tiny_prior`


@pytest.fixture
def draw():
    """A draw of two maps, with some of its tensors replaced."""
    prior = tiny_prior(num_classes=3, condition_sizes=((2, 3),))
    packed = cpu_plan_of(prior, interface_of(prior)).packed

    def call(**replaced):
        arguments = {
            "batch": 2,
            "labels": torch.tensor([0, 1]),
            "classes": None,
            "num_rows": 0,
            "maps": [torch.zeros(2, 2, 3, dtype=torch.int64)],
            "known": None,
            "noise": None,
            "seed": 0,
            "first_sample": 0,
            "rows": None,
            "stream": 0,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "guidance": 1.0,
            "guided": False,
            "largest_logit": 1e6,
            "codes": torch.zeros(POSITIONS, dtype=torch.int64),
            "log_prob": None,
            "logits": None,
            "profile": None,
            "intervals": None,
            "streams": [],
            "columns": 1,
            "threads": 1,
            "progress": None,
        }
        return packed.draw(**arguments | replaced)

    call()
    return call


WRITTEN = {
    "codes": torch.zeros(POSITIONS, dtype=torch.int64),
    "log_prob": torch.zeros(POSITIONS, dtype=torch.float32),
    "logits": torch.zeros(POSITIONS * 13, dtype=torch.float32),
    "intervals": torch.zeros(POSITIONS * 2, dtype=torch.int32),
}
WRONG = {
    "another dtype": lambda t: t.to(torch.bfloat16),
    "an unsigned dtype": lambda t: t.to(torch.uint8),
    "another device": lambda t: t.to("meta"),
    "no contiguous memory": lambda t: torch.stack([t, t], 1)[:, 0],
    "too little memory": lambda t: t[:-1],
}


def test_a_table_of_too_few_rows_is_an_exception(draw):
    # Of four layers with 32 padded channels.
    draw(classes=torch.zeros(4 * 3 * 64), num_rows=3)
    with pytest.raises(ValueError, match="classes"):
        draw(classes=torch.zeros(4 * 3 * 64 - 1), num_rows=3)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_buffer_is_an_exception_and_is_not_written(draw, name, wrong):
    buffer = wrong(WRITTEN[name].clone())
    with pytest.raises((TypeError, ValueError, BufferError)):
        draw(**{name: buffer})
    assert buffer.device.type == "meta" or not buffer.any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": torch.zeros(1, dtype=torch.int64)},
        {"labels": None},
        {"labels": torch.zeros(2, dtype=torch.int32)},
        {"maps": []},
        {"maps": [torch.zeros(2, 2, 2, dtype=torch.int64)]},
        {"known": torch.zeros(POSITIONS - 1, dtype=torch.int64)},
        {"noise": torch.zeros(POSITIONS * 13 - 1)},
        {"noise": torch.zeros(POSITIONS * 13, dtype=torch.float64)},
        {"rows": torch.zeros(3, dtype=torch.int64)},
        {"codes": 140_000_000_000_000},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_input_is_an_exception(draw, wrong):
    with pytest.raises((TypeError, ValueError)):
        draw(**wrong)


def test_weights_of_another_size_are_not_packed():
    plan = cpu_plan_of(tiny_prior(), interface_of(tiny_prior())).packed
    packing = {
        "format": 0,
        "weights": [torch.zeros(31)],
        "factors": [],
        "output_stride": 1,
        "outputs": list(range(32)),
        "inputs": [0],
        "taps": [0],
        "input_scales": None,
        "scales": "",
        "blocks": [("head.weight", 0, 0, 1, 32, 32)],
        "threads": 1,
    }
    with pytest.raises(ValueError, match="a weight of 32 values, got 31"):
        plan.pack(**packing)
    with pytest.raises(ValueError, match="'head.weight' has fewer than"):
        plan.pack(
            **packing
            | {"weights": [torch.zeros(32)], "blocks": [("head.weight", 10**6, 0, 1, 32, 32)]}
        )
