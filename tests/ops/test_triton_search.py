"""The search of `nearest_code` in Triton: its launches, its preparation, and what it decides when
codes lie almost equally near.

Tests that run a kernel need `TRITON_INTERPRET=1` (see `.ci/triton`)."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae2_fast.ops import _triton
from vqvae2_fast.ops.nearest_code.op import nearest_code_reference

pytest.importorskip("triton")

import triton
import triton.language as tl

from vqvae2_fast.ops.nearest_code import triton as search
from vqvae2_fast.ops.nearest_code.triton import nearest_code_triton
from vqvae2_fast.ops.nearest_code.triton_codebook import (
    NUM_UNITS,
    PARTS,
    UNSCREENED,
    centre_codebook,
    known,
)

interpreted = pytest.mark.skipif(
    not _triton.INTERPRETED, reason="runs under TRITON_INTERPRET=1, as .ci/triton does"
)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Calls(TorchDispatchMode):
    """Names of the ATen operators that do more than make a tensor of memory, in `names`."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in ("empty", "new_empty"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_search_is_four_kernels():
    z, codebook = torch.ones(64, 64), torch.ones(512, 64)
    with _triton.recording("sm_90"):
        nearest_code_triton(z, codebook)
    with _triton.recording("sm_90") as launches, Calls() as calls:
        nearest_code_triton(z, codebook)
    assert calls.names == []
    assert [launch.kernel.__name__ for launch in launches] == [
        "_nearest_code_centre_kernel",
        "_nearest_code_screen_kernel",
        "_nearest_code_open_kernel",
        "_nearest_code_hard_kernel",
    ]


@pytest.mark.parametrize(("target", "dependent"), [("sm_80", False), ("sm_90", True)])
def test_kernels_after_the_first_are_launched_as_dependent_on_hopper(target, dependent):
    with _triton.recording(target) as launches:
        nearest_code_triton(torch.ones(64, 64), torch.ones(512, 64))
    assert [launch.arguments["DEPENDENT"] for launch in launches] == [dependent] * 4
    asked = [launch.options.get("launch_pdl", False) for launch in launches]
    assert asked == [False, dependent, dependent, dependent]


@interpreted
def test_codebook_written_through_data_is_seen():
    z, codebook = randn(0, 20, 8), randn(1, 30, 8)
    before, _ = nearest_code_triton(z, codebook)
    codebook.data.copy_(codebook.flip(0))
    after, _ = nearest_code_triton(z, codebook)
    assert torch.equal(after, 29 - before)


def added(parts):
    """The numbers that rows of parts stand for, in float64."""
    assert not parts[:, NUM_UNITS.value :].any()
    units = 2.0 ** torch.tensor([15, 6, -3, -12], dtype=torch.float64)
    return parts[:, : NUM_UNITS.value].double() @ units[: NUM_UNITS.value]


@interpreted
def test_parts_of_half_norms_add_up_to_them():
    """To 2⁻²⁶ + 2⁻⁴³ of them, for norms from 2⁻¹⁵ to 2¹⁵ times the spread."""
    codebook = randn(11, 320, 8)
    codebook[1::10] *= 2.0 ** torch.arange(-16, 16)[:, None]
    codebook = torch.cat([codebook, -codebook])  # the mean is 0
    halves, mean, facts, _ = centre_codebook(codebook, 16, 16)
    inverse = facts[:1].view(torch.float32).double()
    # As the kernel does: centred and scaled in float32.
    centred = ((codebook - mean) * inverse.float()).double()
    expected = centred.square().sum(1) / 2
    screened = expected < 30000**2 / 2
    found = added(halves[:, 16:])
    assert (found - expected).abs()[screened].le(2**-26 + 2.0**-43 * expected[screened]).all()
    assert expected[screened].max() > 5e7 and expected.min() < 1e-7


@interpreted
def test_code_beyond_the_largest_norm_is_zeros_though_its_values_are_within():
    codebook = randn(12, 64, 8)
    codebook[5] = 20000
    halves, *_ = centre_codebook(codebook, 16, 16)
    assert not halves[5, :16].any()
    assert added(halves[5:6, 16:]) == UNSCREENED.value


