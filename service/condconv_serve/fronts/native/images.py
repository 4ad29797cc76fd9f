"""Reads the images of a request in all forms that the routes accept: raw, multipart, JSON with base64."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from condconv_serve.domain import ImageSource
from condconv_serve.errors import (
    BodyTooLarge,
    InvalidParameter,
    MalformedBody,
    MissingImage,
    TooManyImages,
    UnsupportedBody,
)
from condconv_serve.fronts.base64_text import decode_base64
from condconv_serve.fronts.context import BodyLimits
from condconv_serve.fronts.json_documents import MAX_ENTRIES
from condconv_serve.fronts.native.forms import read_parts
from condconv_serve.fronts.native.problems import NAMED, describe_validation
from condconv_serve.fronts.native.schemas import MAX_NAME, ImagesBody
from condconv_serve.http.body import read_body

Parameters = TypeVar("Parameters", bound=BaseModel)
# curl --data-binary sends the form type by default. Decoding will show what the bytes are.
FORM_TYPE = "application/x-www-form-urlencoded"
RAW_TYPES = frozenset({"", "application/octet-stream", FORM_TYPE})
MAX_FIELDS = 64
"""Most text fields of a form."""
MAX_FIELD_BYTES = 64 * 1024
"""Most bytes of a text field."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_query(request: Request, kind: type[Parameters]) -> Parameters:
    """Read parameters from a request's query.

    FastAPI could do it, too, but that took a tenth of the event loop's time per request.

    Raises:
        InvalidParameter: a parameter is unknown, impossible, or given more than once.
    """
    names = Counter(name for name, _ in request.query_params.multi_items())
    if twice := sorted(name for name in kind.model_fields if names[name] > 1):
        raise InvalidParameter(f"{', '.join(twice)}: given more than once.")
    return _validated(kind, dict(request.query_params))


async def read_request(request: Request, query: Parameters, limits: BodyLimits) -> tuple[Parameters, list[ImageSource]]:
    """Read parameters and images of a request.

    Args:
        request: its body is consumed.
        query: the parameters given in the query.
        limits: refuses what is larger.

    Returns:
        The parameters, those of the body included, and the undecoded images.

    Raises:
        BodyTooLarge: more bytes than allowed. MissingImage: none, or an empty one. TooManyImages: more than allowed.
        MalformedBody: the body can't be parsed. UnsupportedBody: its content type isn't read here.
        UnsupportedEncoding: it is compressed in a way that isn't read here.
        InvalidParameter: a parameter is unknown, impossible, or given both in the query and in the body.
    """
    media_type = _media_type(request)
    raw = media_type in RAW_TYPES or media_type.startswith("image/")
    if not raw and media_type not in ("multipart/form-data", "application/json"):
        raise UnsupportedBody(
            f"The content type {media_type[:100]!r} can't be read; send an image (image/*, application/octet-stream), "
            "multipart/form-data, or application/json with base64."
        )
    body = await read_body(request, limits.max_body_bytes)
    if not body:
        raise MissingImage("The body is empty; send an image.")
    if media_type == "application/json":
        fields, images = _parse_json(body, limits)
    elif media_type == "multipart/form-data":
        fields, images = _parse_multipart(request.headers["content-type"], body, limits)
    else:
        if media_type == FORM_TYPE and not any(byte in body for byte in b"\0\r\n") and not body.isascii():
            raise MalformedBody(
                "The body has neither line breaks nor NUL bytes, so it is no whole picture: curl -d strips them. Send "
                "the file with --data-binary @photo.jpg."
            )
        fields, images = {}, [ImageSource(body)]
    _check_images(images, limits)
    return _merge(query, fields), images


