"""Captures work on fixed buffers as a CUDA graph, which replays it without separate launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["captured"]


def captured(function: Callable[[], None]) -> Callable[[], None]:
    """The function as the replay of a graph.

    The function has to read and write fixed buffers of the current CUDA device and must not wait
    for the device. It runs once before it is captured, because libraries initialise themselves at
    their first call; the caller has to undo what that leaves in the buffers.
    """
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        function()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile, as the service does to decode images.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay
