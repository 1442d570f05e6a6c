"""Requests as orders: labels, settings and known codes are checked here, each under its name."""

from __future__ import annotations

import math
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch

import vqvae2_fast
from vqvae2_fast.codec.codes import pipeline_hash
from vqvae2_fast.console.words import counted
from vqvae2_fast.files.printable import short
from vqvae2_fast.models.configs import level_names
from vqvae2_fast.sampling.fill import encoded, masks_of_levels
from vqvae2_fast.sampling.labels import NO_CLASS, class_numbers, in_turn
from vqvae2_fast.sampling.prior import interface_of
from vqvae2_fast.sampling.series import resolved_settings
from vqvae2_fast.serve.images import from_base64, uploaded_image
from vqvae2_fast.serve.jobs import Order
from vqvae2_fast.serve.limits import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vqvae2_fast.sampling import DrawSettings, Pipeline
    from vqvae2_fast.sampling.labels import Label
    from vqvae2_fast.serve.limits import Limits
    from vqvae2_fast.serve.schemas import DrawRequest, Source

__all__ = ["Desk", "Known"]

Known = tuple["Tensor | None", ...]
_SETTINGS = ("temperature", "top_k", "top_p", "guidance_scale")


class Desk:
    """Turns requests into orders of a pipeline, and images into their codes.

    Raises (all methods):
        Problem: The field that does not fit, what was expected, and the remedy.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self.pipeline, self.limits = pipeline, limits
        self.vqvae, priors = pipeline.networks()
        self.names = level_names(len(priors))
        self.sizes = [interface_of(prior).size for prior in priors]
        self.num_embeddings = [interface_of(prior).num_embeddings for prior in priors]
        self.hash = pipeline_hash(pipeline).hex()
        config = self.vqvae.config
        self.image_shape = (config.image_channels, *config.image_size)
        # Of the largest request, a mask or the codes of an image for each level, with a list for
        # each value at worst; and some more, so that errors in small requests are named exactly.
        codes = (len(priors) + 1) * sum(map(math.prod, self.sizes))
        self.elements = 2**14 + 2 * (math.prod(config.image_size) + codes)

    def info(self) -> dict[str, Any]:
        """What a client needs to know to make requests."""
        recommended, limits = self.pipeline.recommended, self.limits
        return {
            "version": vqvae2_fast.__version__,
            "pipeline": self.hash,
            "classes": self.pipeline.class_names
            or list(map(str, range(self.pipeline.num_classes))),
            "levels": [
                {"name": name, "height": size[0], "width": size[1], "codes": codes}
                for name, size, codes in zip(
                    self.names, self.sizes, self.num_embeddings, strict=True
                )
            ],
            "image": dict(zip(("channels", "height", "width"), self.image_shape, strict=True)),
            "recommended": recommended,
            "limits": {
                "count": limits.count,
                "candidates": limits.candidates,
                "body": limits.body,
                "pixels": limits.pixels,
                "seconds": limits.seconds,
            },
        }

    def order(self, request: DrawRequest, known: Known = ()) -> Order:
        most = self.limits.count
        if request.count > most:
            raise _unfit("count", f"at most {most}", request.count, "Ask several times.")
        candidates = request.candidates
        if candidates > self.limits.candidates:
            raise _unfit(
                "candidates", f"at most {self.limits.candidates}", candidates, "Take fewer."
            )
        if (request.first_sample + request.count) * candidates > 2**32:
            below = "numbers below 2^32"
            if candidates > 1:
                below += f" / {candidates} with so many candidates"
            raise _unfit("first_sample", below, request.first_sample, "Use another seed.")
        samples = range(request.first_sample, request.first_sample + request.count)
        given = request.label if isinstance(request.label, list) else [request.label]
        if len(given) > most:
            raise _unfit("label", f"a list of at most {most}", len(given), "Ask several times.")
        return Order(
            samples,
            self.settings(request),
            self.labels(given, request.count),
            known,
            candidates=candidates,
            rows=request.stream,
            previews=request.stream and request.previews,
        )

    def settings(self, request: DrawRequest) -> tuple[DrawSettings, ...]:
        given: dict[str, Any] = dict(self.pipeline.recommended)
        for name in _SETTINGS:
            value = getattr(request, name)
            if value is None:
                continue
            if name == "top_k":
                value = [k or None for k in value] if isinstance(value, list) else value or None
            try:
                self._resolved({name: value})
            except ValueError as error:
                raise Problem(
                    422,
                    name,
                    str(error),
                    f"Give one value or {len(self.names)}, or leave it out.",
                ) from error
            given[name] = value
        return self._resolved({**given, "seed": request.seed})

    def _resolved(self, settings: dict[str, Any]) -> tuple[DrawSettings, ...]:
        return resolved_settings(self.pipeline, batch_size=self.limits.batch, **settings)

    def labels(self, given: Sequence[Label], count: int) -> tuple[int | None, ...]:
        """The labels of `count` images: the given ones in turn, a group's classes in turn."""
        asked = list(islice(cycle(given), max(count, len(given))))  # all are checked
        return tuple(in_turn(asked, self._numbers)[:count])

    def label(self, label: Label) -> int | None:
        numbers = self._numbers(label)
        if len(numbers) > 1:
            raise _unfit("label", "one class", label, "It is a group; /v1/info lists its classes.")
        return numbers[0]

    def _numbers(self, label: Label) -> list[int | None]:
        classes, names = self.pipeline.num_classes, self.pipeline.class_names
        if label is None:
            return [None]
        if not classes:
            if isinstance(label, str) and label.lower() == NO_CLASS:
                return [None]
            raise _unfit("label", "none, since the priors have no classes", label, "Leave it out.")
        remedy = "/v1/info lists the classes."
        # In the library the number of classes stands for "no class"; here only a text does.
        if isinstance(label, int) and not 0 <= label < classes:
            expected = f"a label below {classes} or the beginning of a class name"
            raise _unfit("label", expected, label, remedy)
        try:
            numbers = class_numbers(label, classes, names)
        except ValueError as error:
            raise Problem(422, "label", str(error), remedy) from error
        return [None if number == classes else number for number in numbers]

    def known(self, maps: Sequence[Any] | None) -> Known:
        """Known codes of each level, from rows of numbers."""
        if maps is None:
            return ()
        self.check_levels("known", maps)
        return tuple(
            None if rows is None else self._map(f"known.{level}", rows, level, lowest=-1)
            for level, rows in enumerate(maps)
        )

    def codes(self, field: str, maps: Sequence[Any]) -> tuple[Tensor, ...]:
        """Whole code maps."""
        self.check_levels(field, maps)
        return tuple(self._map(f"{field}.{n}", rows, n, lowest=0) for n, rows in enumerate(maps))

    def source(self, field: str, source: Source) -> Tensor | tuple[Tensor, ...]:
        """A given image, float `[C, H, W]`, or the codes that are given in its place."""
        if (source.image is None) == (source.codes is None):
            raise Problem(
                422, field, "expected either an image or its codes.", "Give exactly one of them."
            )
        if source.codes is not None:
            return self.codes(f"{field}.codes", source.codes)
        assert source.image is not None
        return self.upload(f"{field}.image", from_base64(f"{field}.image", source.image))

    def upload(self, field: str, data: bytes) -> Tensor:
        return uploaded_image(field, data, self.image_shape, self.limits.pixels)

    def encoded(self, image: Tensor) -> tuple[Tensor, ...]:
        """The code maps `[h, w]` of an image, encoded by itself: batches round differently."""
        return tuple(codes[0].cpu() for codes in encoded(self.vqvae, image[None]))

    def masked(self, codes: Sequence[Tensor], free: Sequence[Tensor]) -> Known:
        """Known codes, all but those where a mask is true."""
        return tuple(maps.masked_fill(holes, -1) for maps, holes in zip(codes, free, strict=True))

    def kept_rows(self, codes: Sequence[Tensor], keep: float) -> Known:
        kept = [maps.clone() for maps in codes]
        for maps in kept:
            maps[math.floor(keep * len(maps)) :] = -1
        return tuple(kept)

    def free_codes(self, mask: Any | None, code_masks: Sequence[Any] | None) -> tuple[Tensor, ...]:
        """bool `[h, w]` per level: the codes whose pixels are in a hole, or those of the masks."""
        if (mask is None) == (code_masks is None):
            raise Problem(
                422, "mask", "expected either mask or code_masks.", "Give exactly one of them."
            )
        if code_masks is not None:
            self.check_levels("code_masks", code_masks)
            return tuple(
                self._rows(f"code_masks.{n}", rows, self.sizes[n]).bool()
                for n, rows in enumerate(code_masks)
            )
        config = self.vqvae.config
        holes = self._rows("mask", mask or [], config.image_size).bool()
        return tuple(codes[0] for codes in masks_of_levels(config, holes, 1))

    def check_levels(self, field: str, maps: Sequence[Any]) -> None:
        if len(maps) != len(self.names):
            raise _unfit(
                field,
                f"{len(self.names)} maps, one per level ({', '.join(self.names)})",
                len(maps),
                "Give one per level, coarse to fine.",
            )

    def _map(self, field: str, rows: Sequence[Sequence[int]], level: int, *, lowest: int) -> Tensor:
        codes, top = self._rows(field, rows, self.sizes[level]), self.num_embeddings[level] - 1
        low, high = (int(value) for value in codes.aminmax())
        if low < lowest or high > top:
            raise _unfit(field, f"codes in {lowest}..{top}", f"{low}..{high}", "See /v1/info.")
        return codes

    def _rows(self, field: str, rows: Sequence[Sequence[int]], size: tuple[int, int]) -> Tensor:
        height, width = size
        if len(rows) != height or any(len(row) != width for row in rows):
            found = f"{counted(len(rows), 'row')} of {sorted({len(row) for row in rows})}"
            expected = f"{counted(height, 'row')} of {width}"
            raise _unfit(field, expected, found, "See /v1/info for the sizes.")
        return torch.tensor(rows, dtype=torch.int64, device="cpu")

    def card(self, order: Order, sample: int) -> dict[str, Any]:
        """All that one image of an order depends on."""
        settings = order.settings
        request: dict[str, Any] = {
            "label": order.label(sample - order.samples.start),
            "seed": settings[0].seed,
            "first_sample": sample,
            "temperature": [level.temperature for level in settings],
            "top_k": [level.top_k or 0 for level in settings],
            "top_p": [level.top_p or 1.0 for level in settings],
            "guidance_scale": [level.guidance_scale for level in settings],
        }
        if order.candidates > 1:
            request["candidates"] = order.candidates
        if any(maps is not None for maps in order.known):
            request["known"] = [None if maps is None else maps.tolist() for maps in order.known]
        return {
            "endpoint": "/v1/images",
            "request": request,
            "pipeline": self.hash,
            "engine": settings[0].engine,
            "version": vqvae2_fast.__version__,
        }


def _unfit(field: str, expected: str, found: object, remedy: str) -> Problem:
    return Problem(422, field, f"expected {expected}, got {short(found, 200)}.", remedy)
