"""Writes docs/results.md, every figure of the README with its command, machine and date, and two
pictures of speed.

python benchmarks/results_page.py

What a file of results/ holds is read from there: times from the CSV files, and what `demo` and
`train` reached from commands.json, which has their metrics.json without the curves of codecs. What
only stands in a text is marked as quoted. tests/docs/test_results.py holds the README and the
pictures to the files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from report import Row, latest, read
from shared.bars import Bar, Panel, picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
NAMES = {
    "ours": "vqvae2_fast",
    "lean": "plain PyTorch",
    "lean_compiled": "plain PyTorch, compiled",
    "compiled": "our references, compiled",
    "reference_compiled": "our reference, compiled",
    "onehot": "one-hot products",
    "onehot_compiled": "one-hot products, compiled",
    "cdist": "torch.cdist",
    "lucidrains": "vector-quantize-pytorch",
    "port": "the port's arithmetic in plain PyTorch",
    "naive": "the full network for every code",
    "w8a8": "int8 weights and inputs",
}
OURS = ("ours", "w8a8")
# The names that pictures have room for.
SHORT = {
    "ours": "vqvae2_fast",
    "w8a8": "vqvae2_fast, int8",
    "naive": "full network per code",
    "lean": "plain PyTorch",
    "lean_compiled": "plain PyTorch, compiled",
    "onehot": "one-hot products",
    "lucidrains": "vector-quantize-pytorch",
}


class Measured(NamedTuple):
    """A row of the README's table, out of one file of results."""

    work: str
    file: str
    mode: str
    shape: str
    other: str  # a contender that it names, next to the fastest


class Quoted(NamedTuple):
    """Figures of a command as a whole."""

    figures: str  # as the README writes them, separated by "; "
    what: str
    command: str
    machine: str
    date: str


PICTURES = ROOT / "docs/images"
EPYC = "amd-epyc-2-cores-avx512-vnni.csv"
MEASURED = (
    Measured(
        "find the nearest of 512 codes for 65,536 vectors of 64 numbers",
        EPYC,
        "search",
        "65536x512x64",
        "faiss",
    ),
    Measured("a training step of that quantiser", EPYC, "step", "65536x512x64", "onehot"),
    Measured(
        "a training step of a top prior of the port's size, batch 4",
        EPYC,
        "port_top",
        "batch4",
        "port",
    ),
    Measured(
        "the codes of a 256×256 image, from priors of the port's size",
        EPYC,
        "port_image",
        "batch1",
        "naive",
    ),
)
SCRIPTS = {
    "training_step": "training_step.py port_top --against port",
    "sampler": "sampler.py --weights float32 w8a8",
}
QUOTED = (
    Quoted(
        "4 minutes",
        "a clean install, with the download of PyTorch's build for CPUs and the compilation: "
        "4 min 1 s, and 4 min 54 s of processor time",
        "pip install .",
        "AMD EPYC (Zen 5), 2 cores",
        "2026-12-03",
    ),
    Quoted(
        "65 minutes",
        "training of `avatars64` ([recipe](reports/README.md#avatars64))",
        "python tools/train_pretrained.py avatars64 --out avatars64",
        "one thread of an AMD EPYC (Zen 5)",
        "2026-12-03",
    ),
    Quoted(
        "about three minutes",
        "the tests, on two cores",
        "pytest",
        "AMD EPYC (Zen 5), 2 cores, AVX-512 VNNI, torch 2.13",
        "2026-12-03",
    ),
)


def of_commands() -> list[Quoted]:
    """What `demo` and `train` reached, by the file that holds it."""
    reports = json.loads((RESULTS / "commands.json").read_text(encoding="utf-8"))

    def quoted(name: str, what: str, *figures: str) -> Quoted:
        report = reports[name]
        machine = report["machine"]
        where = f"{report['processor']}, {machine['simd']}, torch {machine['torch'].split('+')[0]}"
        return Quoted("; ".join(figures), what, report["command"], where, report["date"])

    def reached(name: str) -> tuple[str, str]:
        held_out = reports[name]["held_out"]
        psnr, bits = held_out["reconstruction"]["psnr"], held_out["bits_per_image"]
        return f"{psnr:.2f} dB", f"{bits:,.0f} bits"

    demo, train = reports["demo"], reports["train"]
    return [
        quoted(
            "demo",
            "the demo: time, quality, bits with and without priors, WebP at equal bits",
            f"{demo['seconds']['all']:.0f} seconds",
            *reached("demo"),
            f"{demo['held_out']['marginal_bits_per_image']:,.0f} bits",
            f"{demo['held_out']['webp']['psnr']:.2f} dB",
        ),
        quoted(
            "train",
            "2,707 avatars of 64×64 in six classes (`--data avatars` draws such images)",
            f"{train['seconds']['all'] / 60:.0f} minutes",
            *reached("train"),
        ),
    ]


def milliseconds(value: str | float) -> str:
    """Three digits, in ms or s."""
    time = float(value)
    return f"{time / 1000:.3g} s" if time >= 1000 else f"{time:.3g} ms"


def times(ours: Row, other: Row) -> str:
    """How many times as long the other one takes, in two digits."""
    ratio = float(other["median_ms"]) / float(ours["median_ms"])
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def run_of(figure: Measured) -> dict[str, Row]:
    """The rows of its run, by contender."""
    for run in latest(read(RESULTS / figure.file)):
        if (run["ours"]["mode"], run["ours"]["shape"]) == (figure.mode, figure.shape):
            return run
    raise ValueError(
        f"results_page: expected a run of {figure.mode} {figure.shape} in {figure.file}."
    )


