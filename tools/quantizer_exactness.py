"""Compare every quantiser with its definition in float64, on many rows at each SIMD level.

    python tools/quantizer_exactness.py --rows 1000000

Each class gets rows of several scales, among them rows on or next to the boundaries between codes.
An index may differ from the definition's only where float32 cannot decide: the two codes are then
equally near to the tolerance printed. Searches (EMA, SimVQ, residual) must not differ at all, since
their distances are float64 everywhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vqvae2_fast import (
    BSQ,
    FSQ,
    LFQ,
    MultiScaleVQ,
    ResidualFSQ,
    ResidualVQ,
    SimVQ,
    VectorQuantizerEMA,
)
from vqvae2_fast.modules import GroupedResidualVQ, MultiHeadVQ

if TYPE_CHECKING:
    from vqvae2_fast.modules.fsq import Grid

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.compare import simd_levels  # noqa: E402

# Of a number between two values, relative to the distance of the boundaries: float32's rounding
# of tanh, of the factor and of the offset.
TOLERANCE = 4e-6
PART = 1 << 16


def rows(count: int, dim: int, seed: int) -> torch.Tensor:
    """Normal numbers of four scales; every eighth row has numbers that occur in codes."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, dim, generator=generator)
    z *= torch.tensor([0.05, 0.5, 1.0, 4.0])[torch.arange(count) % 4][:, None]
    z[::8] = (z[::8] * 4).round() / 4
    return z


