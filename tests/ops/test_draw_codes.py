"""`draw_codes` in half precision."""

import pytest
import torch

from vqvae2_fast import ops


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "rule",
    [{"temperature": 2e-4}, {"guidance_scale": 5e3}, {"top_p": 0.9}],
    ids=["temperature", "guidance", "top_p"],
)
def test_half_logits_are_drawn_from_as_their_values_in_float32(dtype, rule):
    # float16 could not hold the tempered and the guided ones; nor bfloat16 the cumulative sums.
    logits = (30 * torch.randn(64, 512)).to(dtype)
    halves = {"unconditional": torch.zeros_like(logits)} if "guidance_scale" in rule else {}
    noise = 50 * torch.randn(64, 512)
    floats = {name: value.float() for name, value in halves.items()}
    codes, log_prob = ops.draw_codes(logits, noise, **halves, **rule)
    expected, expected_log_prob = ops.draw_codes(logits.float(), noise, **floats, **rule)
    assert torch.equal(codes, expected)
    assert torch.equal(log_prob, expected_log_prob)