def readme_row(figure: Measured) -> str:
    """The row of the README's table: our time, the fastest of the others and the one it names."""
    run = run_of(figure)
    ours = run["ours"]
    others = [name for name in run if name not in OURS]
    fastest = min(others, key=lambda name: float(run[name]["median_ms"]))
    shown = ", ".join(
        f"{NAMES.get(name, name)}: {times(ours, run[name])}"
        for name in dict.fromkeys((fastest, figure.other))
    )
    return f"| {figure.work} | {milliseconds(ours['median_ms'])} | {shown} |"


def command(row: Row) -> str:
    """What measured a row of a `Measured`."""
    script = SCRIPTS.get(row["op"], f"compare.py {row['mode']}")
    clock = " --clock cpu" if row["clock"] == "cpu" and row["op"] != "sampler" else ""
    return f"python benchmarks/{script} --threads {row['threads']}{clock}"


def conditions(row: Row) -> str:
    """The threads, and what the clock counts."""
    threads = "one thread" if row["threads"] == "1" else f"{row['threads']} threads"
    return f"{threads}, processor time" if row["clock"] == "cpu" else threads


def _measured_lines() -> list[str]:
    lines = ["| what | time | next to it | command | machine | date |", "|---|---|---|---|---|---|"]
    for figure in MEASURED:
        row = run_of(figure)["ours"]
        _, work, time, other, _ = readme_row(figure).split("|")
        lines.append(
            f"|{work}|{time}|{other}| `{command(row)}` | "
            f"{row['device']}, {conditions(row)} | {row['date']} |"
        )
    return lines


def _quoted_lines(figures: Iterable[Quoted]) -> list[str]:
    lines = ["| figures | what | command | machine | date |", "|---|---|---|---|---|"]
    for quoted in figures:
        *cells, ran, machine, date = quoted
        lines.append(f"| {' | '.join(cells)} | `{ran}` | {machine} | {date} |")
    return lines


def pictures() -> dict[str, str]:
    """The pictures of speed, as SVG, by the names of their files."""
    image, step, rival = run_of(MEASURED[3]), run_of(MEASURED[1]), SHORT["lucidrains"]

    def panel(title: str, run: dict[str, Row], column: str, told: Callable[[float], str]) -> Panel:
        bars = []
        for name, row in sorted(run.items(), key=lambda item: float(item[1][column])):
            value = float(row[column])
            factor = value / float(run["ours"][column])
            note = f"{factor:,.0f}×" if factor >= 10 else f"{factor:.1f}×"
            mine = name in OURS
            bars.append(Bar(SHORT[name], value, told(value), "" if mine else note, mine))
        return Panel(title, bars)

    def under(row: Row) -> str:
        device = row["device"].replace(", 2 cores, ", " with ")
        return f"{device}, {conditions(row)}, PyTorch {version('torch', row)}"

    return {
        "speed-image.svg": picture(
            "Codes of one 256×256 image, from priors of vq-vae-2-pytorch's size",
            [panel("time", image, "median_ms", duration)],
            [
                under(image["ours"]),
                "int8 draws from a slightly different prior; "
                "vq-vae-2-pytorch's sample.py runs the full network",
            ],
        ),
        "speed-step.svg": picture(
            "A quantiser's training step: 65,536 vectors of 64 numbers, 512 codes",
            [
                panel("time", step, "median_ms", lambda value: f"{value:.0f} ms"),
                panel("peak memory", step, "peak_mib", lambda value: f"{value:.0f} MiB"),
            ],
            [
                under(step["ours"]),
                f"float32, {rival} {version(rival, step['ours'])}",
            ],
        ),
    }


def version(package: str, row: Row) -> str:
    """The version of a package that a row names."""
    return row["versions"].partition(f"{package} ")[2].partition(",")[0].partition("+")[0]


def duration(value: float) -> str:
    """Milliseconds, in words for a reader."""
    seconds = value / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def page() -> str:
    lines = [
        "# Every figure of the README",
        "",
        "This page is written by `python benchmarks/results_page.py`.",
        "",
        "![time of an image](images/speed-image.svg)",
        "",
        "![time and memory of a quantiser's step](images/speed-step.svg)",
        "",
        "## Measured, from files of results",
        "Medians of rounds in turns within one process. The rows are in "
        + " and ".join(
            f"[{file}](../benchmarks/results/{file})"
            for file in dict.fromkeys(figure.file for figure in MEASURED)
        )
        + ". The full network for every code is measured at some rows and summed.",
        "",
        *_measured_lines(),
        "",
        "## Reached by a command",
        "From [commands.json](../benchmarks/results/commands.json).",
        "",
        *_quoted_lines(of_commands()),
        "",
        "## Quoted",
        "No file of results holds these figures. The commands repeat them.",
        "",
        *_quoted_lines(QUOTED),
        "",
        "## Nothing measured",
        "There are no results of a GPU, of an Arm processor, or of a prior of the paper's size.",
        "",
        "[benchmarks/results](../benchmarks/README.md) has the files of other machines.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    # It takes no options, and must not write for somebody who asks what it does.
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    (ROOT / "docs/results.md").write_text(page(), encoding="utf-8")
    for name, drawn in pictures().items():
        (PICTURES / name).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
