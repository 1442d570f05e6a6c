"""Writes docs/results.md: every figure of the README with its command, machine and date.

python benchmarks/results_page.py

What a file of results/ holds is read from there. What only stands in a text is marked as quoted.
The page also lists a run of each workload on each machine. tests/docs/test_results.py
holds the README to this page.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from report import Row, latest, read

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
}


class Measured(NamedTuple):
    """A row of the README's table, out of one file of results."""

    work: str
    file: str
    mode: str
    shape: str
    other: str  # a contender that it names, next to the fastest


class Quoted(NamedTuple):
    """A figure that stands in a text only."""

    figures: str  # as the README writes them, separated by "; "
    what: str
    command: str
    machine: str
    date: str  # when the text got it
    page: str = ""  # where more is said, from docs/


EPYC = "amd-epyc-2-cores-avx512-vnni.csv"
ENGINES = "../vqvae2_fast/sampling/engines/README.md"
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
)
QUOTED = (
    Quoted(
        "140 minutes",
        "training of `fashion28`: 19 + 45 + 75 + 2 minutes, from the time of a step",
        "python tools/train_pretrained.py fashion28 --out fashion28",
        "processor time of one thread of an AMD EPYC (Zen 4, AVX-512), under load",
        "2026-11-29",
        "reports/README.md#fashion28",
    ),
    Quoted(
        "80 seconds; 20 seconds",
        "the build, and the CUDA kernels in addition: processor time",
        "pip install .",
        "AMD EPYC (Zen 5)",
        "2026-11-26",
    ),
    Quoted(
        "2 min 39 s to 3 min 16 s; 28.29 dB; 971 bits; 2,375 bits; 22.46 dB",
        "the demo: time, quality, bits with and without priors, WebP at equal bits",
        "vqvae2-fast demo",
        "Intel Xeon (Emerald Rapids), 2 cores, AVX-512 with AMX, torch 2.13",
        "2026-11-30",
    ),
    Quoted(
        "twenty minutes",
        "the tests: processor time",
        "pytest",
        "AMD EPYC (Zen 3)",
        "2026-11-27",
    ),
    Quoted(
        "3.8 s; 1,282 times",
        "the codes of one 256×256 image; the plain way, summed from measured rows",
        "python benchmarks/sampler.py",
        "Intel Xeon (Sapphire Rapids), 2 cores, AVX-512-BF16, torch 2.13",
        "2026-11-25",
        f"{ENGINES}#measured",
    ),
    Quoted(
        "0.67 s; 2.59 s",
        "the same by engine `cpu_w8a8`, and by `cpu`",
        "python benchmarks/sampler.py --threads 2 --naive-rows 0 --weights w8a8` and `--weights "
        "float32",
        "AMD EPYC (Zen 5), 2 cores, AVX-512 VNNI",
        "2026-11-26",
    ),
)


def milliseconds(value: str | float) -> str:
    """Three digits, in ms or s."""
    time = float(value)
    return f"{time / 1000:.3g} s" if time >= 1000 else f"{time:.3g} ms"


def times(ours: Row, other: Row) -> str:
    """How many times as long the other one takes, in two digits."""
    ratio = float(other["median_ms"]) / float(ours["median_ms"])
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


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
    others = [name for name in run if name != "ours"]
    fastest = min(others, key=lambda name: float(run[name]["median_ms"]))
    shown = ", ".join(
        f"{NAMES.get(name, name)}: {times(ours, run[name])}"
        for name in dict.fromkeys((fastest, figure.other))
    )
    return f"| {figure.work} | {milliseconds(ours['median_ms'])} | {shown} |"


def _measured_lines() -> list[str]:
    lines = ["| what | time | next to it | command | machine | date |", "|---|---|---|---|---|---|"]
    for figure in MEASURED:
        row = run_of(figure)["ours"]
        script = "training_step.py" if row["op"] == "training_step" else "compare.py"
        _, work, time, other, _ = readme_row(figure).split("|")
        lines.append(
            f"|{work}|{time}|{other}| `python benchmarks/{script} {figure.mode}` | "
            f"{row['device']}, {row['threads']} threads | {row['date']} |"
        )
    return lines


def _quoted_lines() -> list[str]:
    lines = ["| figures | what | command | machine | in the text since |", "|---|---|---|---|---|"]
    for quoted in QUOTED:
        what = f"{quoted.what} ([more]({quoted.page}))" if quoted.page else quoted.what
        lines.append(
            f"| {quoted.figures} | {what} | `{quoted.command}` | {quoted.machine} | {quoted.date} |"
        )
    return lines


def _machine_lines(path: Path) -> list[str]:
    """All workloads of a file: our time, and how many times as long others take."""
    runs = [
        run for run in latest(read(path)) if not run["ours"]["mode"].startswith(("cost_", "call"))
    ]
    first = runs[0]["ours"]
    lines = [f"### {first['device']}", "", f"{first['versions']}.", ""]
    lines += [
        "| operator | workload | shape | time | others take | threads, clock | commit, date |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for run in runs:
        ours = run["ours"]
        others = ", ".join(
            f"{NAMES.get(name, name)} {times(ours, row)}"
            for name, row in run.items()
            if name != "ours"
        )
        lines.append(
            f"| `{ours['op']}` | {ours['mode']} | {ours['shape'].replace('x', '×')} | "
            f"{milliseconds(ours['median_ms'])} | {others} | {ours['threads']}, {ours['clock']} | "
            f"{ours['commit']}, {ours['date']} |"
        )
    return [*lines, ""]


def page() -> str:
    lines = [
        "# Every figure of the README",
        "",
        "This page is written by `python benchmarks/results_page.py`.",
        "",
        "## Measured, from files of results",
        "Medians of rounds in turns within one process. The rows are in "
        + " and ".join(
            f"[{file}](../benchmarks/results/{file})"
            for file in dict.fromkeys(figure.file for figure in MEASURED)
        )
        + ". Steps of the quantiser that were measured before 2026-11-30 may include page faults "
        "of freed memory, which the script avoids since then.",
        "",
        *_measured_lines(),
        "",
        "## Quoted",
        "These figures stand in texts only: no file of results holds them. The commands repeat "
        "them. Where the machine also did other work, the text that is linked says so.",
        "",
        *_quoted_lines(),
        "",
        "## Nothing measured",
        "There are no results of a GPU, of an Arm processor, or of a prior of the paper's size.",
        "",
        "## All results",
        "For each workload: the last of the runs with the most contenders. A factor below 1 means "
        "that the other one is faster. Before 2 December 2026 plain PyTorch searched by one "
        "product of all rows; since then it takes 1,024 rows at a time, in about half the time. "
        "The [list of benchmarks](../benchmarks/README.md) explains the scripts.",
        "",
    ]
    for path in sorted(RESULTS.glob("*-cores-*.csv")):
        lines += _machine_lines(path)
    lines += [
        "## Over the commits",
        "How our time, and the factors of the others, went from one measured commit to the next. "
        "A processor without a picture has no workload that was measured at two commits under the "
        "same conditions. `python benchmarks/history.py` draws the pictures from the results and "
        "their history in git, and says what is compared with what.",
        "",
    ]
    for path in sorted(RESULTS.glob("*-history.png")):
        device = path.stem.removesuffix("-history")
        lines += [f"![History of {device}](../benchmarks/results/{path.name})", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    # It takes no options, and must not write for somebody who asks what it does.
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    (ROOT / "docs/results.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
