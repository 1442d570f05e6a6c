"""Draw many times from a tiny prior whose weights change at random before each draw.

    python tools/draws_between_changes.py --draws 10000

Ends with an error at the first draw by any CPU engine that does not use the current weights. Prints
how often each kind of change altered the draw. 10,000 draws take about ten minutes.
"""

from __future__ import annotations

import argparse

import torch

from vqvae2_fast.testing.weight_changes import CHANGES, draws_between_changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.draws < 1:
        parser.error(f"--draws: expected 1 or more, got {options.draws}")
    torch.set_num_threads(1)
    counts = draws_between_changes(options.draws, options.seed)
    for name in CHANGES:
        print(f"{counts[name]:6d} draws changed by: {name}")
    print(f"{options.draws} draws, each from the weights as they were")


if __name__ == "__main__":
    main()
