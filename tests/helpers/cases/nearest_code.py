"""Cases of `nearest_code`: sizes, dtypes, ties, offsets, extreme values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.cases import Case, ErrorCase, like, randn
from vqvae2_fast import ops
from vqvae2_fast.ops.nearest_code.op import nearest_code

__all__ = ["CASES", "ERRORS"]

Arguments = tuple[Tensor, Tensor]
Maker = Callable[[torch.Generator], Arguments]


def _gaussian(
    n: int,
    k: int,
    d: int,
    z_dtype: torch.dtype = torch.float32,
    codebook_dtype: torch.dtype = torch.float32,
) -> Maker:
    def make(g: torch.Generator) -> Arguments:
        return randn(g, n, d, dtype=z_dtype), randn(g, k, d, dtype=codebook_dtype)

    return make


def _duplicated_codes(g: torch.Generator) -> Arguments:
    codebook = randn(g, 7, 12)
    return randn(g, 50, 12), codebook[torch.randint(7, (40,), generator=g)]


def _exact_ties(g: torch.Generator) -> Arguments:
    """Small integers: distances are exact and many are equal."""
    z = torch.randint(-2, 3, (64, 5), generator=g).float()
    return z, torch.randint(-2, 3, (33, 5), generator=g).float()


def _offset(g: torch.Generator) -> Arguments:
    z, codebook = _gaussian(300, 65, 16)(g)
    return z + 30, codebook + 30


def _one_ulp_apart(g: torch.Generator) -> Arguments:
    """Each code has neighbours that differ in the last bit of one coordinate."""
    codebook = randn(g, 20, 9)
    above = codebook.clone()
    above[:, 4] = torch.nextafter(above[:, 4], torch.tensor(torch.inf))
    return codebook + 1e-3 * randn(g, 20, 9), torch.cat([above, codebook])


def _flung_codes(g: torch.Generator) -> Arguments:
    """Unused codes of the widely used port grow to 10^5 times their length; some overflow."""
    z, codebook = _gaussian(100, 40, 8)(g)
    codebook[::7] *= 1e5
    codebook[1::9] *= 1e25
    return z, codebook


def _far_from_codebook(g: torch.Generator) -> Arguments:
    z, codebook = _gaussian(40, 17, 6)(g)
    return z * 1e20, codebook


def _rounded_definition(g: torch.Generator) -> Arguments:
    """Vectors so far out that the codes vanish, some or all, in the definition's float64 sums."""
    z, codebook = _gaussian(200, 40, 6)(g)
    return z * 10.0 ** torch.randint(6, 17, (200, 1), generator=g), codebook


def _denormal(g: torch.Generator) -> Arguments:
    z, codebook = _gaussian(60, 30, 8)(g)
    return z * 1e-41, codebook * 1e-41


def _not_finite(g: torch.Generator) -> Arguments:
    z, codebook = _gaussian(30, 20, 8)(g)
    z[::4] = torch.nan
    z[1::7, 2] = torch.inf
    codebook[::5, 1] = torch.nan
    codebook[3, 3] = -torch.inf
    return z, codebook


_MAKERS = {
    "tile_multiple": _gaussian(120, 64, 64),
    "odd_sizes": _gaussian(37, 45, 19),
    "one_of_each": _gaussian(1, 1, 1),
    "one_code": _gaussian(13, 1, 8),
    "one_dimension": _gaussian(50, 70, 1),
    "no_vectors": _gaussian(0, 5, 4),
    "wide": _gaussian(24, 33, 300),
    "many_codes": _gaussian(30, 1025, 8),
    "bfloat16": _gaussian(61, 40, 24, torch.bfloat16, torch.bfloat16),
    "float16": _gaussian(61, 40, 24, torch.float16, torch.float16),
    "half_input_float_codebook": _gaussian(61, 40, 24, torch.float16),
    "float_input_bfloat16_codebook": _gaussian(61, 40, 24, torch.float32, torch.bfloat16),
    "float64": _gaussian(20, 30, 7, torch.float64, torch.float64),
    "duplicated_codes": _duplicated_codes,
    "exact_ties": _exact_ties,
    "offset_30_sigma": _offset,
    "one_ulp_apart": _one_ulp_apart,
    "flung_codes": _flung_codes,
    "far_from_codebook": _far_from_codebook,
    "rounded_definition": _rounded_definition,
    "denormal": _denormal,
    "not_finite": _not_finite,
}

CASES = [
    Case(name, make, batched=(0,), exact=True, has_nan=name == "not_finite")
    for name, make in _MAKERS.items()
]

ERRORS = [
    ErrorCase(
        "dimensions_differ",
        lambda: nearest_code(torch.zeros(2, 3), torch.zeros(4, 5)),
        ValueError,
        "expected z [..., D] with D=5 as in codebook [4, 5], got [2, 3] float32",
    ),
    ErrorCase(
        "empty_codebook",
        lambda: nearest_code(torch.zeros(2, 3), torch.zeros(0, 3)),
        ValueError,
        "expected codebook [K, D] with K, D >= 1, got [0, 3]",
    ),
    ErrorCase(
        "codebook_not_a_matrix",
        lambda: nearest_code(torch.zeros(2, 3), torch.zeros(3)),
        ValueError,
        "expected codebook [K, D] with K, D >= 1, got [3]",
    ),
    ErrorCase(
        "integers",
        lambda: nearest_code(torch.zeros(2, 3).long(), torch.zeros(4, 3)),
        TypeError,
        "expected z of a floating dtype, got [2, 3] int64",
    ),
    ErrorCase(
        "devices_differ",
        lambda: nearest_code(torch.zeros(2, 3), torch.zeros(4, 3, device="meta")),
        RuntimeError,
        "expected all tensors on one device, got z on cpu, codebook on meta",
    ),
    ErrorCase(
        "nan_when_asked",
        lambda: nearest_code(torch.full((2, 3), torch.nan), torch.zeros(4, 3), check_values=True),
        ValueError,
        "expected finite values, got NaN or infinity in z",
    ),
    ErrorCase(
        "list_of_vectors",
        lambda: nearest_code([[0.0, 1.0]], torch.zeros(4, 2)),  # type: ignore[arg-type]
        TypeError,
        "expected z to be a tensor, got a list: pass torch.tensor(z).",
    ),
    ErrorCase(
        "array_of_codes",
        lambda: nearest_code(torch.zeros(2, 3), torch.zeros(4, 3).numpy()),  # type: ignore[arg-type]
        TypeError,
        "expected codebook to be a tensor, got a numpy array: pass torch.from_numpy(codebook).",
    ),
    ErrorCase(
        "no_codebook",
        lambda: nearest_code(torch.zeros(2, 3), None),  # type: ignore[arg-type]
        TypeError,
        "expected codebook to be a tensor, got None.",
    ),
    ErrorCase(
        "list_of_codebooks",
        lambda: nearest_code(torch.zeros(2, 3), [torch.zeros(4, 3)] * 2),  # type: ignore[arg-type]
        TypeError,
        "expected codebook to be a tensor, got a list of tensors: pass torch.stack(codebook).",
    ),
]

CONSTANTS = {"nearest_code": lambda z: ops.nearest_code(z, like(z, 1, 5, 6))[1]}
