"""Models that are built for weights from elsewhere, without the cost of a random start."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["is_unfilled", "unfilled"]

_unfilled = ContextVar("unfilled", default=False)


class _SkipRandomFills(TorchFunctionMode):
    _FILLS = (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in self._FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Within the block, layers are built with whatever is in the memory of their random weights.

    Every weight has to be loaded afterwards. On the meta device this also avoids arithmetic, for
    which torch would import its compiler (1.3 s).
    """
    token = _unfilled.set(True)
    try:
        with _SkipRandomFills():
            yield
    finally:
        _unfilled.reset(token)


def is_unfilled() -> bool:
    return _unfilled.get()