@interpreted
@pytest.mark.parametrize("num_codes", [1, 70, 300])
def test_extremes_bound_norms_and_errors_of_a_codebook_with_codes_far_out(num_codes):
    """The bounds hold, and are within a hundredth of what they bound."""
    codebook = randn(2, num_codes, 20) + 3
    codebook[1::3] *= 1e9
    halves, mean, facts, extremes = centre_codebook(codebook, 16, 32)
    halves, half_norms = halves.split([32, PARTS.value], 1)
    assert not halves[num_codes:].any() and not halves[:, 20:].any()
    half_norms = added(half_norms)
    assert (half_norms[num_codes:] == UNSCREENED.value).all()
    halves, half_norms = halves[:num_codes, :20], half_norms[:num_codes]
    inverse = facts[:1].view(torch.float32).double()
    assert facts[1:].tolist() == [0, 0]
    largest, error = extremes[:2].max(1).values.double()
    least = extremes[2].min().double()
    exact = (codebook.double() - mean.double()) * inverse  # [K, D]
    norms = exact.norm(dim=1)
    screened = half_norms != UNSCREENED.value
    assert torch.equal(screened, norms < 30000)
    assert 1 <= largest / norms[screened].max() < 1.01 or norms[screened].max() == 0
    assert not halves[~screened].any()
    errors = (exact - halves.double()).norm(dim=1)[screened]
    assert 1 <= error / errors.max() < 1.01 or errors.max() == 0
    assert not screened.all() or least == torch.inf
    assert screened.all() or 0.99 < least / norms[~screened].min() <= 1
    expected = norms[screened].square() / 2
    torch.testing.assert_close(half_norms[screened], expected, atol=0, rtol=1e-6)


@triton.jit
def _known_kernel(out_ptr, extremes_ptr, blocks, WIDTH: tl.constexpr, ONCE: tl.constexpr):
    largest, error, unscreened = known(extremes_ptr, blocks, WIDTH, ONCE)
    tl.store(out_ptr, largest)
    tl.store(out_ptr + 1, error)
    tl.store(out_ptr + 2, unscreened)


@interpreted
@pytest.mark.parametrize(("blocks", "once"), [(1, True), (5, True), (8, False), (21, False)])
def test_extremes_of_blocks_are_joined(blocks, once):
    """The last block has all of them."""
    extremes = randn(25, 3, blocks).abs()
    extremes[:, -1] = torch.tensor([9.0, 8.0, 1e-3])
    out = torch.empty(3)
    _known_kernel[(1,)](out, extremes, blocks, WIDTH=8, ONCE=once)
    assert out.tolist() == extremes[:, -1].tolist()


@interpreted
def test_mean_and_spread_leave_out_codes_far_out():
    """Nine tenths of the codes, as unused ones of the widely used port grow."""
    codebook = randn(3, 640, 8) * 0.01 + 3
    codebook[torch.arange(640) % 10 > 0] *= 1e5
    _, mean, facts, _ = centre_codebook(codebook, 16, 16)
    torch.testing.assert_close(mean, torch.full((8,), 3.0), atol=0.01, rtol=0)
    assert facts[:1].view(torch.float32).item() == 128.0


def assert_exact(z, codebook):
    expected_indices, expected_sqdist = nearest_code_reference(z, codebook)
    indices, sqdist = nearest_code_triton(z, codebook)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(sqdist, expected_sqdist)


@interpreted
def test_offsets_beyond_31_bits():
    """A transposed input of 4.4 GB, of which only 33 pages are touched."""
    z = torch.empty(33 * 2**26, dtype=torch.float16).as_strided((5, 33), (1, 2**26))
    z.copy_(randn(13, 5, 33))
    assert_exact(z, randn(14, 9, 33))
    assert_exact(z, randn(14, 9, 33).repeat(2, 1))  # ties are decided by another kernel


@pytest.mark.parametrize(
    ("z", "codebook", "expected"),
    [
        (((2**25 - 100, 64), (64, 1)), ((8, 64), (64, 1)), torch.int32),
        (((2**25, 64), (64, 1)), ((8, 64), (64, 1)), torch.int64),
        (((64, 33), (1, 2**26)), ((8, 33), (33, 1)), torch.int64),
        (((64, 64), (64, 1)), ((2, 64), (2**31, 1)), torch.int64),
        (((2**31 - 1, 64), (0, 1)), ((8, 64), (64, 1)), torch.int64),
    ],
    ids=["below", "rows", "transposed", "codes", "expanded"],
)
def test_rows_are_numbered_in_32_bits_only_where_all_offsets_fit(z, codebook, expected):
    z, codebook = (torch.empty_strided(*of, device="meta") for of in (z, codebook))
    assert search.number_type(z, codebook) == expected


