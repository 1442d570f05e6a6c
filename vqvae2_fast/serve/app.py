"""The whole application: the engine, the routes, the page."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

import vqvae2_fast
from vqvae2_fast.files.printable import short
from vqvae2_fast.serve.engine import Engine
from vqvae2_fast.serve.guard import Guard
from vqvae2_fast.serve.limits import Limits, Problem
from vqvae2_fast.serve.metrics import Metrics
from vqvae2_fast.serve.orders import Desk
from vqvae2_fast.serve.routes import routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.types import ASGIApp

    from vqvae2_fast.sampling import Pipeline

__all__ = ["create_app"]

_PAGE = Path(__file__).parent / "static"
_FILES = {"/", *(f"/{file.name}" for file in _PAGE.iterdir())}
_MOST_CODES = 2**16
_WRONG_TYPE = {"int_type", "string_type", "list_type", "int_from_float"}
_ABOUT = """Images drawn from a VQ-VAE-2: code maps coarse to fine, then pixels.

Requests of all clients are drawn in common batches, which changes no answer: an image depends only
on its seed, its number and its settings. Every image comes with a card that draws it again, bit for
bit. Errors name the field, what was expected, and the remedy.
"""


def create_app(
    pipeline: Pipeline,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    loopback: bool = True,
) -> ASGIApp:
    """The service of a pipeline, to run in an ASGI server.

    Args:
        token: See `Guard`, as `loopback`.

    Raises:
        TypeError: The pipeline's models are not a VQVAE2 and priors of class Prior.
        ValueError: A level has too many codes for the page to list.
    """
    codes = pipeline.networks()[0].config.num_embeddings
    if codes > _MOST_CODES:
        raise ValueError(f"serve: expected at most {_MOST_CODES} codes per level, got {codes}.")
    limits = limits or Limits()
    metrics = Metrics()
    desk, engine = Desk(pipeline, limits), Engine(pipeline, limits, metrics)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        engine.start(asyncio.get_running_loop())
        try:
            yield
        finally:  # after a second ctrl-C too, since the process may not end while the engine draws
            await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="vqvae2_fast",
        version=vqvae2_fast.__version__,
        description=_ABOUT,
        lifespan=running,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.include_router(routes(desk, engine))

    @app.get("/v1/info", summary="Classes, levels, sizes, recommended settings, limits")
    async def info() -> dict[str, Any]:
        return desk.info()

    @app.get("/healthz", summary="Whether the server runs")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "pipeline": desk.hash}

    @app.get("/metrics", summary="Counts for Prometheus", response_class=Response)
    async def counts() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.mount("/", StaticFiles(directory=_PAGE, html=True))
    return Guard(app, limits, metrics, desk.elements, desk.hash, token, loopback)


async def _problem(_: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Problem)
    return JSONResponse(problem.body(), problem.status, problem.headers())


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first of the fields that do not have the form of the schema."""
    assert isinstance(error, RequestValidationError)
    first = _of_alternative(error.errors())
    # Alternatives of a type also have names there.
    place = [str(p) for p in first["loc"] if str(p).isidentifier() or isinstance(p, int)]
    place = [part for part in place if part not in ("body", "query", "int", "str", "float")]
    if isinstance(first.get("input"), bytes):
        return await _problem(
            request,
            Problem(
                415,
                "Content-Type",
                "expected a body of JSON, got one of another type.",
                "Send `Content-Type: application/json`.",
            ),
        )
    remedy = "The form of each field is in /openapi.json."
    if first["type"] == "json_invalid":  # its place is a number of bytes, and its input empty
        why = first.get("ctx", {}).get("error", "")
        return await _problem(request, Problem(400, "", f"expected JSON: {why}.", remedy))
    if first["loc"] == ("body",) and first["type"] == "missing":
        return await _problem(
            request, Problem(422, "", "expected a body of JSON, got none.", remedy)
        )
    if first["type"] == "missing":  # its input is all that surrounds it
        problem = Problem(
            422, ".".join(place), "expected this field, got none.", f"Add it. {remedy}"
        )
        return await _problem(request, problem)
    found, expected = short(repr(first.get("input")), 80), first["msg"]
    if first["type"] == "model_attributes_type":  # its message tells of dictionaries
        expected = "expected a JSON object"
    if "label" in place and first["type"] in _WRONG_TYPE:  # its message tells of one type
        expected = "expected the number of a class, its name or the beginning of one"
    problem = Problem(422, ".".join(place), f"{expected}, got {found}.", remedy)
    return await _problem(request, problem)


def _of_alternative(errors: Sequence[Any]) -> Any:
    """The error of the first field. If it may be of several types, each of them has an error: that
    of the type that was meant lies deeper, or is about something else than the type."""
    of_field = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return max(of_field, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))


async def _client_gone(_: Request, __: Exception) -> Response:
    """For the metrics alone, by the status that other servers log for it."""
    return Response(status_code=499)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: unknown paths and methods, bodies that it cannot read."""
    assert isinstance(error, HTTPException)
    status, detail, headers = error.status_code, error.detail, error.headers
    # The page's files answer for all of "/", also for routes of other methods and for nothing.
    if status in (404, 405):
        if allowed := _methods(request):
            status, detail = 405, "Method Not Allowed"
            headers = {"Allow": ", ".join(sorted(allowed))}
        else:
            status, detail, headers = 404, "Not Found", None
    problem = Problem(status, "", f"{detail}.", "/openapi.json lists all routes.")
    return JSONResponse(problem.body(), status, headers)


def _methods(request: Request) -> set[str]:
    """The methods of what has this path, none of which is the request's."""
    path = request.url.path
    if path in _FILES or path == request.app.openapi_url:
        return {"GET", "HEAD"}
    allowed = {
        method.upper()
        for template, methods in request.app.openapi()["paths"].items()
        if compile_path(template)[0].match(path)
        for method in methods
    }
    return allowed | {"HEAD"} if "GET" in allowed else allowed
