"""Modules that `torch.compile` has wrapped."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

__all__ = ["without_compiler"]

_Module = TypeVar("_Module")


def without_compiler(module: _Module) -> _Module:
    """The module that `torch.compile` was given, with the same weights; any other as it is."""
    # The wrapper's class is not imported, which would import the compiler.
    original: Any = getattr(module, "_orig_mod", None) if isinstance(module, nn.Module) else None
    return module if original is None else original