async def read_json(request: Request, kind: type[Parameters], *, max_bytes: int) -> Parameters:
    """Read a JSON body that holds no images.

    FastAPI's own reading has no limit, and happens before the API key is checked.

    Raises:
        UnsupportedBody: it is not declared as JSON. BodyTooLarge: more bytes than allowed. MalformedBody: no JSON.
        UnsupportedEncoding: it is compressed in a way that isn't read here.
        InvalidParameter: a field is missing, unknown or impossible.
    """
    media_type = _media_type(request)
    if media_type != "application/json":
        raise UnsupportedBody(f"The content type {media_type[:100]!r} can't be read; send application/json.")
    body = await read_body(request, max_bytes)
    try:
        return kind.model_validate_json(body.removeprefix(_BYTE_ORDER_MARK))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            raise MalformedBody(f"The body is not valid JSON: {errors[0]['ctx']['error']}.") from error
        raise InvalidParameter(describe_validation(errors)) from error


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _parse_json(body: bytes, limits: BodyLimits) -> tuple[dict[str, Any], list[ImageSource]]:
    if body.count(b",") > MAX_ENTRIES:
        raise BodyTooLarge(f"The JSON body has more than {MAX_ENTRIES} entries, the most that is allowed.")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = (
            str(error)
            if isinstance(error, json.JSONDecodeError)
            else "not UTF-8, nested too deeply, or with too long a number"
        )
        raise MalformedBody(f"The body is not valid JSON: {reason}.") from error
    if not isinstance(document, dict) or "images" not in document:
        raise InvalidParameter('The JSON body must be an object such as {"images": ["<base64>"], "top_k": 5}.')
    if isinstance(document["images"], list):
        _check_count(len(document["images"]), limits)
    try:
        parsed = ImagesBody.model_validate({"images": document.pop("images")})
    except ValidationError as error:
        raise InvalidParameter(describe_validation(error.errors())) from error
    images = [
        ImageSource(decode_base64(image.data, what=f"Image {position}"), image.filename, image.id)
        for position, image in enumerate(parsed.images)
    ]
    return document, images


def _parse_multipart(content_type: str, body: bytes, limits: BodyLimits) -> tuple[dict[str, Any], list[ImageSource]]:
    parts = read_parts(content_type, body, most=limits.max_images + MAX_FIELDS)
    files = [part for part in parts if part.is_file and not part.is_unused]
    texts = [part for part in parts if not part.is_file]
    _check_count(len(files), limits)
    if len(texts) > MAX_FIELDS:
        raise MalformedBody(f"The form has more than {MAX_FIELDS} text fields, the most that is allowed.")
    fields: dict[str, Any] = {}
    for part in texts:
        if len(part.data) > MAX_FIELD_BYTES or b"\0" in part.data:
            raise MalformedBody(
                f"The form's part {part.name[:100]!r} is a text field, too long or with bytes that no text has. If it "
                f"is a picture, send it as a file: curl -F image=@photo.jpg does, with the @."
            )
        if part.name in fields:
            raise InvalidParameter(f"{part.name[:100]!r} is given more than once.")
        fields[part.name] = part.text()
    return fields, [ImageSource(bytes(part.data), _file_name(part.filename)) for part in files]


def _file_name(name: str | None) -> str | None:
    if not name:
        return None
    if len(name) > MAX_NAME:
        raise InvalidParameter(f"A file's name may have at most {MAX_NAME} characters, not {len(name)}.")
    # Some of the encodings that a form may declare can spell what no answer can be encoded with.
    return name.encode(errors="replace").decode()


def _check_images(images: Sequence[ImageSource], limits: BodyLimits) -> None:
    if not images:
        raise MissingImage("The body holds no image; a form's images must be files, as with curl -F image=@photo.jpg.")
    _check_count(len(images), limits)


def _check_count(images: int, limits: BodyLimits) -> None:
    if images > limits.max_images:
        raise TooManyImages(f"The request holds more than {limits.max_images} images, the most that is allowed.")


def _merge(query: Parameters, fields: Mapping[str, Any]) -> Parameters:
    """Add the body's parameters to the query's."""
    if twice := sorted(set(fields) & query.model_fields_set):
        raise InvalidParameter(
            f"{', '.join(twice)}: given both in the query and in the body. Give each parameter once."
        )
    if not fields:
        return query
    return _validated(type(query), {**query.model_dump(exclude_unset=True), **fields})


def _validated(kind: type[Parameters], fields: Mapping[str, Any]) -> Parameters:
    known = f"Parameters are {', '.join(kind.model_fields)}."
    # Looked for here, since pydantic would describe each of a million at length.
    if unknown := [name for name in fields if name not in kind.model_fields]:
        raise InvalidParameter(
            f"{describe_validation([_unknown(name) for name in unknown[:NAMED]], len(unknown))} {known}"
        )
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise InvalidParameter(f"{describe_validation(error.errors())} {known}") from error


def _unknown(name: str) -> dict[str, Any]:
    return {"type": "extra_forbidden", "loc": (name.encode(errors="replace").decode(),), "msg": ""}
