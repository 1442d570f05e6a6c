"""Writes the resources of compiled Triton kernels from docs/triton-kernels.csv into the READMEs.

    python build_tools/triton_tables.py

Run `build_tools/compile_triton.py --summary docs/triton-kernels.csv` first. A table is replaced in
place; a README without one gets it at its end.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUMMARY = ROOT / "docs" / "triton-kernels.csv"
TARGET = "sm_90"
HEADER = (
    f"| compiled for {TARGET}, the most that a variant takes "
    "| registers per thread | spills | shared memory per block | occupancy "
    "| approximate instructions |"
)


def table(kernels: set[str], rows: list[dict[str, str]]) -> str:
    """The lines of some kernels, without a line break at the end."""
    lines = [HEADER, "|---|---|---|---|---|---|"]
    for row in rows:
        if row["kernel"] in kernels and row["target"] == TARGET:
            counted = f"{row['variants']} variant{'s' if row['variants'] != '1' else ''}"
            lines.append(
                f"| `{row['kernel']}`, {counted} | {row['most_registers']} | "
                f"{row['most_spill_bytes']} B | {int(row['most_shared_bytes']) / 1024:.3g} KiB | "
                f"{100 * float(row['least_occupancy']):.0f} % | {row['approximate'] or 'none'} |"
            )
    return "\n".join(lines)


def with_table(text: str, new: str) -> str:
    """A README's text with its table replaced by this one."""
    pattern = re.compile(re.escape(HEADER) + r"(?:\n\|[^\n]*)*")
    if pattern.search(text):
        return pattern.sub(lambda _: new, text)
    return f"{text.rstrip()}\n\n{new}\n"


def readmes() -> dict[Path, str]:
    """Each README in a folder with Triton kernels, and the text that it should have."""
    with SUMMARY.open() as file:
        rows = list(csv.DictReader(file))
    texts = {}
    for readme in sorted((ROOT / "vqvae2_fast" / "ops").glob("*/README.md")):
        sources = "".join(file.read_text() for file in readme.parent.glob("triton*.py"))
        kernels = set(re.findall(r"def (_\w+_kernel)\(", sources))
        if not kernels:
            continue
        texts[readme] = with_table(readme.read_text(), table(kernels, rows))
    return texts


def main() -> None:
    for readme, text in readmes().items():
        readme.write_text(text)


if __name__ == "__main__":
    main()
