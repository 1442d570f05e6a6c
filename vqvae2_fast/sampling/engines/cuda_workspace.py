"""The memory of a draw of engine `cuda`, and the largest batch that fits into what is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vqvae2_fast.sampling.engines.cuda_library import Library

__all__ = ["largest_batch", "zeroed_workspace"]


def zeroed_workspace(
    library: Library, values: dict[str, int | float], size: int, device: torch.device
) -> Tensor:
    """Zeroed memory of a draw, uint8 `[size]`.

    Raises:
        torch.OutOfMemoryError: The message names the largest batch that would have fitted.
    """
    try:
        return torch.zeros(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info(device)[0]
        batch = int(values["batch"])
        fits = largest_batch(library, values, free)
        remedy = f"a batch of {fits} would fit" if fits else "not even a batch of 1 would fit"
        raise torch.OutOfMemoryError(
            f"engine cuda: a batch of {batch} needs {size / 2**20:.0f} MiB besides the weights, "
            f"but {free / 2**20:.0f} MiB are free: {remedy}."
        ) from error


def largest_batch(library: Library, values: dict[str, int | float], free: int) -> int:
    """The largest batch whose memory fits into `free` bytes; 0 if none does."""
    fitting, beyond = 0, int(values["batch"]) + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if library.sizes({**values, "batch": middle}).workspace_bytes <= free:
            fitting = middle
        else:
            beyond = middle
    return fitting