def scalar_digits(z: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What is rounded, in steps, in float64: the digit is its rounding."""
    levels = torch.tensor(grid.levels, dtype=torch.float64)
    if grid.symmetric:
        bounded = z.clamp(-1, 1) if grid.hard else z.tanh()
        return (levels - 1) * (bounded + 1) / 2
    half = (levels - 1) * 1.001 / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    return (
        (z + (offset / half).atanh()).tanh() * half - offset + levels.div(2, rounding_mode="floor")
    )


def unequal_scalars(z: torch.Tensor, indices: torch.Tensor, grid: Grid) -> tuple[int, int]:
    """Numbers whose digit differs, and those of them that are no near-tie."""
    steps = scalar_digits(z.double(), grid)
    place, differ, wrong = 1, 0, 0
    for number, size in enumerate(grid.levels):
        digit = indices // place % size
        place *= size
        error = (steps[:, number] - digit).abs()
        ties = error > 0.5
        differ += int(ties.sum())
        wrong += int((error > 0.5 + TOLERANCE * size).sum())
    return differ, wrong


def nearest(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The definition: least float64 sum of squares, the lowest index of ties."""
    codes = codebook.double()
    found = []
    for part in z.double().split(512):
        distances = torch.zeros(len(part), len(codes), dtype=torch.float64)
        for number in range(z.shape[1]):
            distances += (part[:, number, None] - codes[None, :, number]) ** 2
        found.append(distances.argmin(1))
    return torch.cat(found)


def residual_indices(z: torch.Tensor, quantizer: ResidualVQ) -> torch.Tensor:
    residual, indices = z, []
    for book in quantizer.quantizers:
        index = nearest(residual, book.codebook)
        residual = residual - book.codebook[index]
        indices.append(index)
    return torch.stack(indices, dim=-1)


def multi_scale_indices(z: torch.Tensor, quantizer: MultiScaleVQ) -> torch.Tensor:
    pyramid, left, indices = quantizer._pyramid(), quantizer._maps(z), []
    codebook = quantizer.quantizers[0].codebook
    for scale in range(len(quantizer.scales)):
        cells = pyramid.cells(left, scale)
        indices.append(nearest(cells.flatten(0, 1), codebook).view(cells.shape[:2]))
        left = left - pyramid.spread(codebook[indices[-1]], scale)
    return torch.cat(indices, 1)


CLASSES = {
    "FSQ": lambda: FSQ([8, 5, 5, 4]),
    "ResidualFSQ": lambda: ResidualFSQ([8, 5, 4, 3], 3),
    "LFQ": lambda: LFQ(256),
    "BSQ": lambda: BSQ(256),
    "SimVQ": lambda: SimVQ(128, 8),
    "VectorQuantizerEMA": lambda: VectorQuantizerEMA(128, 8),
    "ResidualVQ": lambda: ResidualVQ(64, 8, 3),
    "MultiScaleVQ": lambda: MultiScaleVQ(64, 8, (1, 2, 4)),
    "GroupedResidualVQ": lambda: GroupedResidualVQ(2, 64, 8, 2),
    "MultiHeadVQ": lambda: MultiHeadVQ(2, 64, 8),
}


def check(name: str, count: int) -> tuple[int, int]:
    """Differing indices of a class, and those that are wrong."""
    torch.manual_seed(0)
    dim = 4 if "FSQ" in name else 8
    quantizer = CLASSES[name]()
    # The rows of 16 places are a map.
    shape = (-1, 4, 4, dim) if name == "MultiScaleVQ" else (-1, dim)
    quantizer(rows(4096, dim, 1).view(shape))
    quantizer.eval()
    differ = wrong = 0
    for part, start in enumerate(range(0, count, PART)):
        here = min(PART, count - start)
        z = rows(here if len(shape) == 2 else -(-here // 16) * 16, dim, 2 + part).view(shape)
        with torch.no_grad():
            z_q, indices, _ = quantizer(z)
            assert torch.equal(indices, quantizer.encode(z))
            torch.testing.assert_close(quantizer.lookup(indices), z_q, rtol=1e-6, atol=1e-6)
        if name == "FSQ":
            more = unequal_scalars(z, indices, quantizer.grid)
        elif name == "ResidualFSQ":
            more = _residual_scalars(z, indices, quantizer)
        elif name in ("LFQ", "BSQ"):
            places = 2 ** torch.arange(7, -1, -1)
            expected = ((z > 0) * places).sum(1)
            more = (int((indices != expected).sum()),) * 2
        else:
            more = (_unequal_searches(name, z, indices, quantizer),) * 2
        differ, wrong = differ + more[0], wrong + more[1]
    return differ, wrong


def _residual_scalars(
    z: torch.Tensor, indices: torch.Tensor, quantizer: ResidualFSQ
) -> tuple[int, int]:
    scales, bound = (constant.double() for constant in quantizer.constants(z))
    residual = bound * (z.double() / bound).tanh()
    differ = wrong = 0
    for scale, index in zip(scales, indices.unbind(-1), strict=True):
        # The residual after the codes that were chosen; its own rounding grows by 1/scale.
        steps = scalar_digits(residual / scale, quantizer.grid)
        place, digits = 1, []
        for number, size in enumerate(quantizer.grid.levels):
            digit = index // place % size
            place *= size
            error = (steps[:, number] - digit).abs()
            differ += int((error > 0.5).sum())
            wrong += int((error > 0.5 + TOLERANCE * size / scale[number]).sum())
            digits.append(digit.double() * 2 / (size - 1) - 1)
        residual = residual - torch.stack(digits, dim=-1) * scale
    return differ, wrong


def _unequal_searches(name: str, z: torch.Tensor, indices: torch.Tensor, quantizer: object) -> int:
    if name == "MultiScaleVQ":
        return int((indices != multi_scale_indices(z, quantizer)).sum())
    if name == "ResidualVQ":
        return int((indices != residual_indices(z, quantizer)).sum())
    if name == "SimVQ":
        return int((indices != nearest(z, quantizer.codes().detach())).sum())
    if name == "VectorQuantizerEMA":
        return int((indices != nearest(z, quantizer.codebook)).sum())
    unequal = 0
    for number, part in enumerate(z.chunk(2, dim=1)):
        own = quantizer.parts[number]
        grouped = name == "GroupedResidualVQ"
        expected = residual_indices(part, own) if grouped else nearest(part, own.codebook)
        unequal += int((indices[:, number] != expected).sum())
    return unequal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), choices=list(CLASSES))
    parser.add_argument("--here", action="store_true", help="only at the SIMD level in use")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error(f"--rows: expected 1 or more, got {options.rows}")
    failed = 0
    if not options.here:
        for level in simd_levels():
            environment = os.environ | {"VQVAE2_FAST_SIMD": level}
            command = [sys.executable, __file__, "--here", "--rows", str(options.rows), "--classes"]
            print(f"{level}:", flush=True)
            failed |= subprocess.call([*command, *options.classes], env=environment)
        return failed
    for name in options.classes:
        differ, wrong = check(name, options.rows)
        print(f"  {name}: {options.rows} rows, {differ} indices differ, {wrong} wrong", flush=True)
        failed |= wrong > 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
