"""What requests and answers look like; the OpenAPI description is made from it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "EVENT",
    "Answer",
    "CompleteRequest",
    "CrossRequest",
    "DecodeRequest",
    "Decoded",
    "DrawRequest",
    "Encoded",
    "ErrorAnswer",
    "FillRequest",
    "ImagesRequest",
    "Source",
    "VariationsRequest",
]

Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=2**31 - 1)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
LabelText = Annotated[str, Field(max_length=1024)]  # as long as the name of a class may be
Label = int | LabelText | None
# Errors are gathered before one of them is shown, and a body holds many numbers: of a long list
# only the first error is looked for.
_FIRST_ERROR = Field(fail_fast=True)
Code = Annotated[int, Field(ge=-1, le=2**31 - 1)]
Map = Annotated[list[Annotated[list[Code], _FIRST_ERROR]], _FIRST_ERROR]
Mask = Annotated[list[Annotated[list[bool], _FIRST_ERROR]], _FIRST_ERROR]
T = TypeVar("T")
_MAX_UNKNOWN = 16
PerLevel = Annotated[list[T], Field(max_length=16, fail_fast=True)]  # no model has more levels
Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


# An event of a stream, as a JSON schema.
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["start", "row", "preview", "image", "done", "error"]},
        "data": {"type": "string", "description": "JSON."},
    },
    "required": ["event", "data"],
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_unknown_fields(cls, given: Any) -> Any:
        """Refuses many unknown fields at once: each would be an error of its own."""
        if isinstance(given, dict) and len(given) > len(cls.model_fields) + _MAX_UNKNOWN:
            fields = {"fields": ", ".join(cls.model_fields)}
            raise PydanticCustomError("unknown_fields", "expected only the fields {fields}", fields)
        return given


class DrawRequest(_Model):
    """How to draw. What is left out is what the pipeline recommends."""

    count: int = Field(1, ge=1, description="How many images; the server's limit is in /v1/info.")
    label: Label | Annotated[list[Label], Field(min_length=1, max_length=4096)] = Field(
        None,
        description="The class: its number, its name or the beginning of one; null or `none` draws "
        "without a class. The classes of a list, or of a group (`Flags` of `Flags - flag`), are "
        "used in turn.",
        examples=["food"],
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**64 - 1,
        description="Key of the noise. Image n of a seed is the same in any request.",
    )
    first_sample: int = Field(
        0, ge=0, le=2**32 - 1, description="Number of the first image of the seed."
    )
    temperature: Temperature | PerLevel[Temperature] | None = Field(
        None,
        description="Below 1, likely codes are drawn more often; 0 takes the likeliest. One value, "
        "or one per level, coarse to fine.",
    )
    top_k: TopK | PerLevel[TopK] | None = Field(
        None, description="Draw only among the k likeliest codes; 0 for no limit. As temperature."
    )
    top_p: TopP | PerLevel[TopP] | None = Field(
        None,
        description="Draw only among the likeliest codes that together have this probability; 1 "
        "for no limit. As temperature.",
    )
    guidance_scale: Scale | PerLevel[Scale] | None = Field(
        None, description="Above 1, the class is followed more closely. As temperature."
    )
    candidates: int = Field(
        1,
        ge=1,
        description="Draw the unknown codes of each map this many times, and take one of these "
        "fillings by how well the known codes after it follow.",
    )
    stream: bool = Field(
        False,
        description="Answer with server-sent events: `start`, `row` (codes as they are drawn), "
        "`preview`, `image`, then `done` or `error`. Otherwise the answer comes when all is drawn.",
    )
    previews: bool = Field(
        False, description="With stream: also send images of what is drawn so far."
    )


class ImagesRequest(DrawRequest):
    """New images, or images of which some codes are known."""

    known: PerLevel[Map | None] | None = Field(
        None,
        description="Per level, coarse to fine: the code map as rows, with -1 where a code is to "
        "be drawn, or null to draw all of it.",
    )


class Source(_Model):
    """An image that is given: a file or its code maps."""

    image: Base64 | None = Field(None, description="An image file in base64.")
    codes: PerLevel[Map] | None = Field(None, description="Its code maps, coarse to fine.")


class CompleteRequest(DrawRequest):
    """The upper part of an image, of which the rest is drawn."""

    source: Source
    keep: float = Field(
        0.5, ge=0, le=1, description="Share of the rows of each map to keep, from the top."
    )


class FillRequest(DrawRequest):
    """An image with holes, which are drawn."""

    source: Source
    mask: Mask | None = Field(
        None, description="Pixels of the model's image size, as rows: true where it is a hole."
    )
    code_masks: PerLevel[Mask] | None = Field(
        None,
        description="In place of `mask`: per level, coarse to fine, true where a code is drawn.",
    )


class VariationsRequest(DrawRequest):
    """An image whose coarse codes are kept and whose fine ones are drawn anew."""

    source: Source
    levels: int = Field(1, ge=0, description="How many levels are kept, from the coarsest on.")


class CrossRequest(DrawRequest):
    """Levels of several images put together."""

    sources: PerLevel[Source | None] = Field(
        description="Per level, coarse to fine: the image whose codes it takes, or null to draw it."
    )


class Card(_Model):
    """All that an image depends on: POST `request` to `endpoint` and get the same bytes again."""

    endpoint: str
    request: dict[str, Any]
    pipeline: str = Field(description="Hash of the pipeline's weights.")
    engine: str = Field(description="The sampling engine; all exact ones draw the same codes.")
    version: str


class Image(_Model):
    """A drawn image."""

    index: int = Field(description="Its place in the request.")
    sample: int = Field(description="Its number; the noise is a function of seed and number.")
    codes: list[Map] = Field(description="Code maps, coarse to fine.")
    log_prob: dict[str, float] = Field(
        description="Log-probability of each level's map under the raw model, in nats."
    )
    effective_candidates: dict[str, float] | None = Field(
        description="Per level: how many of the candidates had weight; null without candidates."
    )
    png: Base64
    card: Card


class Answer(_Model):
    """The images of a request."""

    images: list[Image]
    seconds: float


class DecodeRequest(_Model):
    """Code maps or a compressed file; one of the two."""

    codes: PerLevel[Map] | None = Field(None, description="Code maps of one image, coarse to fine.")
    vq2: Base64 | None = Field(None, description="A `.vq2` file in base64.")


class Decoded(_Model):
    """Decoded images."""

    images: list[Base64] = Field(description="PNG files in base64.")


class Encoded(_Model):
    """An uploaded image as the model sees it, its codes and its reconstruction."""

    codes: list[Map] = Field(description="Code maps, coarse to fine.")
    image: Base64 = Field(description="The upload, scaled and cropped to the model's size: PNG.")
    reconstruction: Base64 = Field(description="What the codes decode to: PNG.")
    psnr: float | None = Field(description="PSNR of the reconstruction, dB; null if it is exact.")
    bits: dict[str, int] | None = Field(description="Bits of each level's codes under the priors.")
    vq2: Base64 | None = Field(description="The compressed file.")
    no_vq2: str | None = Field(description="Why there is no compressed file.")


class _Error(_Model):
    field: str = Field(
        description="What is wrong, such as `temperature` or `known.0`; may be empty."
    )
    expected: str = Field(description="What was expected and what came.")
    remedy: str = Field(description="What to do.")


class ErrorAnswer(_Model):
    """Why a request was refused."""

    error: _Error
