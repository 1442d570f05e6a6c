"""Registers, shared memory and blocks per multiprocessor of the compiled CUDA kernels, as CSV.

    cuobjdump --dump-resource-usage MODULE | c++filt | python benchmarks/gpu_occupancy.py

Computed from what ptxas recorded in the module; nothing is run. The pixel phase takes its shared
memory at launch, for which it has a multiprocessor to itself.
"""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PARTS, PART_REGISTERS, REGISTER_STEP = 4, 1 << 14, 256
MAX_BLOCKS = 32


@dataclass(frozen=True)
class Multiprocessor:
    """By the table "Technical Specifications per Compute Capability" of the CUDA programming guide.
    All have four parts of 16,384 registers, of which a warp takes a multiple of 256.

    Args:
        shared: Bytes of shared memory.
        warps: The most that it holds.
        reserved: Bytes of shared memory that the runtime adds to a block and that the recorded
            figure lacks; from sm_90 on it has them.
    """

    shared: int
    warps: int
    reserved: int


CARDS = {
    "sm_80": Multiprocessor(164 << 10, 64, 1 << 10),
    "sm_90": Multiprocessor(228 << 10, 64, 0),
    "sm_100": Multiprocessor(228 << 10, 64, 0),
}
# Threads of a block as csrc/cuda launches it, and blocks per multiprocessor at most.
LAUNCHES = {
    "pixel_phase_kernel": (512, 1),
    "row_phase_kernel": (128, MAX_BLOCKS),
    "stem_row_kernel": (256, MAX_BLOCKS),
    "gumbel_noise_kernel": (256, MAX_BLOCKS),
}
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes: registers per thread; bytes of a thread's stack; bytes of shared memory
    of a block that are fixed when it is compiled; bytes of local memory."""

    architecture: str
    name: str
    registers: int
    stack: int
    shared: int
    local: int


def parse(lines: Iterable[str]) -> Iterator[Kernel]:
    """Reads the output of `cuobjdump --dump-resource-usage`, with plain or mangled names."""
    architecture = name = ""
    for line in lines:
        if line.startswith("arch = "):
            architecture = line.split(" = ")[1].strip()
        elif line.startswith(" Function "):
            name = line.removeprefix(" Function ").strip().removesuffix(":")
        elif (usage := USAGE.search(line)) is not None:
            yield Kernel(architecture, name, *map(int, usage.groups()))


def card_of(kernel: Kernel) -> Multiprocessor | None:
    return CARDS.get(kernel.architecture.rstrip("af"))


def blocks(kernel: Kernel) -> tuple[int, int] | None:
    """Blocks per multiprocessor and threads of a block; None for a kernel or card not known."""
    card = card_of(kernel)
    launch = next((launch for part, launch in LAUNCHES.items() if part in kernel.name), None)
    if card is None or launch is None:
        return None
    threads, most = launch
    of_a_warp = -(-kernel.registers * 32 // REGISTER_STEP) * REGISTER_STEP
    by_registers = PART_REGISTERS // of_a_warp * PARTS // (threads // 32)
    by_shared = card.shared // max(kernel.shared + card.reserved, 1)
    return min(by_registers, by_shared, card.warps // (threads // 32), most), threads


def row(kernel: Kernel) -> dict[str, object]:
    card, found = card_of(kernel), blocks(kernel)
    return {
        "architecture": kernel.architecture,
        "kernel": re.sub(r"\(.*", "", kernel.name),
        "registers": kernel.registers,
        "stack_bytes": kernel.stack,
        "shared_bytes": kernel.shared,
        "local_bytes": kernel.local,
        "threads": found[1] if found else "",
        "blocks_per_multiprocessor": found[0] if found else "",
        "occupancy": f"{found[0] * found[1] / 32 / card.warps:.2f}" if found and card else "",
    }


def main() -> None:
    rows = [row(kernel) for kernel in parse(sys.stdin)]
    if not rows:
        raise SystemExit("gpu_occupancy.py: expected what cuobjdump prints, got no kernel.")
    writer = csv.DictWriter(sys.stdout, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
