"""The first page of what `gpu.sh` found: every claim, expected and measured.

    python benchmarks/gpu_claims.py RESULTS

Reads the JSON files of the folder RESULTS, writes RESULTS/summary.md and prints it. What is missing
is "not measured", so the page can be written however far the measurement came. Expected figures
are those for an H100: of the sampler, below; of operators, those of the table in the README of
`vector_quantize`.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINES = {
    "cuda": "float32",
    "cuda_tf32": "tf32",
    "cuda_bfloat16": "bfloat16",
}
# Seconds of a batch of 256x256 images on an H100, top and bottom maps, from the sampler's README.
SAMPLER_README = "csrc/cuda/sampler/README.md"
EXPECTED_S = {
    ("cuda", 1): 0.076,
    ("cuda_tf32", 1): 0.064,
    ("cuda_bfloat16", 1): 0.057,
    ("cuda", 64): 1.459,
    ("cuda_tf32", 64): 0.748,
    ("cuda_bfloat16", 64): 0.621,
}
OPERATORS = Path("ops/vector_quantize/README.md")
SHAPE = "524288x512x64"
IMAGES = 50_000
# Of each kind the first file that has a figure counts: the headline ones were measured alone.
SAMPLER, OPERATOR = ("claims-sampler", "sampler"), ("claims-operators", "operators")

Row = dict[str, Any]
Range = tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """A figure: what was expected, from where, and what was measured; None if it is not known."""

    name: str
    unit: str
    expected: Range | None
    source: str
    measured: float | None
    note: str = ""

    @property
    def row(self) -> str:
        expected, measured, ratio = "unknown", "not measured", ""
        if self.expected is not None:
            ends = dict.fromkeys(f"{end:.3g}" for end in self.expected)
            expected = f"{' to '.join(ends)} {self.unit}"
        if self.measured is not None:
            measured = f"{self.measured:.3g} {self.unit}{self.note}"
            if self.expected is not None:
                ratio = f"{self.measured / self.expected[1]:.2f}"
        return f"| {self.name} | {expected} | {measured} | {ratio} | {self.source} |"


def read(folder: Path, name: str) -> list[Row]:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def first(folder: Path, names: tuple[str, ...], **values: object) -> Row | None:
    """The first row of these files that has these values."""
    for name in names:
        for row in read(folder, name):
            if all(row[key] == value for key, value in values.items()):
                return row
    return None


def package_folder() -> Path:
    """Of the installed package, which is not imported; of this tree if there is none."""
    spec = importlib.util.find_spec("vqvae2_fast")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parents[1] / "vqvae2_fast"


def operator_table(text: str) -> tuple[dict[str, Range], dict[str, Range]]:
    """Milliseconds that the table of `vector_quantize`'s README expects on an H100, by the first
    word of a row, and the same as multiples of the row's bytes at the card's bandwidth."""
    bandwidth = re.search(r"Model for an H100 \(([\d.]+) TB/s\)", text)
    rows = re.findall(
        r"^\| `?(\w+)[^|]*\| *(?:(\d+) MB)? *\| \**([\d.]+)(?: to ([\d.]+))? (µs|ms)\** \|$",
        text,
        re.MULTILINE,
    )
    times, multiples = {}, {}
    for name, megabytes, low, high, unit in rows:
        scale = 1e-3 if unit == "µs" else 1.0
        times[name] = (float(low) * scale, float(high or low) * scale)
        if megabytes and bandwidth:
            floor = float(megabytes) / float(bandwidth[1]) * 1e-3  # MB / (TB/s) is a µs
            multiples[name] = (times[name][0] / floor, times[name][1] / floor)
    return times, multiples


def sampler_claims(folder: Path, batch: int, what: str, unit: str) -> list[Claim]:
    claims = []
    for engine, precision in ENGINES.items():
        row = first(folder, SAMPLER, engine=engine, batch=batch)
        seconds = EXPECTED_S[engine, batch]
        expected = seconds if batch == 1 else IMAGES / batch * seconds / 60
        measured = None
        if row is not None:
            measured = row["median_s"] if batch == 1 else IMAGES / row["images_per_s"] / 60
        note = ""
        if row is not None and row["sample_0"] == "differs":
            note = " (WRONG: sample 0 differs between batches)"
        name = f"{what}, engine `{engine}` ({precision})"
        source = f"`{SAMPLER_README}`, an H100"
        claims.append(Claim(name, unit, (expected, expected), source, measured, note))
    return claims


def operator_claims(folder: Path) -> list[Claim]:
    times, multiples = operator_table((package_folder() / OPERATORS).read_text(encoding="utf-8"))
    source = f"`vqvae2_fast/{OPERATORS}`, an H100"
    claims = []
    for mode, part, what in (
        ("search", "search", "search"),
        ("quantiser_step", "step", "training step of the quantiser"),
        ("statistics", "code_statistics", "statistics of the codes"),
    ):
        row = first(folder, OPERATOR, mode=mode, shape=SHAPE, contender="ours")
        measured = row["median_ms"] if row else None
        claims.append(Claim(f"{what}, {SHAPE}", "ms", times.get(part), source, measured))
        if mode == "search":
            # Both rates are of the same bytes, so their ratio is one of times.
            floor = row["copy_gb_per_s"] / row["gb_per_s"] if row else None
            claims.append(
                Claim(f"{what}, over its memory floor", "×", multiples.get(part), source, floor)
            )
    return claims


def all_claims(folder: Path) -> list[Claim]:
    return [
        *sampler_claims(folder, 1, "a 256×256 image, batch 1", "s"),
        *operator_claims(folder),
        *sampler_claims(folder, 64, f"{IMAGES:,} images, batch 64", "min"),
    ]


def text_of(folder: Path, name: str) -> str:
    path = folder / name
    text = path.read_text(errors="replace").strip() if path.exists() else ""
    return text or "not known"


def part_rows(folder: Path) -> list[str]:
    path = folder / "parts.tsv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [f"| {' | '.join(part)} |" for part in csv.reader(file, delimiter="\t")]


def page(folder: Path) -> str:
    """The first page, in Markdown."""
    lines = [
        "# GPU results",
        "",
        text_of(folder, "driver.log"),
        "",
        f"Package, {text_of(folder, 'origin.txt')}: "
        f"{text_of(folder, 'package.log').splitlines()[-1]}",
        f"Scripts: those of {Path(__file__).parent}.",
        "",
        "Expected figures come from models and were not measured. The ratio is measured over "
        "expected; of a range it is over the upper end.",
        "",
        "| claim | expected | measured | ratio | expected by |",
        "|---|---|---|---|---|",
        *(claim.row for claim in all_claims(folder)),
        "",
        "| part | result | s |",
        "|---|---|---|",
        *part_rows(folder),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: python benchmarks/gpu_claims.py RESULTS (a folder of gpu.sh)")
    folder = Path(sys.argv[1])
    text = page(folder)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
