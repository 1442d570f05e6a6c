"""The service's connections: for how long they may wait, and how many there may be.

uvicorn has no setting for either: its `timeout_keep_alive` ends with the first byte of a request,
and its `limit_concurrency` refuses everybody once there are too many connections.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp

    from vqvae2_fast.serve.limits import Limits

__all__ = ["server_config"]


def server_config(app: ASGIApp, limits: Limits, **options: Any) -> uvicorn.Config:
    """What uvicorn runs an application of `create_app` by, with further options of its own."""
    most = min(limits.connections, _descriptors() // 2)
    # A class to uvicorn, which only calls it. The other parser, httptools, bounds neither the
    # length of a head nor the number of requests that are sent ahead of their answers.
    connection: Any = partial(_Connection, limits.head, most, {})
    return uvicorn.Config(app, http=connection, ws="none", **options)


def _descriptors() -> int:
    """How many files and connections the process may have open. At the last one, uvicorn would
    accept nobody."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return 2**31
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if most == resource.RLIM_INFINITY else most


class _Connection(H11Protocol):
    """A connection of uvicorn that no client can hold by asking for nothing.

    Args:
        head: Seconds to wait for the whole head of a request, since the connection was opened or
            the last request was answered.
        most: The largest number of connections. For one more, that one is closed that has waited
            longest for a whole request.
        opened: All connections, in the order in which they were opened or last answered.
    """

    def __init__(
        self, head: float, most: int, opened: dict[_Connection, None], *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head, self._most, self._opened = head, most, opened

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self._opened) > self._most:
            longest = next(one for one in self._opened if one._idle() or one.cycle.more_body)
            del self._opened[longest]
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._opened.pop(self, None)
        self._timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._opened.pop(self, self) is None:  # else it is being closed
            self._timer.cancel()
            self._wait()

    def _wait(self) -> None:
        self._opened[self] = None
        self._timer = self.loop.call_later(self._head, self._give_up)

    def _give_up(self) -> None:
        if self._idle():
            self.timeout_keep_alive_handler()

    def _idle(self) -> bool:
        """Whether no request is being received, apart from its head, or answered."""
        return self.cycle is None or self.cycle.response_complete
