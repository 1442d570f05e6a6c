"""How the modules of a network were when it was made, to see later whether anything was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from vqvae2_fast.modules.contexts import unfilled

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["UNREAD", "LayerAsMade", "layers_as_made", "remember_layers"]

# What nn.Module keeps of itself, and what drawing never reads: the rates and places of dropout.
UNREAD = {*vars(nn.Module()), "_compiled_call_impl", "dropout", "dropout_on", "p"}
# By the class and the arguments of its constructor.
_remembered: dict[Hashable, list[LayerAsMade]] = {}
_MOST = 64


class LayerAsMade(NamedTuple):
    """A module as it was made: its type and settings, and which weights and children it has. The
    shapes of weights are not among them, because a plan takes them from the weights."""

    path: str
    kind: type[nn.Module]
    names: frozenset[str]
    settings: tuple[tuple[str, object], ...]
    has: tuple[tuple[str, bool], ...]


def remember_layers(made: nn.Module, *arguments: Hashable) -> None:
    """To be called where a constructor ends, with the arguments that its modules follow from.

    Without it the first draw would make another network only to look at its modules, which takes
    ten times as long.
    """
    if (type(made), arguments) not in _remembered:
        if len(_remembered) >= _MOST:
            _remembered.clear()
        _remembered[type(made), arguments] = _layers_of(made)


def layers_as_made(kind: Callable[..., nn.Module], *arguments: Hashable) -> list[LayerAsMade]:
    """The modules of `kind(*arguments)`, in the order of `modules()`."""
    found = _remembered.get((kind, arguments))
    if found is None:  # an unpickled network was made by another process
        with torch.device("meta"), unfilled():
            found = _layers_of(kind(*arguments))
    return found


def _layers_of(made: nn.Module, path: str = "") -> list[LayerAsMade]:
    own = vars(made)
    settings = tuple((name, value) for name, value in own.items() if name not in UNREAD)
    held = {**made._parameters, **made._modules}
    has = tuple((name, value is not None) for name, value in held.items())
    layers = [LayerAsMade(path, type(made), frozenset(own), settings, has)]
    for name, child in made._modules.items():
        if child is not None:
            layers += _layers_of(child, f"{path}.{name}" if path else name)
    return layers
