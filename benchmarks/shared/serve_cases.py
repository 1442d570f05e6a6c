"""Requests to the service, and what the library gives for each of them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqvae2_fast.codec import encode_images
from vqvae2_fast.data import load_emoji, to_float
from vqvae2_fast.data.pixels import pictures
from vqvae2_fast.sampling import draw_batch
from vqvae2_fast.sampling.fill import encoded, masks_of_levels
from vqvae2_fast.sampling.pipeline import decoded
from vqvae2_fast.sampling.series import resolved_settings
from vqvae2_fast.serve.images import as_png

if TYPE_CHECKING:
    from collections.abc import Callable

    import vqvae2_fast as vq2

CASES = ("images", "images, streamed", "complete", "fill", "fill, 8 candidates", "variations")
CASES += ("encode", "decode")


@dataclass(frozen=True)
class Case:
    """A request.

    Args:
        fault: What is wrong with the body of an answer, None if nothing is.
        images: Number of images that it draws.
    """

    name: str
    path: str
    body: bytes
    fault: Callable[[bytes], str | None]
    images: int = 0


def cases(pipeline: vq2.Pipeline) -> list[Case]:
    """Requests of all kinds, of one to eight images."""
    every = [
        images_case(pipeline, seed, count, stream=stream)
        for seed, count in enumerate((1, 1, 2, 3, 4, 8))
        for stream in (False, True)
    ]
    held_out = load_emoji("held_out")
    for number in range(0, 300, 60):
        image = to_float(held_out.images[number : number + 1])
        every += _of_image(pipeline, image, int(held_out.labels[number]), seed=number)
    return every


def images_case(pipeline: vq2.Pipeline, seed: int, count: int, *, stream: bool) -> Case:
    label = seed % pipeline.num_classes
    request = {"count": count, "label": label, "seed": seed, "stream": stream}
    name = "images, streamed" if stream else "images"
    return _drawn(pipeline, name, "/v1/images", request, [None] * len(pipeline.priors))


def _of_image(pipeline: vq2.Pipeline, image: Tensor, label: int, seed: int) -> list[Case]:
    """Requests that upload an image `[1, C, H, W]`."""
    file = io.BytesIO()
    pictures(image)[0].save(file, format="PNG")
    codes = encoded(pipeline.vqvae, image)
    mask = torch.zeros(image.shape[2:], dtype=torch.bool)
    mask[10:20, 8:24] = True
    holes = masks_of_levels(pipeline.vqvae.config, mask, 1)
    filled = [maps.masked_fill(hole, -1) for maps, hole in zip(codes, holes, strict=True)]
    upper = [maps.clone() for maps in codes]
    for maps in upper:
        maps[:, maps.shape[1] // 2 :] = -1
    upload = base64.b64encode(file.getvalue()).decode()
    request = {"count": 2, "label": label, "seed": seed, "source": {"image": upload}}
    hole = {"mask": mask.tolist()}
    kept = [codes[0], *[None] * (len(codes) - 1)]
    back = decoded(pipeline, codes)
    told = {
        "codes": [maps[0].tolist() for maps in codes],
        "reconstruction": as_png(back[0]),
        "vq2": base64.b64encode(encode_images(pipeline, image)).decode(),
    }
    return [
        _drawn(pipeline, "complete", "/v1/complete", request, upper),
        _drawn(pipeline, "fill", "/v1/fill", request | hole, filled),
        _drawn(
            pipeline,
            "fill, 8 candidates",
            "/v1/fill",
            request | hole | {"candidates": 8},
            filled,
            candidates=8,
        ),
        _drawn(pipeline, "variations", "/v1/variations", request, kept),
        Case("encode", "/v1/encode", file.getvalue(), _compared(told)),
        Case(
            "decode",
            "/v1/decode",
            json.dumps({"codes": told["codes"]}).encode(),
            _compared({"images": [told["reconstruction"]]}),
        ),
    ]


def _drawn(
    pipeline: vq2.Pipeline,
    name: str,
    path: str,
    request: dict[str, Any],
    known: list[Tensor | None],
    candidates: int | None = None,
) -> Case:
    count = request["count"]
    drawn = draw_batch(
        pipeline,
        range(count),
        resolved_settings(pipeline, **pipeline.recommended, seed=request["seed"]),
        labels=torch.full((count,), request["label"]),
        known=[None if maps is None else maps.expand(count, -1, -1) for maps in known],
        candidates=candidates,
    )
    expected = [as_png(image) for image in drawn.images]

    def fault(answer: bytes) -> str | None:
        if not request.get("stream"):
            images = json.loads(answer)["images"]
        else:
            events = [event.split(b"\n", 1) for event in answer.strip().split(b"\n\n")]
            if events[-1][0] != b"event: done":
                return f"the stream ends with {events[-1][0].decode()}"
            images = [json.loads(data[6:]) for name, data in events if name == b"event: image"]
        images.sort(key=lambda image: image["index"])
        return None if [image["png"] for image in images] == expected else "other images"

    return Case(name, path, json.dumps(request).encode(), fault, count)


def _compared(expected: dict[str, Any]) -> Callable[[bytes], str | None]:
    def fault(answer: bytes) -> str | None:
        found = json.loads(answer)
        others = [name for name, value in expected.items() if found[name] != value]
        return f"other {', '.join(others)}" if others else None

    return fault
