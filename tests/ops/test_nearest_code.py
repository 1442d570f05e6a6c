"""What is special to `nearest_code`: exactness under attack, leading shapes, threads."""

from __future__ import annotations

import pytest
import torch
from helpers.compare import simd_level, simd_levels
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae2_fast import ops
from vqvae2_fast.ops.nearest_code.op import nearest_code_reference


def assert_exact(z, codebook):
    indices, sqdist = ops.nearest_code(z, codebook)
    expected_indices, expected_sqdist = nearest_code_reference(z, codebook)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(sqdist, expected_sqdist)


def test_leading_shape_is_kept():
    indices, sqdist = ops.nearest_code(torch.zeros(2, 3, 5, 4), torch.zeros(6, 4))
    assert indices.shape == sqdist.shape == (2, 3, 5)


def test_ties_take_the_lowest_index():
    codebook = torch.tensor([[2.0], [-1.0], [1.0], [-1.0]])
    assert ops.nearest_code(torch.zeros(1, 1), codebook)[0].item() == 1


@pytest.mark.parametrize("level", simd_levels())
def test_codes_around_a_midpoint(level):
    """Vectors within a few ulp of the midpoint of two codes: float32 alone cannot decide."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(64, 16, generator=generator)
    pairs = torch.randint(64, (4000, 2), generator=generator)
    middle = codebook[pairs].double().mean(dim=1)  # [4000, D]
    nudge = torch.randint(-3, 4, middle.shape, generator=generator) * 2.0**-24
    with simd_level(level):
        assert_exact((middle * (1 + nudge)).float(), codebook)


@pytest.mark.parametrize("level", simd_levels())
def test_midpoints_far_from_the_origin(level):
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randn(50, 8, generator=generator) * 1e-3 + 100
    pairs = torch.randint(50, (2000, 2), generator=generator)
    with simd_level(level):
        assert_exact(codebook[pairs].mean(dim=1), codebook)


@pytest.mark.parametrize("level", simd_levels())
def test_midpoints_of_codes_that_lie_close_to_each_other(level):
    """As in a trained codebook: the screens of short formats take other half norms for it."""
    generator = torch.Generator().manual_seed(3)
    far = torch.randn(32, generator=generator).repeat(256, 1)  # [K, D]
    far[::2] *= -1
    codebook = far + torch.randn(256, 32, generator=generator) / 16
    pairs = torch.randint(128, (4000, 2), generator=generator) * 2
    with simd_level(level):
        assert_exact(codebook[pairs].double().mean(dim=1).float(), codebook)


@pytest.mark.parametrize("level", simd_levels())
def test_norms_over_the_whole_range(level):
    generator = torch.Generator().manual_seed(2)
    scale = 10.0 ** torch.randint(-38, 38, (400, 1), generator=generator)
    z = torch.randn(400, 6, generator=generator) * scale
    codebook = (torch.randn(90, 6, generator=generator) * scale[:90]).clamp(-3e38, 3e38)
    with simd_level(level):
        assert_exact(z, codebook)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 40),
    k=st.integers(1, 70),
    d=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16, torch.float16])] * 2),
    transposed=st.booleans(),
    step=st.integers(1, 3),
    level=st.sampled_from(simd_levels()),
)
def test_any_shape_stride_and_dtype(n, k, d, seed, dtypes, transposed, step, level):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((d, n * step) if transposed else (n * step, d), generator=generator)
    z = (z.t() if transposed else z)[::step].to(dtypes[0])
    codebook = torch.randn(k, d, generator=generator).to(dtypes[1])
    with simd_level(level):
        assert_exact(z, codebook)


@pytest.mark.parametrize("level", simd_levels())
@pytest.mark.parametrize("rows", [3, 9, 400])
def test_flushing_denormals_does_not_matter(level, rows):
    """The nearest code is at a distance of exactly 0, whose screened score is its tag alone."""
    codebook = torch.arange(-8.0, 9.0)[:, None]
    torch.set_flush_denormal(True)
    try:
        with simd_level(level):
            indices, _ = ops.nearest_code(torch.zeros(rows, 1), codebook)
        assert torch.tensor(1e-40).mul(1).item() == 0  # the caller's mode is as it was
    finally:
        torch.set_flush_denormal(False)
    assert indices.eq(8).all()


def test_number_of_threads_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    z, codebook = torch.randn(3000, 8, generator=generator), torch.randn(40, 8, generator=generator)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.nearest_code(z, codebook)
        torch.set_num_threads(2)
        two = ops.nearest_code(z, codebook)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_infinite_vectors_get_an_index_inside_the_codebook():
    z = torch.tensor([[torch.inf, 1.0], [torch.nan, torch.nan], [1.0, -torch.inf]])
    indices, _ = ops.nearest_code(z, torch.randn(5, 2, generator=torch.Generator().manual_seed(4)))
    assert indices.tolist() == [0, 0, 0]


def test_compiles_with_the_default_backend():
    compiled = torch.compile(ops.nearest_code, fullgraph=True)
    generator = torch.Generator().manual_seed(5)
    z, codebook = torch.randn(9, 4, generator=generator), torch.randn(7, 4, generator=generator)
    assert torch.equal(compiled(z, codebook)[0], ops.nearest_code(z, codebook)[0])


def test_a_codebook_changed_in_place_is_seen():
    """The packed codebook is kept from call to call."""
    generator = torch.Generator().manual_seed(6)
    z, codebook = torch.randn(50, 8, generator=generator), torch.randn(40, 8, generator=generator)
    assert_exact(z, codebook)
    codebook[-1, -1] += 1
    codebook[7] = z[3]
    assert ops.nearest_code(z, codebook)[0][3] == 7
    assert_exact(z, codebook)


def test_codebooks_used_in_turns_are_not_mixed_up():
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(30, 8, generator=generator)
    codebooks = [torch.randn(40, 8, generator=generator) for _ in range(5)]
    for codebook in [*codebooks, *reversed(codebooks)]:
        assert_exact(z, codebook)


@pytest.mark.parametrize("level", simd_levels())
def test_more_codes_than_tags(level):
    """A score has room to number 1,024 vectors of codes; beyond that, vectors share numbers."""
    generator = torch.Generator().manual_seed(8)
    codebook = torch.randn(40_000, 3, generator=generator)
    z = codebook[torch.randint(40_000, (40,), generator=generator)] + 1e-3
    with simd_level(level):
        assert_exact(z, codebook)


@pytest.mark.parametrize("level", simd_levels())
@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("distinct", [1, 3, 60])
def test_codes_that_have_collapsed_to_few_values(distinct, rows, level):
    """Each is packed once, -0 as 0, and its first number is found."""
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(distinct, 20, generator=generator)
    values[0] = 0
    codebook = values[torch.randint(distinct, (500,), generator=generator)]
    codebook[250:] = torch.where(codebook[250:] == 0, -0.0, codebook[250:])
    codebook[:7] = torch.nan
    z = torch.randn(rows, 20, generator=generator)
    with simd_level(level):
        assert_exact(z, codebook)
        codes, indices, _ = ops.vector_quantize(z, codebook)
        first = ops.residual_nearest_code(z, codebook.expand(2, -1, -1))[1][:, 0]
    assert torch.equal(codes, codebook[indices])
    assert torch.equal(first, nearest_code_reference(z, codebook)[0])


@pytest.mark.parametrize("level", simd_levels())
def test_every_vector_between_many_codes(level):
    """Rounding cannot tell which code is nearest: no screen helps, but the answer stays exact."""
    generator = torch.Generator().manual_seed(9)
    codebook = 1 + 2.0**-20 * torch.randn(100, 16, generator=generator)
    z = 1 + 2.0**-20 * torch.randn(300, 16, generator=generator)
    with simd_level(level):
        assert_exact(z, codebook)


MANY_CODES = {
    "normal": lambda codes: codes,
    "offset": lambda codes: 1e-3 * codes + 100,
    "ties": lambda codes: (2 * codes).round() / 2,
    "some_flung_out": lambda codes: (
        codes * (1 + 1e4 * (torch.arange(len(codes)) % 97 == 0))[:, None]
    ),
    "unequal_dimensions": lambda codes: codes * torch.logspace(0, -5, codes.shape[1]),
    # All components are as large as the largest, and so are their sums in words and in sections.
    "signs": lambda codes: codes.sign(),
    # The products of the first two components are as large as those of all others together.
    "large_word": lambda codes: torch.cat([codes[:, :1].expand(-1, 2) * 5, codes], 1)[
        :, : codes.shape[1]
    ],
    # Almost all of the length is in one word.
    "one_word": lambda codes: torch.cat([codes[:, :1].erf().expand(-1, 2), 1e-3 * codes[:, 2:]], 1)[
        :, : codes.shape[1]
    ],
    "few_dimensions": lambda codes: codes * torch.where(torch.arange(codes.shape[1]) < 8, 1, 1e-3),
    "not_finite": lambda codes: codes.index_fill(0, torch.tensor([5]), float("nan")),
    "one_apart": lambda codes: torch.cat([torch.zeros(len(codes) - 1, codes.shape[1]), codes[:1]]),
}


@pytest.mark.parametrize("kind", MANY_CODES)
@pytest.mark.parametrize(
    ("num_codes", "dim"),
    [(32_833, 1), (4161, 23), (16_449, 64), (32_833, 16), (1031, 131), (515, 512)],
)
def test_many_codes(num_codes, dim, kind):
    """Codes of all kinds, midpoints between them, and vectors of all lengths, screened in int8
    where `suit_bytes` of byte_screen-inl.h takes them."""
    generator = torch.Generator().manual_seed(5)
    codebook = MANY_CODES[kind](torch.randn(num_codes, dim, generator=generator))
    pairs = torch.randint(len(codebook), (40, 2), generator=generator)
    middle = codebook[pairs].double().mean(dim=1)
    nudge = torch.randint(-3, 4, middle.shape, generator=generator) * 2.0**-24
    scale = 10.0 ** torch.randint(-6, 7, (40, 1), generator=generator)
    normal = torch.randn(70, dim, generator=generator) * codebook[6:].std() + codebook[6:].mean(0)
    far = torch.randn(40, dim, generator=generator) * scale
    # Most of their length is in one dimension, which bounds the unit of their bytes.
    spiked = normal[:40].clone()
    spiked[torch.arange(40), torch.arange(40) % dim] *= 30
    z = torch.cat([(middle * (1 + nudge)).float(), codebook[pairs[:, 0]], normal, far, spiked])
    expected_indices, expected_sqdist = nearest_code_reference(z, codebook)
    for level in simd_levels():
        with simd_level(level):
            indices, sqdist = ops.nearest_code(z, codebook)
        assert torch.equal(indices, expected_indices), level
        assert torch.equal(sqdist, expected_sqdist), level


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_codes_flung_out_do_not_matter(share):
    generator = torch.Generator().manual_seed(10)
    z, codebook = (
        torch.randn(500, 16, generator=generator),
        torch.randn(80, 16, generator=generator),
    )
    codebook[torch.rand(80, generator=generator) < share] *= 1e5
    assert_exact(z + 5, codebook + 5)
