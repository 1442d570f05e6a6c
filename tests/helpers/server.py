"""The service on loopback, in another thread of this process."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae2_fast.sampling.pipeline import Pipeline
    from vqvae2_fast.serve.limits import Limits

__all__ = ["served"]


@contextmanager
def served(pipeline: Pipeline, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server of the pipeline, which stops at the end of the context.

    Needs `pip install 'vqvae2_fast[serve]'`.
    """
    import uvicorn

    from vqvae2_fast.serve.app import create_app
    from vqvae2_fast.serve.connections import server_config
    from vqvae2_fast.serve.limits import Limits

    limits = limits or Limits()
    # It listens before the server has started, so that the first request waits for it.
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        server_config(create_app(pipeline, limits), limits, log_level="warning")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
