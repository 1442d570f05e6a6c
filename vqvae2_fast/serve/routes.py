"""The routes below /v1, which draw, encode and decode."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse

from vqvae2_fast.codec import decode_image_stream, describe, encode_images
from vqvae2_fast.codec.bitstream import TooManyImagesError, UnfitFileError
from vqvae2_fast.codec.engine import check_engine
from vqvae2_fast.console.words import counted
from vqvae2_fast.data.images import to_uint8
from vqvae2_fast.metrics.reconstruction import psnr
from vqvae2_fast.sampling.pipeline import decoded
from vqvae2_fast.serve import schemas
from vqvae2_fast.serve.codebook import described_codebooks
from vqvae2_fast.serve.images import as_png, from_base64
from vqvae2_fast.serve.limits import Problem, too_slow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Future

    from starlette.types import Receive, Scope, Send
    from torch import Tensor

    from vqvae2_fast.serve.engine import Engine
    from vqvae2_fast.serve.jobs import Job, Order
    from vqvae2_fast.serve.orders import Desk

__all__ = ["routes"]

Value = TypeVar("Value")
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": schemas.ErrorAnswer, "description": "The body cannot be read."},
    401: {"model": schemas.ErrorAnswer, "description": "The token is missing or wrong."},
    403: {"model": schemas.ErrorAnswer, "description": "A page of another origin asked."},
    408: {"model": schemas.ErrorAnswer, "description": "The body did not come in time."},
    413: {
        "model": schemas.ErrorAnswer,
        "description": "The body or the image is too large, or a file holds too many images.",
    },
    415: {"model": schemas.ErrorAnswer, "description": "The body is of another type."},
    422: {"model": schemas.ErrorAnswer, "description": "A field does not fit."},
    429: {"model": schemas.ErrorAnswer, "description": "Too much is waiting; see Retry-After."},
    503: {"model": schemas.ErrorAnswer, "description": "The server is stopping."},
    504: {"model": schemas.ErrorAnswer, "description": "It took too long."},
}
_DRAWN: dict[int | str, dict[str, Any]] = {
    200: {
        "model": schemas.Answer,
        "description": "The images; with `stream`, server-sent events.",
        "content": {"text/event-stream": {"itemSchema": schemas.EVENT}},
    }
}


def routes(desk: Desk, engine: Engine) -> APIRouter:
    """The routes of a desk and the engine that does its work."""
    router = APIRouter(prefix="/v1", responses=_ERRORS)
    drawing: dict[str, Any] = {"responses": _DRAWN, "response_model": None, "tags": ["draw"]}
    seconds = desk.limits.seconds
    decoders = ThreadPoolExecutor(desk.limits.decoders, "decode")

    async def in_engine(function: Callable[[], Value]) -> Value:
        return await in_time(engine.call(function))

    async def in_time(future: Future[Value]) -> Value:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except asyncio.TimeoutError as error:  # not yet the built-in one in Python 3.10
            raise too_slow(seconds) from error

    async def codes_of(field: str, source: schemas.Source) -> tuple[Tensor, ...]:
        given = await in_time(decoders.submit(desk.source, field, source))
        return given if isinstance(given, tuple) else await in_engine(lambda: desk.encoded(given))

    async def drawn(request: Request, order: Order) -> Any:
        job = engine.submit(order)
        if order.rows:
            return _EventStream(desk, job, seconds)
        return JSONResponse(await _whole(request, desk, job, seconds))

    @router.post("/images", summary="Draw images", **drawing)
    async def images(request: Request, body: schemas.ImagesRequest) -> Any:
        return await drawn(request, desk.order(body, desk.known(body.known)))

    @router.post("/complete", summary="Draw the lower part of an image", **drawing)
    async def complete(request: Request, body: schemas.CompleteRequest) -> Any:
        order = desk.order(body)
        known = desk.kept_rows(await codes_of("source", body.source), body.keep)
        return await drawn(request, replace(order, known=known))

    @router.post("/fill", summary="Draw the holes of an image", **drawing)
    async def fill(request: Request, body: schemas.FillRequest) -> Any:
        order = desk.order(body)
        free = desk.free_codes(body.mask, body.code_masks)
        codes = await codes_of("source", body.source)
        return await drawn(request, replace(order, known=desk.masked(codes, free)))

    @router.post("/variations", summary="Keep the coarse codes, draw the others", **drawing)
    async def variations(request: Request, body: schemas.VariationsRequest) -> Any:
        order, levels = desk.order(body), len(desk.names)
        if body.levels > levels:
            raise Problem(
                422, "levels", f"expected at most {levels}, got {body.levels}.", "Keep fewer."
            )
        codes = await codes_of("source", body.source)
        return await drawn(
            request, replace(order, known=(*codes[: body.levels], *[None] * (levels - body.levels)))
        )

    @router.post("/cross", summary="Put levels of several images together", **drawing)
    async def cross(request: Request, body: schemas.CrossRequest) -> Any:
        order = desk.order(body)
        desk.check_levels("sources", body.sources)
        known: list[Tensor | None] = []
        for level, source in enumerate(body.sources):
            codes = None if source is None else await codes_of(f"sources.{level}", source)
            known.append(None if codes is None else codes[level])
        return await drawn(request, replace(order, known=tuple(known)))

    @router.post(
        "/encode",
        summary="Codes, reconstruction and compressed file of an image",
        response_model=schemas.Encoded,
        tags=["encode"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def encode(
        request: Request,
        label: Annotated[
            schemas.LabelText | None,
            Query(description="The class whose probabilities code the image."),
        ] = None,
    ) -> Any:
        number = desk.label(label)
        data = await request.body()
        image = await in_time(decoders.submit(desk.upload, "image", data))
        return JSONResponse(await in_engine(lambda: _encoded(desk, image, number)))

    @router.post(
        "/decode",
        summary="Images of code maps or of a compressed file",
        response_model=schemas.Decoded,
        tags=["encode"],
    )
    async def decode(body: schemas.DecodeRequest) -> Any:
        if (body.codes is None) == (body.vq2 is None):
            raise Problem(
                422, "codes", "expected either codes or a vq2 file.", "Give exactly one of them."
            )
        if body.codes is not None:
            codes = desk.codes("codes", body.codes)
            whole = [maps[None] for maps in codes]
            images = await in_engine(lambda: list(decoded(desk.pipeline, whole)))
        else:
            data = from_base64("vq2", body.vq2 or "")
            images = await in_engine(lambda: _decoded_file(desk, data))
        # Compressing large images takes long enough for streams to notice.
        return {"images": await asyncio.to_thread(lambda: [as_png(image) for image in images])}

    described: list[list[dict[str, Any]]] = []

    def described_once() -> list[dict[str, Any]]:
        # In the engine's thread: computed once, also for a client that has gone when it is ready.
        if not described:
            described.append(described_codebooks(desk.vqvae))
        return described[0]

    @router.get(
        "/codebooks",
        summary="Colours, use, neighbours and patches of the codes",
        description="`use` is the share of each code in training, and null at a level whose "
        "quantiser keeps no counts of its codes.",
        tags=["encode"],
    )
    async def codebooks() -> Any:
        return {"levels": described[0] if described else await in_engine(described_once)}

    return router


def _image(desk: Desk, job: Job, content: dict[str, Any]) -> dict[str, Any]:
    return content | {"card": desk.card(job.order, content["sample"])}


async def _whole(request: Request, desk: Desk, job: Job, seconds: float) -> dict[str, Any]:
    """The answer once all images are drawn. The job is cancelled when the client goes."""
    images: list[dict[str, Any]] = []

    async def collect() -> dict[str, Any]:
        async for name, content in job.told(seconds):
            if name == "error":
                raise content
            if name == "image":
                images.append(_image(desk, job, content))
            elif name == "done":
                images.sort(key=lambda image: int(image["index"]))
                return {"images": images, **content}
        raise AssertionError("a job ends with done or error")

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, left = asyncio.create_task(collect()), asyncio.create_task(gone())
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return await answer
        raise Problem(499, "", "The client has gone.", "")
    finally:
        job.cancelled = True
        answer.cancel()
        left.cancel()


class _EventStream(StreamingResponse):
    """Server-sent events of a job. If the client goes, even before the first, it is cancelled."""

    def __init__(self, desk: Desk, job: Job, seconds: float) -> None:
        super().__init__(
            _events(desk, job, seconds),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancelled = True


async def _events(desk: Desk, job: Job, seconds: float) -> AsyncIterator[bytes]:
    order = job.order
    yield _event(
        "start",
        {
            "count": len(order.samples),
            "levels": [
                {"name": name, "height": size[0], "width": size[1]}
                for name, size in zip(desk.names, desk.sizes, strict=True)
            ],
        },
    )
    async for name, content in job.told(seconds):
        if name == "error":
            content = content.body()["error"]
        elif name == "image":
            content = _image(desk, job, content)
        yield _event(name, content)


def _event(name: str, content: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(content, separators=(',', ':'))}\n\n".encode()


def _encoded(desk: Desk, image: Tensor, label: int | None) -> dict[str, Any]:
    codes = desk.encoded(image)
    maps = [level[None] for level in codes]
    back = decoded(desk.pipeline, maps)[0].cpu()
    error = (to_uint8(back).double() - to_uint8(image).double()).square().mean().item()
    answer: dict[str, Any] = {
        "codes": [level.tolist() for level in codes],
        "image": as_png(image),
        "reconstruction": as_png(back),
        "psnr": psnr(error / 255**2) if error else None,
        "bits": None,
        "vq2": None,
        "no_vq2": None,
    }
    reason = _why_no_codec(desk)
    if reason is not None:
        return answer | {"no_vq2": reason}
    labels = None if label is None else torch.tensor([label], dtype=torch.int64, device="cpu")
    data = encode_images(desk.pipeline, image[None], labels=labels)
    bits = dict(zip(desk.names, describe(data).payload_bits, strict=True))
    return answer | {"bits": bits, "vq2": base64.b64encode(data).decode()}


def _why_no_codec(desk: Desk) -> str | None:
    """Why the priors cannot code images here, or None."""
    try:
        for prior in desk.pipeline.priors:
            check_engine(prior, "cpu")
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


def _decoded_file(desk: Desk, data: bytes) -> list[Tensor]:
    reason = _why_no_codec(desk)
    if reason is not None:
        raise Problem(422, "vq2", reason, "Send the codes instead.")
    try:
        parts = decode_image_stream(desk.pipeline, data, max_images=desk.limits.count)
        return [image for part in parts for image in part]
    except TooManyImagesError as error:
        most = counted(desk.limits.count, "image or tile", "images or tiles")
        raise Problem(
            413,
            "vq2",
            f"expected a file of at most {most}, got one of more.",
            "Send fewer or smaller images a file, or decode this one by `vqvae2-fast decompress`.",
        ) from error
    except ValueError as error:
        # A file that another pipeline has written has a remedy for those who write Python.
        reason = error.reason if isinstance(error, UnfitFileError) else str(error)
        raise Problem(400, "vq2", reason, "Send a file that this pipeline has encoded.") from error
