"""The bodies of requests: JSON, or a form with JSON and pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from torch import Tensor

from clipx.data import decode
from clipx.serve.collection import Collection
from clipx.serve.limits import Limits, Refused

MAX_PICTURES = 8
FIELD_BYTES = 1_000_000
M = TypeVar("M", bound=BaseModel)
Row = Annotated[int, Field(ge=0, lt=2**63)]
# A decoded picture takes 4 bytes a pixel, of which `fit` leaves little.
_decoding = threading.Semaphore(4)


class TermBody(BaseModel):
    """sign: near or far; picture: number of an uploaded one; row: of a sample of the index"""

    model_config = ConfigDict(extra="forbid")
    sign: Literal[1, -1] = 1
    text: str | None = None
    picture: Annotated[int, Field(ge=0, lt=MAX_PICTURES)] | None = None
    row: Row | None = None


class SearchBody(BaseModel):
    """k: results from `offset` on; where: a condition on the metadata"""

    model_config = ConfigDict(extra="forbid")
    index: str | None = None
    terms: list[TermBody] = Field(min_length=1)
    k: int = Field(default=40, ge=1)
    offset: int = Field(default=0, ge=0)
    where: str | None = None
    modality: Literal["image", "text"] = "image"


class ClassifyBody(BaseModel):
    """The picture of `row`, or the one that is uploaded; prompts: with {c} for the class name"""

    model_config = ConfigDict(extra="forbid")
    index: str | None = None
    names: list[str] = Field(min_length=1)
    prompts: list[str] = Field(default=["{c}"], min_length=1, max_length=16)
    row: Row | None = None


async def read_request(request: Request, model: type[M], limits: Limits) -> tuple[M, list[bytes]]:
    """The settings of a request and its pictures. JSON is the body, or the field `query` of a form
    whose files are the pictures. Raises Refused."""
    try:
        async with asyncio.timeout(limits.body_seconds):
            if request.headers.get("content-type", "").startswith("multipart/form-data"):
                text, pictures = await _read_form(request)
            else:
                text, pictures = await request.body(), []
    except TimeoutError:
        message = f"the request did not arrive within {limits.body_seconds:.0f} seconds"
        raise Refused(408, message) from None
    return parse(model, text), pictures


async def _read_form(request: Request) -> tuple[str, list[bytes]]:
    try:
        form = await request.form(
            max_files=MAX_PICTURES, max_fields=MAX_PICTURES, max_part_size=FIELD_BYTES
        )
    except HTTPException as error:
        raise Refused(400, f"the form cannot be read: {error.detail}") from error
    except (LookupError, ValueError) as error:  # an unknown charset, a broken header
        raise Refused(400, f"the form cannot be read: {type(error).__name__}") from error
    query = None
    pictures = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                pictures.append(await value.read())
            elif name == "query":
                query = value
            else:
                raise Refused(422, f"the form has a field {name!r}; it takes `query` and files")
    finally:
        await form.close()
    if query is None:
        raise Refused(422, "the form has no field `query` with the JSON of the request")
    return query, pictures


def parse(model: type[M], text: str | bytes) -> M:
    """Raises Refused with all errors."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise Refused(422, shown_errors(error.errors(include_url=False))) from error
    except ValueError as error:  # text that is no Unicode
        raise Refused(422, f"the request is no JSON: {type(error).__name__}") from error


def shown_errors(errors: Iterable[object]) -> str:
    """Place and message of each. The inputs are left out: they may be large, or no valid JSON."""
    shown = []
    for error in errors:
        assert isinstance(error, dict)
        place = ".".join(str(part) for part in error["loc"])
        shown.append(f"{place}: {error['msg']}" if place else error["msg"])
    return "; ".join(shown[:10])


def check_texts(texts: Iterable[str], limits: Limits) -> None:
    """Raises Refused."""
    for text in texts:
        if not text.strip():
            raise Refused(422, "a text is empty")
        if len(text) > limits.text_characters:
            raise Refused(
                422,
                f"a text has {len(text):,} characters; at most {limits.text_characters:,} are "
                "taken, of which the model reads the first words",
            )


def decode_base64(text: str) -> bytes:
    """Raises Refused."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"the image is no base64: {error}") from error


def fitted_picture(data: bytes, collection: Collection, limits: Limits) -> Tensor:
    """(3, S, S) uint8. Size and format are checked before anything is decoded. Raises Refused."""
    try:
        with _decoding:
            pixels = decode.decode(
                data,
                max_pixels=limits.picture_pixels,
                max_bytes=limits.body_bytes,
                exif_orientation=collection.images.manifest.exif_orientation,
            )
            return collection.batcher.fit(pixels)
    except decode.TooLarge as error:
        raise Refused(413, f"the picture is too large: {error}; send a smaller one") from error
    except decode.BadImage as error:
        raise Refused(422, f"the picture cannot be used: {error}") from error
