"""The device that a module's weights are on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["device_of"]


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter; models here are never spread over several
    devices."""
    return next(module.parameters()).device
