"""The console: what a long task shows while it runs."""

from vqvae2_fast.console.progress import Progress

__all__ = ["Progress"]
