"""The command `vqvae2-fast`: what OpenMP reads only once, while torch is being loaded.

A module of its own because importing anything of `vqvae2_fast` loads torch.
"""

from __future__ import annotations

import os

__all__ = ["main"]


def main() -> int:
    """Run the command line; see `vqvae2_fast.cli.main`."""
    # GNU OpenMP's threads spin for about a millisecond after each parallel region before they
    # sleep. Beside one other busy process that keeps the thread with work off its core: 30 steps of
    # training on two cores took 93 s instead of 13 to 32.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    from vqvae2_fast.cli import main as run

    return run()
