"""Runs: their folders, logs and interrupts, and the processes that share one."""

from vqvae2_fast.runs.interrupt import InterruptedRun
from vqvae2_fast.runs.ranks import LostProcessError, Ranks

__all__ = ["InterruptedRun", "LostProcessError", "Ranks"]
