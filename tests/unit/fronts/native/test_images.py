"""Reading requests without a server: what is hard to time or to see over sockets."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from starlette.requests import Request

from condconv_serve.domain import ImageSource
from condconv_serve.errors import (
    BodyTooLarge,
    InvalidParameter,
    MalformedBody,
    MissingImage,
    ServiceError,
    TooManyImages,
)
from condconv_serve.fronts.native.images import BodyLimits, read_query, read_request
from condconv_serve.fronts.native.schemas import PredictParameters
from tests.unit.http.sender import Sender

LIMITS = BodyLimits(max_body_bytes=100_000, max_images=3)
JSON, FORM = "application/json", "multipart/form-data; boundary=abc"


def request(sender: Sender, content_type: str = "", query: str = "") -> Request:
    headers = [(b"content-type", content_type.encode())] if content_type else []
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": query.encode()}
    return Request(scope, sender)


async def read(body: bytes, content_type: str, **query: Any) -> tuple[PredictParameters, list[ImageSource]]:
    return await read_request(request(Sender([body]), content_type), PredictParameters(**query), LIMITS)


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(b"--abc\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (d.encode(), c) for d, c in parts)
    return body + b"--abc--\r\n"


async def test_raw_body_is_one_image() -> None:
    parameters, images = await read(b"pixels", "image/png", top_k=3)
    assert images == [ImageSource(b"pixels")]
    assert parameters == PredictParameters(top_k=3)


async def test_json_images_and_parameters() -> None:
    encoded = base64.b64encode(b"pixels").decode()
    objects = [encoded, f"data:image/png;base64,{encoded}", {"data": encoded, "id": "7", "filename": "a.png"}]
    body = json.dumps({"images": objects, "top_k": 2}).encode()
    parameters, images = await read(body, JSON, routing=True)
    assert images == [ImageSource(b"pixels"), ImageSource(b"pixels"), ImageSource(b"pixels", "a.png", "7")]
    assert parameters == PredictParameters(top_k=2, routing=True)


async def test_form_files_and_fields() -> None:
    body = form(
        ('name="top_k"', b"2"),
        ('name="image"; filename="a.png"', b"first"),
        ('name="other"; filename="b.png"', b""),
    )
    parameters, images = await read(body, FORM)
    assert images == [ImageSource(b"first", "a.png"), ImageSource(b"", "b.png")]
    assert parameters == PredictParameters(top_k=2)


@pytest.mark.parametrize("text", ["data:image/png;base64,eA==", "DATA:;base64,eA%3D%3D", "eA =\n="])
async def test_spellings_of_base64(text: str) -> None:
    _, (image,) = await read(json.dumps({"images": [text]}).encode(), JSON)
    assert image.data == b"x"


async def test_data_url_that_would_take_seconds_to_decode() -> None:
    body = json.dumps({"images": ["data:," + "%41" * 100_001]}).encode()
    with pytest.raises(BodyTooLarge, match="Image 0 has more than 100000 percent-encoded characters"):
        await read_request(
            request(Sender([body]), JSON), PredictParameters(), BodyLimits(max_body_bytes=2**23, max_images=1)
        )


async def test_unknown_fields_are_counted_but_not_all_named() -> None:
    document = {"images": ["eA=="], **{f"field {number}": number for number in range(99_000)}}
    body = json.dumps(document).encode()
    with pytest.raises(InvalidParameter, match="field 4: no such parameter and 98995 more") as refused:
        await read_request(
            request(Sender([body]), JSON), PredictParameters(), BodyLimits(max_body_bytes=2**23, max_images=1)
        )
    assert len(str(refused.value)) < 500


async def test_more_entries_of_json_than_could_be_read_in_no_time() -> None:
    body = json.dumps({"images": ["eA=="], "top_k": [0] * 100_001}).encode()
    with pytest.raises(BodyTooLarge, match=r"^The JSON body has more than 100000 entries"):
        await read_request(
            request(Sender([body]), JSON), PredictParameters(), BodyLimits(max_body_bytes=2**23, max_images=1)
        )


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape"])
async def test_file_name_that_no_answer_can_hold(charset: str) -> None:
    name = {"utf-7": "+2AA-.png", "unicode_escape": r"\\ud800.png"}[charset]
    body = form((f'name="image"; filename="{name}"', b"x"))
    _, (image,) = await read(body, f"{FORM}; charset={charset}")
    assert image.filename == "?.png"


async def test_form_with_large_file_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(*_: Any, **__: Any) -> None:
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr("tempfile.TemporaryFile", no_file)
    body = form(('name="image"; filename="a.png"', bytes(3 * 2**20)))
    _, (image,) = await read_request(
        request(Sender([body]), FORM), PredictParameters(), BodyLimits(max_body_bytes=2**23, max_images=1)
    )
    assert len(image.data) == 3 * 2**20


@pytest.mark.parametrize(
    ("body", "content_type", "error", "says"),
    [
        (b"", "", MissingImage, "empty"),
        (b"", FORM, MissingImage, "empty"),
        (b'{"images": ["a"]', JSON, MalformedBody, "not valid JSON"),
        (b'{"images": ["!"]}', JSON, MalformedBody, "Image 0 is not valid base64"),
        (b'{"images": ["eA==", "eA"]}', JSON, MalformedBody, "Image 1 is not valid base64"),
        # Counted before the base64 is looked at.
        (b'{"images": ["!", "!", "!", "!"]}', JSON, TooManyImages, "more than 3"),
        (form(*[('name="i"; filename="a"', b"x")] * 4), FORM, TooManyImages, "more than 3"),
        (form(*[('name="i"; filename="a"', b"x")] * 5), FORM, TooManyImages, "more than 3"),
        (form(('name="i"; filename="a"', b"x"), ('name="no"', b"1")), FORM, InvalidParameter, "no: no such parameter"),
        (form((f'name="i"; filename="{"a" * 1025}"', b"x")), FORM, InvalidParameter, "at most 1024 characters"),
        (form(('name="i"', b"x")), FORM, MissingImage, "must be files"),
        (form(('name="i"; filename="a"', b"x"))[:-9], FORM, MalformedBody, "closing boundary"),
    ],
)
async def test_refusals(body: bytes, content_type: str, error: type[ServiceError], says: str) -> None:
    with pytest.raises(error, match=says):
        await read(body, content_type)


def test_parameter_twice_in_the_query() -> None:
    with pytest.raises(InvalidParameter, match=r"^top_k: given more than once"):
        read_query(request(Sender([b"x"]), query="top_k=1&top_k=1&model=a"), PredictParameters)


def test_unknown_parameter_twice_in_the_query_is_cut_short() -> None:
    name = "a" * 10_000
    with pytest.raises(InvalidParameter, match="no such parameter") as refused:
        read_query(request(Sender([b"x"]), query=f"{name}=1&{name}=2"), PredictParameters)
    assert len(str(refused.value)) < 500


async def test_default_in_the_query_still_counts_as_given() -> None:
    with pytest.raises(InvalidParameter, match="both in the query and in the body"):
        await read(b'{"images": ["eA=="], "top_k": 5}', JSON, top_k=5)