@interpreted
@pytest.mark.parametrize("num_codes", [2, 6, 130])
def test_order_of_the_sum_decides_between_permutations_of_a_code(num_codes):
    """Their distances to a constant vector differ only in how float64 rounds the sums."""
    generator = torch.Generator().manual_seed(4)
    code = torch.randn(40, generator=generator)
    codebook = torch.stack(
        [code[torch.randperm(40, generator=generator)] for _ in range(num_codes)]
    )
    assert_exact(randn(5, 12, 1).expand(12, 40), codebook)


@interpreted
def test_distance_is_the_sum_in_order_where_another_order_rounds_to_another_float32():
    """1 + 2⁻²⁴ is halfway between two float32; what follows is lost unless it is summed first."""
    codebook = torch.full((2, 32), 2.0**-27)
    codebook[0, 0], codebook[0, 1] = 1.0, 2.0**-12
    codebook[1] = 10.0
    _, sqdist = nearest_code_triton(torch.zeros(3, 32), codebook)
    assert sqdist.tolist() == [1.0] * 3


@interpreted
def test_hard_rows_find_the_nearest_of_codes_in_one_lane():
    """Codes k and k + 64 differ in the last bit of one coordinate, and share a lane."""
    codebook = randn(15, 130, 16)
    codebook[64:128] = codebook[:64]
    codebook[64:128, 3] = torch.nextafter(codebook[:64, 3], torch.tensor(torch.inf))
    assert_exact(codebook[:64] + 0.3 * randn(16, 64, 16), codebook)


@interpreted
def test_equal_codes_of_several_tiles_take_the_lowest_index():
    """Lane 3 sees code 67 before lane 5 sees the equal code 5."""
    codebook = randn(17, 130, 16)
    codebook[67] = codebook[5]
    assert nearest_code_triton(codebook[5:6] + 0.01, codebook)[0].tolist() == [5]


@pytest.fixture
def counts(monkeypatch):
    """The numbers of open and of hard rows of each search."""
    counts = []
    settle = search.settle_hard_rows

    def counted(*args):
        counts.append(args[-1][-2:].tolist())
        settle(*args)

    monkeypatch.setattr(search, "settle_hard_rows", counted)
    return counts


@interpreted
def test_few_rows_are_left_to_the_third_kernel(counts):
    nearest_code_triton(randn(6, 512, 16), randn(7, 64, 16))
    assert counts[0][1] <= 5


@interpreted
def test_rows_between_two_codes_are_settled_by_the_second_kernel(counts):
    """Close to the midpoint of codes of two groups: float16 cannot tell them apart, float64 can."""
    codebook = randn(8, 8, 16)
    assert_exact((codebook[0] * 0.50001 + codebook[5] * 0.49999).repeat(40, 1), codebook)
    assert counts == [[40, 0]]


def rows_between(codebook, *codes):
    """Rows that are almost as near to one of the codes as to any other of them."""
    middle = codebook[list(codes)].mean(0)
    return middle + 1e-4 * randn(18, 20, codebook.shape[1])


@interpreted
def test_two_groups_of_one_lane_are_settled_by_the_second_kernel(counts):
    """A lane of 8 sees codes 0 and 32, in groups 0 and 8 of tiles of 32 codes."""
    codebook = 4 * randn(19, 96, 16)
    codebook[[0, 32]] = 0.1 * randn(20, 2, 16)
    assert_exact(rows_between(codebook, 0, 32), codebook)
    assert counts == [[20, 0]]


@interpreted
def test_three_groups_of_one_lane_are_left_to_the_third_kernel(counts):
    codebook = 4 * randn(19, 96, 16)
    codebook[[0, 32, 64]] = torch.eye(16)[:3]  # as far from their mean
    assert_exact(rows_between(codebook, 0, 32, 64), codebook)
    assert counts == [[20, 20]]


