"""What the convolution and the attention may see: exactly the positions their masks say."""

from __future__ import annotations

import pytest
import torch

from vqvae2_fast import ops

HEIGHT, WIDTH = 5, 6


def positions_seen(function, at):
    """Positions whose change reaches the output at `at`, by the gradient of a map to itself."""
    x = torch.randn(1, 1, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    row, column = divmod(at, WIDTH)
    (gradient,) = torch.autograd.grad(function(x)[0, :, row, column].sum(), x)
    return {int(p) for p in gradient.flatten().nonzero()}


@pytest.mark.parametrize(
    ("mask", "sees_itself"),
    [("exclude", False), ("include", True), ("down", False), ("downright", True)],
)
def test_convolution_sees_the_past_and_itself_only_if_its_mask_says_so(mask, sees_itself):
    torch.manual_seed(0)
    weight = torch.rand(1, 1, 3, 3, dtype=torch.float64) + 0.5
    for at in range(HEIGHT * WIDTH):
        seen = positions_seen(lambda x: ops.causal_conv2d(x, weight, None, mask), at)
        assert all(p <= at for p in seen)
        assert (at in seen) == sees_itself


def test_down_sees_rows_above_only():
    weight = torch.ones(1, 1, 2, 3, dtype=torch.float64)
    seen = positions_seen(lambda x: ops.causal_conv2d(x, weight, None, "down"), 2 * WIDTH + 3)
    assert seen == {row * WIDTH + column for row in (0, 1) for column in (2, 3, 4)}


@pytest.mark.parametrize("mask", ["exclude", "include", "down", "downright"])
def test_live_taps_are_the_taps_of_the_convolution(mask):
    torch.manual_seed(1)
    x, weight = torch.randn(1, 2, HEIGHT, WIDTH), torch.randn(3, 2, 3, 3)
    by_taps = torch.zeros(1, 3, HEIGHT, WIDTH)
    for row_offset, column_offset, kernel_row, kernel_column in ops.live_taps(mask, 3, 3):
        tap = weight[:, :, kernel_row, kernel_column]
        for i in range(HEIGHT):
            for j in range(WIDTH):
                source_row, source_column = i + row_offset, j + column_offset
                if 0 <= source_row < HEIGHT and 0 <= source_column < WIDTH:
                    by_taps[0, :, i, j] += tap @ x[0, :, source_row, source_column]
    torch.testing.assert_close(by_taps, ops.causal_conv2d(x, weight, None, mask))


@pytest.mark.parametrize("mask", ["exclude", "include", "down", "downright"])
def test_dead_taps_are_ignored_even_if_nan_and_get_no_gradient(mask):
    torch.manual_seed(2)
    x, weight = torch.randn(1, 2, HEIGHT, WIDTH), torch.randn(3, 2, 3, 3)
    live = ops.tap_mask(mask, 3, 3)
    poisoned = torch.where(live, weight, torch.nan).requires_grad_()
    out = ops.causal_conv2d(x, poisoned, None, mask)
    assert torch.equal(out, ops.causal_conv2d(x, weight, None, mask))
    out.sum().backward()
    assert (poisoned.grad[:, :, ~live] == 0).all()


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_attention_sees_strictly_earlier_positions(dropout_p):
    torch.manual_seed(3)
    q, k = torch.randn(2, 1, 2, 7, 4, dtype=torch.float64)
    v = torch.randn(1, 2, 7, 3, dtype=torch.float64, requires_grad=True)
    out = ops.causal_attention(q, k, v, dropout_p, "logits", torch.tensor(0))
    for position in range(7):
        (gradient,) = torch.autograd.grad(out[:, :, position].sum(), v, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 1, 3)) > 0  # [L]
        assert seen.tolist() == [p < position for p in range(7)]


def test_attention_at_the_first_position_is_zero():
    torch.manual_seed(4)
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    for dropout_on in ("logits", "probabilities"):
        out = ops.causal_attention(q, k, v, 0.3, dropout_on, torch.tensor(1))
        assert (out[:, :, 0] == 0).all()


def test_dropped_logits_are_zero_not_minus_infinity():
    """With every logit dropped or kept at scale, weights stay positive for all past positions."""
    torch.manual_seed(5)
    q, k = torch.randn(2, 1, 1, 6, 4)
    v = torch.eye(6)[None, None]
    weights = ops.causal_attention(q, k, v, 0.9, "logits", torch.tensor(2))
    past = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    assert (weights[0, 0][past] > 0).all()
