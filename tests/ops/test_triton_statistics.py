"""`code_statistics` in Triton: segments of the sorted rows, and the memory that they take.

Tests that run a kernel need `TRITON_INTERPRET=1` (see `.ci/triton`)."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2_fast.ops import _triton

pytest.importorskip("triton")

from vqvae2_fast.ops.code_statistics.triton import code_statistics_triton

interpreted = pytest.mark.skipif(
    not _triton.INTERPRETED, reason="runs under TRITON_INTERPRET=1, as .ci/triton does"
)


class Allocations(TorchDispatchMode):
    """Counts, in `bytes`, the memory that `new_empty` makes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.new_empty:
            self.bytes += result.numel() * result.element_size()
        return result


@pytest.mark.parametrize("num_codes", [512, 8192])
def test_workspace_is_a_sixty_fourth_of_the_rows_whatever_the_number_of_codes(num_codes):
    rows = torch.zeros(1, 256).expand(1 << 19, 256)
    indices = torch.arange(1 << 19) % num_codes
    results = num_codes * (8 + 4 * 256)
    with _triton.recording("sm_90"), Allocations() as allocations:
        code_statistics_triton(rows, indices, num_codes)
    assert allocations.bytes - results == rows.numel() * 4 // 64 == 8 << 20


@interpreted
@pytest.mark.parametrize(
    "lengths",
    [
        [1, 1, 1],  # in units of a segment: each code fills one
        [0, 1, 0, 0, 2, 0],  # codes without rows, and one of two segments
        [0.5, 1, 0.5],  # one that covers the end of one segment and the start of the next
        [0.25, 2.5, 0.25],  # one that covers a whole segment besides
        [0.25, 0.25, 0.75, 0.25, 10.25],
    ],
)
def test_codes_that_begin_and_end_anywhere_in_a_segment(lengths):
    segment = _triton.configuration("code_segments", torch.device("cpu"))["SEGMENT"]
    counts = torch.tensor([int(length * segment) for length in lengths])
    indices = torch.arange(len(counts)).repeat_interleave(counts)
    generator = torch.Generator().manual_seed(0)
    indices = indices[torch.randperm(len(indices), generator=generator)]
    rows = torch.randint(-9, 10, (len(indices), 20), generator=generator).float()
    expected = torch.zeros(len(counts), 20).index_add_(0, indices, rows)
    found_counts, sums = code_statistics_triton(rows, indices, len(counts))
    assert torch.equal(found_counts, counts)
    assert torch.equal(sums, expected)
