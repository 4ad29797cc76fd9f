"""Reading requests without a server: what is hard to time or to see over sockets."""

from __future__ import annotations

import base64
import gzip
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
from condconv_serve.fronts.context import BodyLimits
from condconv_serve.fronts.native.images import read_query, read_request
from condconv_serve.fronts.native.schemas import PredictParameters
from tests.unit.http.sender import Sender

LIMITS = BodyLimits(max_body_bytes=100_000, max_images=3)
URL_ENCODED = "application/x-www-form-urlencoded"
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


async def test_a_body_may_be_compressed() -> None:
    body = gzip.compress(json.dumps({"images": [base64.b64encode(b"pixels").decode()]}).encode())
    asked = request(Sender([body]), JSON)
    asked.scope["headers"].append((b"content-encoding", b"gzip"))
    assert (await read_request(asked, PredictParameters(), LIMITS))[1] == [ImageSource(b"pixels")]


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


@pytest.mark.parametrize(
    "text",
    ["data:image/png;base64,eA==", "DATA:;base64,eA%3D%3D", "eA =\n=", "eA", "eA=", "\ufeffeA==", "\ufeffdata:,eA"],
)
async def test_spellings_of_base64(text: str) -> None:
    _, (image,) = await read(json.dumps({"images": [text]}).encode(), JSON)
    assert image.data == b"x"


async def test_base64_for_urls() -> None:
    data = bytes(range(256))
    texts = [base64.urlsafe_b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("=")]
    assert "-" in texts[0], "one of the two letters that differ"
    _, images = await read(json.dumps({"images": texts}).encode(), JSON)
    assert [image.data for image in images] == [data, data]


async def test_json_may_begin_with_a_byte_order_mark() -> None:
    _, (image,) = await read(b'\xef\xbb\xbf{"images": ["eA=="]}', JSON)
    assert image.data == b"x"


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ('name="image"\r\nContent-Type: image/jpeg', None),
        ('name="image"\r\ncontent-type: IMAGE/JPEG; q=1', None),
        ('name="image"\r\nContent-Type: application/octet-stream', None),
        ("name=\"image\"; filename*=UTF-8''caf%C3%A9.jpg", "café.jpg"),
        ('name="image"; filename=""', None),
        ('name="image"; filename="a b.jpg"\r\nContent-Type: text/plain', "a b.jpg"),
    ],
)
async def test_a_form_part_is_a_file_however_its_client_says_so(headers: str, name: str | None) -> None:
    _, images = await read(form((headers, b"\xff\xd8\0")), FORM)
    assert images == [ImageSource(b"\xff\xd8\0", name)]


@pytest.mark.parametrize("charset", ["idna", "undefined", "rot13", "base64", "nonesuch", ""])
async def test_charsets_that_are_none_of_text_harm_nobody(charset: str) -> None:
    named = form(('name="image"; filename*=' + charset + "''%ff%2e.jpg", b"x"), ('name="model"', b"\xff.."))
    parameters, (image,) = await read(named, f"{FORM}; charset={charset}")
    assert (image.data, parameters.model) == (b"x", "ÿ..")


@pytest.mark.parametrize("charset", ["punycode", "Punycode", "idna"])
async def test_charsets_of_host_names_are_not_decoded(charset: str) -> None:
    """It takes time with the square of the length."""
    named = form(('name="image"; filename="a.jpg"', b"x"), ('name="model"', b"xn--bcher-kva"))
    parameters, _ = await read(named, f"{FORM}; charset={charset}")
    assert parameters.model == "xn--bcher-kva"


async def test_a_file_input_in_which_nothing_was_chosen_is_no_image() -> None:
    unused = ('name="second"; filename=""\r\nContent-Type: application/octet-stream', b"")
    _, images = await read(form(('name="first"; filename="a.jpg"', b"x"), unused), FORM)
    assert images == [ImageSource(b"x", "a.jpg")]
    with pytest.raises(MissingImage, match="holds no image"):
        await read(form(unused), FORM)


@pytest.mark.parametrize("field", ["top_k", "timeout_ms"])
async def test_true_is_no_number(field: str) -> None:
    body = json.dumps({"images": ["eA=="], field: True}).encode()
    with pytest.raises(InvalidParameter, match=f"{field}: Input should be a number"):
        await read(body, JSON)


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
        (b'{"images": ["eA==", "e"]}', JSON, MalformedBody, "Image 1 is not valid base64"),
        # Counted before the base64 is looked at.
        (b'{"images": ["!", "!", "!", "!"]}', JSON, TooManyImages, "more than 3"),
        (form(*[('name="i"; filename="a"', b"x")] * 4), FORM, TooManyImages, "more than 3"),
        (form(*[('name="i"; filename="a"', b"x")] * 5), FORM, TooManyImages, "more than 3"),
        (form(('name="i"; filename="a"', b"x"), ('name="no"', b"1")), FORM, InvalidParameter, "no: no such parameter"),
        (form((f'name="i"; filename="{"a" * 1025}"', b"x")), FORM, InvalidParameter, "at most 1024 characters"),
        (form(('name="i"', b"x")), FORM, MissingImage, "must be files"),
        (form(('name="i"; filename="a"', b"x"))[:-9], FORM, MalformedBody, "closing boundary"),
        (form(('name="image"', b"\xff\xd8\0")), FORM, MalformedBody, "part 'image' is a text field.*curl -F image=@"),
        (form(('name="image"', b"x" * 70_000)), FORM, MalformedBody, "part 'image' is a text field, too long"),
        (form(*[(f'name="{n}"', b"1") for n in range(66)]), FORM, MalformedBody, "more than 64 text fields"),
        (form(("", b"x")), FORM, MalformedBody, "must give its name"),
        (form(('name="i"', b"x")), "multipart/form-data", MalformedBody, "names no boundary"),
        (b"no form", FORM, MalformedBody, "can't be parsed"),
        # What curl -d leaves of a file.
        (
            b"\xff\xd8\xff\xe0JFIF" + bytes(range(128, 256)),
            URL_ENCODED,
            MalformedBody,
            "Send the file with --data-binary",
        ),
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
