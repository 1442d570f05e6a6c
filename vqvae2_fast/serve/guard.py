"""What every request passes before and after its route: origin, token, sizes, headers, counts."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from vqvae2_fast.serve.limits import Problem, stopping

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vqvae2_fast.serve.limits import Limits
    from vqvae2_fast.serve.metrics import Metrics

__all__ = ["Guard", "is_loopback"]

_BODIES = 8  # bodies of the largest size that fit in memory together
_log = logging.getLogger("vqvae2_fast.serve")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by itself: `localhost`, 127.0.0.1 or another such address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NotTaken(Exception):
    """The client takes nothing of its answer."""


class Guard:
    """The outermost ASGI application.

    Args:
        elements: The largest number of values in a body of JSON, which the pipeline's sizes give.
        pipeline: Its hash, which every answer names as `Vqvae2-Pipeline`: a page that stays open
            while the server starts anew with another one then knows.
        token: What `Authorization: Bearer` must say below /v1 and at /metrics; None for no token.
        loopback: Whether the server listens on loopback only. Then only its names are accepted as
            Host, so that no page of the web reaches it under a name of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        elements: int,
        pipeline: str,
        token: str | None,
        loopback: bool,
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._elements = elements
        headers = {**_HEADERS, "Vqvae2-Pipeline": pipeline}
        self._headers = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        self._token = None if token is None else token.encode()
        self._loopback = loopback
        self._held = 0  # bytes of the bodies of all open requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, _until_ended(receive), send)
            return
        begun, status, answered = time.monotonic(), 500, False
        if scope["method"] == "HEAD":  # the routes have GET only, and the server leaves bodies out
            scope = {**scope, "method": "GET"}

        async def send_more(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                message = {**message, "headers": [*message["headers"], *self._headers]}
            try:
                await asyncio.wait_for(send(message), self._limits.seconds)
            except asyncio.TimeoutError as error:  # not yet the built-in one in Python 3.10
                raise _NotTaken from error

        self._metrics.open.inc()
        try:
            try:
                self._check(scope)
                async with self._body(scope["path"], receive) as receive_body:
                    await self._app(scope, receive_body, send_more)
            except Problem as problem:
                await _refuse(problem, send_more)
        except _NotTaken:  # nothing can be told to this client, and its connection is closed
            _log.info("gave up a client that took nothing for %g s", self._limits.seconds)
        except asyncio.CancelledError:  # the server ends, and waits no longer for this answer
            if not answered:
                await _refuse(stopping(), send_more)
        finally:
            self._metrics.open.dec()
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - begun)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._loopback and not is_loopback(_parts(f"//{host}").hostname or ""):
            raise Problem(
                403,
                "Host",
                "expected a request to localhost.",
                "To serve other names, start it with `vqvae2-fast serve --host`, or, as an app of "
                "Python, with create_app(loopback=False).",
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and _parts(origin).netloc != host:
            raise Problem(
                403,
                "Origin",
                "expected a request of the server's own page.",
                "Programs send no Origin, and a proxy has to pass on the browser's Host.",
            )
        guarded = scope["path"].startswith("/v1/") or scope["path"] == "/metrics"
        # Browsers send no Origin with what a page of another site embeds, such as an image. They
        # say "none" where a person has typed the address.
        if guarded and headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            raise Problem(
                403,
                "Sec-Fetch-Site",
                "expected a request of the server's own page.",
                "Open the page itself, or ask by a program.",
            )
        if self._token is not None and guarded:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                raise Problem(
                    401,
                    "Authorization",
                    "expected the server's token.",
                    "Send `Authorization: Bearer TOKEN`; in a browser, open /#token=TOKEN.",
                )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.body:
            raise self._too_large()

    @asynccontextmanager
    async def _body(self, path: str, receive: Receive) -> AsyncIterator[Receive]:
        """Receives a request whose body has come whole, in limited size and time."""
        if not path.startswith("/v1/"):  # no other path reads a body
            yield receive
            return
        body, size = bytearray(), 0
        end = time.monotonic() + self._limits.seconds
        try:
            message: Message = {"more_body": True}
            while message.get("more_body", False):
                try:
                    message = await asyncio.wait_for(receive(), end - time.monotonic())
                except asyncio.TimeoutError as error:
                    raise self._too_late() from error
                body += message.get("body", b"")
                self._held += len(body) - size
                size = len(body)
                if size > self._limits.body:
                    raise self._too_large()
                # A body may be as large as what is left, so that there is always room for small
                # ones, however many large or slow ones come.
                if size > _BODIES * self._limits.body - self._held:
                    raise Problem(
                        429,
                        "",
                        "The bodies of other requests leave no room for this one.",
                        "Try again in a second.",
                        retry_after=1,
                    )
            if path != "/v1/encode":  # all others take JSON
                self._check_elements(body)
            messages = [{**message, "body": bytes(body)}]
            body.clear()

            async def receive_body() -> Message:  # then all that can come is that the client goes
                return messages.pop() if messages else await receive()

            yield receive_body
        finally:
            self._held -= size

    def _check_elements(self, body: bytearray) -> None:
        """Refuses JSON that would take seconds to parse. In another thread it would stop the event
        loop all the same, because Python's parser and pydantic's hold the GIL throughout."""
        if len(body) - len(body.translate(None, b",[{")) > self._elements:
            raise Problem(
                413,
                "",
                f"expected JSON of at most {self._elements} values.",
                "See /v1/info for the sizes of maps and masks.",
            )

    def _too_late(self) -> Problem:
        return Problem(
            408,
            "",
            f"expected the whole body within {self._limits.seconds:g} s.",
            "Send it again, or less.",
        )

    def _too_large(self) -> Problem:
        return Problem(
            413, "", f"expected a body of at most {self._limits.body} bytes.", "Send less."
        )


async def _refuse(problem: Problem, send: Send) -> None:
    content = json.dumps(problem.body()).encode()
    headers: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **problem.headers(),
    }
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})


def _until_ended(receive: Receive) -> Receive:
    """Receives what the server tells of its life. After a second ctrl-C it does not say that it
    ends, but cancels who waits for it, which would be logged as a failure."""

    async def receive_until_ended() -> Message:
        try:
            return await receive()
        except asyncio.CancelledError:
            return {"type": "lifespan.shutdown"}

    return receive_until_ended


def _parts(url: str) -> SplitResult:
    """The parts of a URL that a client names; of one that is none, empty parts."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
