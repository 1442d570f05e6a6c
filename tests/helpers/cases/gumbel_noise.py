"""Cases of `gumbel_noise`."""

from __future__ import annotations

import torch

from helpers.cases import Case, ErrorCase
from vqvae2_fast.ops.gumbel_noise.op import gumbel_noise

__all__ = ["CASES", "ERRORS"]


def _case(
    name: str,
    batch: int,
    length: int,
    num_embeddings: int,
    seed: int = 0,
    stream: int = 0,
    first: int = 0,
) -> Case:
    def make(_: torch.Generator) -> tuple[object, ...]:
        return torch.arange(batch) + first, torch.arange(length), num_embeddings, seed, stream

    return Case(name, make, batched=(0,), exact=True)


CASES = [
    _case("odd_sizes", 3, 5, 301),
    _case("one_code", 2, 2, 1),
    _case("no_samples", 0, 3, 8),
    _case("seed_of_64_bits", 2, 3, 40, seed=-0x123456789ABCDEF),
    _case("last_sample_number", 2, 2, 20, stream=3, first=2**32 - 2),
    _case("many_codes", 1, 2, 2049),
]

_ONE = torch.zeros(1, dtype=torch.int64)
ERRORS = [
    ErrorCase(
        "float_samples",
        lambda: gumbel_noise(torch.zeros(1), _ONE, 4),
        TypeError,
        "expected samples int64, got [1] float32",
    ),
    ErrorCase(
        "positions_not_a_vector",
        lambda: gumbel_noise(_ONE, _ONE[None], 4),
        ValueError,
        "expected positions 1-d, got [1, 1]",
    ),
    ErrorCase(
        "no_codes",
        lambda: gumbel_noise(_ONE, _ONE, 0),
        ValueError,
        "expected num_embeddings to be an integer >= 1, got 0",
    ),
    ErrorCase(
        "stream_too_large",
        lambda: gumbel_noise(_ONE, _ONE, 4, stream=1 << 16),
        ValueError,
        "expected stream to be an integer from 0 to 65535, got 65536",
    ),
    ErrorCase(
        "seed_too_large",
        lambda: gumbel_noise(_ONE, _ONE, 4, seed=1 << 64),
        ValueError,
        "to 18446744073709551615, got 18446744073709551616",
    ),
    ErrorCase(
        "list_of_samples",
        lambda: gumbel_noise([0], _ONE, 4),  # type: ignore[arg-type]
        TypeError,
        "expected samples to be a tensor, got a list: pass torch.tensor(samples).",
    ),
    ErrorCase(
        "fraction_as_seed",
        lambda: gumbel_noise(_ONE, _ONE, 4, seed=1.5),  # type: ignore[arg-type]
        ValueError,
        "expected seed to be an integer from -9223372036854775808 to 1",
    ),
    ErrorCase(
        "text_as_seed",
        lambda: gumbel_noise(_ONE, _ONE, 4, seed="a"),  # type: ignore[arg-type]
        ValueError,
        "got 'a'.",
    ),
]