@interpreted
def test_codes_of_a_group_that_float32_cannot_tell_apart(counts):
    """Rows are shorter than half a unit in the last place of the codes."""
    code = randn(21, 1, 16)
    assert_exact(3e-8 * randn(22, 200, 16), torch.cat([code, -code]))
    assert counts == [[200, 200]]


@interpreted
@pytest.mark.parametrize("scale", [1e-25, 1e-22, 1e25])
def test_squares_beyond_float32(scale):
    assert_exact(scale * randn(23, 60, 8), scale * randn(24, 40, 8))


@pytest.fixture(params=[-1, 1], ids=["less", "more"])
def approximate_roots(monkeypatch, request):
    """Square roots of float32 as by `sqrt.approx.ftz.f32`: off by 2⁻²³, and 0 of denormals."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    calls = []

    def root(x):
        if x.dtype != np.float32:
            return np.sqrt(x)
        calls.append(x)
        exact = np.sqrt(np.where(x < np.finfo(np.float32).tiny, 0, x).astype(np.float64))
        return (exact * (1 + request.param * 2.0**-23)).astype(np.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_sqrt", lambda self, x: self.unary_op(x, root)
    )
    return calls


@interpreted
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-19, 1.0, 1e18])
def test_approximate_square_roots_change_no_code(approximate_roots, scale):
    """The band allows for them: rows are midpoints of codes, moved by a few ulp, and the mean."""
    codebook = randn(26, 96, 16)
    middles = (codebook[:48] + codebook[48:]) / 2
    moved = middles * (1 + 1e-7 * randn(27, 48, 16))
    assert_exact(scale * torch.cat([middles, moved, codebook.mean(0)[None]]), scale * codebook)
    assert approximate_roots


@interpreted
def test_a_row_at_the_codebooks_mean_has_a_norm_of_zero(approximate_roots):
    """Its squares are denormals, which the square root takes for 0."""
    codebook = torch.cat([torch.eye(16), -torch.eye(16)])
    assert_exact(1e-20 * randn(28, 40, 16), codebook)
    assert any((x < np.finfo(np.float32).tiny).any() for x in approximate_roots)


@interpreted
@pytest.mark.parametrize("num_codes", [1, 3, 5])
def test_the_last_group_may_lack_codes(counts, num_codes):
    """Those that do not exist are read as others, and must not tie with them."""
    codebook = randn(9, num_codes, 16) + 7
    assert_exact(codebook[-1:] + 0.01 * randn(11, 3, 16), codebook)
    assert counts == [[0, 0]]


@interpreted
def test_a_code_of_nan_in_the_nearest_group_does_not_count(counts):
    codebook = randn(10, 8, 16)
    codebook[0] = float("nan")
    assert_exact(codebook[[1, 2, 3]] + 0.01, codebook)
    assert counts == [[0, 0]]


@interpreted
@pytest.mark.parametrize(("exact_d", "loop_d", "again"), [(32, 64, 64), (32, 64, 16), (16, 8, 32)])
def test_rows_of_the_table_need_not_divide_each_other(monkeypatch, exact_d, loop_d, again):
    """At D = 96, in blocks of 32, nothing is masked: a longer loop would read the next vectors."""
    screen = {"BLOCK_N": 16, "BLOCK_K": 16, "MAX_D": 32, "CHUNK_D": 32}
    rows = {
        "nearest_code_screen": {**screen, "EXACT_D": exact_d, "LOOP_D": loop_d},
        "nearest_code_open": {"PROGRAMS": 2, "BLOCK_N": 16, "BLOCK_K": 16, "LOOP_D": again},
    }
    monkeypatch.setattr(
        search,
        "configuration",
        lambda name, device: rows.get(name, _triton.configuration(name, device)),
    )
    # With room behind the last vector, so that reading past it is an error of the result only.
    z, codebook = randn(13, 40, 96)[:20], randn(14, 64, 96)[:32]
    codebook[1::2] = codebook[::2] * (1 + 1e-6)  # two in each band: open rows
    indices, sqdist = nearest_code_triton(z, codebook)
    expected_indices, expected_sqdist = nearest_code_reference(z, codebook)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(sqdist, expected_sqdist)
