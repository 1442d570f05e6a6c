"""`vqvae2-fast serve`: the playground in the browser and the HTTP service."""

from __future__ import annotations

import logging
import math
import socket
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  (tyro reads the annotations)
from typing import Annotated

import tyro

from vqvae2_fast.commands.common import Command, ModelOptions, Result
from vqvae2_fast.runs.interrupt import stop_requests
from vqvae2_fast.serve.limits import Limits

__all__ = ["Serve"]


@dataclass(kw_only=True)
class Serve(Command):
    """Serve a page that draws, completes and changes images, and an HTTP API that does the same.

    /openapi.json describes the requests, docs/playground.md the page. It listens on this machine
    only, unless --host names another address.
    """

    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7860
    """Port to listen on."""
    token: str | None = None
    """What requests must carry as `Authorization: Bearer TOKEN`. The page takes it from its
    address: /#token=TOKEN."""
    token_file: Path | None = None
    """In place of --token: a file that holds it. Other users of this machine can read options."""
    batch: int = Limits.batch
    """Most images that are drawn together."""
    count: int = Limits.count
    """Most images of one request."""
    waiting: int = Limits.waiting
    """Most images that wait; more are refused with 429."""
    upload_mib: float = Limits.body / 2**20
    """Largest upload, MiB."""
    timeout: float = Limits.seconds
    """Seconds after which a request is given up."""

    def run(self) -> Result:
        try:
            import uvicorn

            from vqvae2_fast.serve.app import create_app
            from vqvae2_fast.serve.connections import server_config
            from vqvae2_fast.serve.guard import is_loopback
        except ImportError as error:
            raise ImportError(
                f"serve: {error.name} is not installed; run `pip install 'vqvae2_fast[serve]'`."
            ) from error
        limits = self._limits()
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port: expected 0 to 65535, got {self.port}.")
        token = self._token()
        if not is_loopback(self.host) and token is None:
            raise ValueError(
                f"--token-file: needed with --host {self.host}, because other machines can reach "
                "the server. Put a long random word into it, or give it as --token."
            )
        with self._bound() as own:
            # A server runs for days, and its engine's thread would gain nothing.
            pipeline = self.models.open(self.prepare(keep_memory=False))
            app = create_app(pipeline, limits, token=token, loopback=is_loopback(self.host))
            config = server_config(
                app,
                limits,
                log_level="warning" if self.quiet else "info",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(limits.seconds),
            )
            server = uvicorn.Server(config)
            # What connects from here on waits. uvicorn says so only of sockets of its own.
            own.listen(config.backlog)
            host = f"[{self.host}]" if ":" in self.host else self.host
            address = f"http://{host}:{own.getsockname()[1]}"
            logging.getLogger("uvicorn.error").info("running on %s (ctrl-C to quit)", address)
            # uvicorn ends well after a signal, and then raises it once more, for which this waits.
            with stop_requests() as stop:

                async def notice() -> None:  # a signal that came before uvicorn waited for any
                    server.should_exit |= stop.number is not None

                config.callback_notify = notice
                server.run([own])
        return Result({"stopped": True}, ["stopped"])

    def _bound(self) -> socket.socket:
        """A socket at --host and --port, on which nobody listens yet. uvicorn's own would fail only
        after the models are read, and end the process.

        Raises:
            ValueError: The port is taken or not allowed, or the host is not one of this machine.
        """
        found = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # uvicorn keeps a whole answer in memory until its client has taken it. Linux cuts off
            # one that takes nothing for so long, as the connections inherit from this socket.
            milliseconds = min(math.ceil(1000 * self.timeout), 2**31 - 1)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        try:
            found.bind((self.host, self.port))
        except OSError as error:
            found.close()
            raise ValueError(
                f"--port: cannot listen on port {self.port} of {self.host}: {error.strerror}. Name "
                "another --port (0 takes a free one) or --host."
            ) from error
        return found

    def _token(self) -> str | None:
        if self.token_file is None:
            token, flag = self.token, "--token"
        elif self.token is not None:
            raise ValueError("--token-file: expected it or --token, got both.")
        else:
            token, flag = self.token_file.read_text("utf-8", "replace"), "--token-file"
        if token is None:
            return None
        token = token.strip()
        if not token:
            raise ValueError(f"{flag}: expected a long random word, got an empty one.")
        # Browsers refuse to send other letters in a header, and cut off spaces at its ends.
        wrong = next((letter for letter in token if not "!" <= letter <= "~"), None)
        if wrong is not None:
            raise ValueError(
                f"{flag}: expected only ASCII letters, digits and signs, as headers carry them, "
                f"and no space, got {ascii(wrong)} in it. Take another word, such as that of "
                "`openssl rand -hex 32`."
            )
        return token

    def _limits(self) -> Limits:
        for name in ("batch", "count", "waiting", "upload_mib", "timeout"):
            flag, value = name.replace("_", "-"), getattr(self, name)
            if not value > 0:
                raise ValueError(f"--{flag}: expected more than 0, got {value}.")
            if not value < 2**63:
                raise ValueError(f"--{flag}: expected less than 2^63, got {value}.")
        if self.count > self.waiting:
            raise ValueError(
                f"--waiting: expected at least --count, {self.count} images, so that the images of "
                f"a request can wait, got {self.waiting}."
            )
        return Limits(
            batch=self.batch,
            count=self.count,
            waiting=self.waiting,
            body=int(self.upload_mib * 2**20),
            seconds=self.timeout,
        )
