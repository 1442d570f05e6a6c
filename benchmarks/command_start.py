"""Times the program `vqvae2-fast` from the shell: one image of a packaged pipeline.

    python benchmarks/command_start.py [--preset emoji32] [--rounds 12]

Next to it stand `import torch` alone in a process of its own, and the same command by `python -m
vqvae2_fast`, whose interpreter searches torch for garbage and frees it object by object. All take
turns, each in processes of its own; the first turn only brings the files into the page cache.
Prints medians with their range, and no ratios.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared import measure


def main() -> None:
    parser = measure.parser(__doc__, rounds=12)
    parser.add_argument("--preset", default="emoji32")
    options = measure.parse(parser)
    program = Path(sys.executable).with_name("vqvae2-fast")
    # Outside the source tree, whose folder of the package would hide an installed one.
    with tempfile.TemporaryDirectory() as folder:
        drawn = f"sample --preset {options.preset} --n 1 --quiet --out {folder}/drawn".split()
        commands = {
            "vqvae2-fast sample": [str(program), *drawn],
            "python -m vqvae2_fast sample": [sys.executable, "-m", "vqvae2_fast", *drawn],
            "import torch": [sys.executable, "-c", "import torch"],
        }

        def run(command: list[str]) -> float:
            shutil.rmtree(f"{folder}/drawn", ignore_errors=True)
            start = time.perf_counter()
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        rounds = [
            {name: run(command) for name, command in commands.items()}
            for _ in range(1 + options.rounds)
        ]
    print(f"{measure.machine()}, {options.rounds} rounds")
    for name in commands:
        seconds = [taken[name] for taken in rounds[1:]]
        print(
            f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        )


if __name__ == "__main__":
    main()
