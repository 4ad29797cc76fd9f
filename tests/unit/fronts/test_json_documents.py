"""Reading JSON with long lists of numbers: the same as a plain JSON parser, or a refusal."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from condconv_serve.errors import BodyTooLarge, InvalidParameter, MalformedBody, RequestError, TooManyImages
from condconv_serve.fronts import json_documents as documents
from condconv_serve.fronts.json_documents import Document, Numbers, parse, with_document
from condconv_serve.fronts.long_reads import LongReads


def numbers_of(body: str | bytes, key: str = "a") -> Numbers:
    found = parse(body.encode() if isinstance(body, str) else body)[key]
    assert isinstance(found, Numbers)
    return found


def plain(document: Document) -> Any:
    """The document as a plain parser has it."""

    def of(value: Any) -> Any:
        if isinstance(value, Numbers):
            return json.loads(value.text)
        if isinstance(value, dict):
            return {key: of(inner) for key, inner in value.items()}
        return [of(inner) for inner in value] if isinstance(value, list) else value

    return of(document)


@pytest.mark.parametrize(
    "text",
    [
        '{"instances": [[[1, 2.5, -3e2], [4, 5, 6]]], "signature_name": "pixels"}',
        '{"instances":[{"pixels":[[1,2]]},{"pixels":[[3,4]]}]}',
        '{"inputs": {"pixels": [\n [ 1 , 2 ],\t[3,4]\n], "other": [7]}}',
        '{"a": ["[1, 2]", "\\"[3]", "\\\\"], "b": [1, "x"], "c": [[1, 2], "x"], "d": [[[]]]}',
        '{"a": {"b64": "QUJD"}, "b": [true, null], "c": [], "d": {}}',
        '{"a": [1, {"b": [2]}, 3]}',
        '{"a": [{"b": 1}, [2]]}',
        "{}",
    ],
)
def test_it_reads_what_a_plain_parser_reads(text: str) -> None:
    assert plain(parse(text.encode())) == json.loads(text)
    assert plain(parse(b"\xef\xbb\xbf" + text.encode())) == json.loads(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(max_examples=40, deadline=None, database=None)
@given(
    fields=st.dictionaries(st.text(max_size=3), JSON), indent=st.none() | st.integers(0, 2), ascii_only=st.booleans()
)
def test_any_document(fields: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(fields, indent=indent, ensure_ascii=ascii_only)
    assert plain(parse(text.encode(errors="replace"))) == json.loads(text.encode(errors="replace"))


@settings(max_examples=30, deadline=None, database=None)
@given(
    values=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements=st.floats(0, 255, width=32) | st.integers(0, 255),
    ),
    piece=st.sampled_from([1, 7, 1000]),
)
def test_arrays_come_back_exactly(values: np.ndarray, piece: int) -> None:
    found = numbers_of(json.dumps({"a": values.tolist()}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_PIECE", piece)
        patch.setattr(documents, "_BLOCK", piece)
        np.testing.assert_array_equal(found.array(values.shape), values)
        np.testing.assert_array_equal(found.batch(values.shape[1:], most=9), values)
    for wrong in ((*values.shape, 1), values.shape[1:], (values.shape[0] + 1, *values.shape[1:])):
        if wrong != values.shape:
            with pytest.raises(InvalidParameter, match="Expecting numbers in lists of the shape"):
                found.array(wrong)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_list_is_refused_or_read_as_json_reads_it(data: st.DataObject) -> None:
    text = json.dumps({"a": np.arange(12).reshape(2, 2, 3).tolist()}, separators=(",", data.draw(st.sampled_from(":"))))
    place = data.draw(st.integers(4, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from([*'[],. -1e"{}\\x', ""])) + text[place + 1 :]
    piece = data.draw(st.sampled_from([1, 3, 1000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_PIECE", piece)
        try:
            numbers = parse(damaged.encode())["a"]
            found = numbers.batch((2, 3), most=9) if isinstance(numbers, Numbers) else None
        except (RequestError, KeyError):
            return
    if found is not None:
        assert found.tolist() == json.loads(damaged)["a"]


@pytest.mark.parametrize(
    "text",
    [
        *("[[1,2],[3,]]", "[[1,2],[,3]]", "[[1,2]5,[3,4]]", "[[1,2],6[3,4]]", "[[1,2],[3,4 5]]", "[1[,2],[3,4]]"),
        *("[[1,2],[03,4]]", "[[1,2],[+3,4]]", "[[1,2],[.3,4]]", "[[1,2],[3.,4]]", "[[1,2],[-,4]]", "[[1,2],[1e,4]]"),
        f"[[1,2],[{'9' * 400},4]]",
    ],
)
def test_numbers_that_are_no_json_are_refused(text: str) -> None:
    with pytest.raises(MalformedBody, match="JSON Parse error"):
        numbers_of(f'{{"a": {text}}}').batch((2,), most=9)


@pytest.mark.parametrize(
    "text",
    [
        "[[1,2],[3]]",
        "[[1,2],3,4]",
        "[[1,2],[3,,4]]",
        "[[1 2],[3,4]]",
        "[1,2],[3,4]",
        "[[1,2],[[3],4]]",
        "[1,2]",
        "[[1,2,3]]",
        "[[1,true]]",
    ],
)
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises((InvalidParameter, MalformedBody)):
        numbers_of(f'{{"a": {text}}}').batch((2,), most=9)


def test_too_many_rows() -> None:
    with pytest.raises(TooManyImages, match="3 rows; 2 are allowed"):
        numbers_of('{"a": [[1],[2],[3]]}').batch((1,), most=2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error"),
        (b"[1]", "Is not object"),
        (b'"x"', "Is not object"),
        (b"{", "JSON Parse error"),
        (b'{"a": NaN}', "JSON Parse error"),
        (b'{"a": [1, 2}', "JSON Parse error"),
        (b'{"\xff": 1}', "JSON Parse error"),
        (b"[" * 100_000, "JSON Parse error"),
        (b'{"a": [1' + b"]" * 1000, "JSON Parse error"),
        (b'{"a": ' + b"[" * 300_000 + b"1" + b"]" * 300_000, "JSON Parse error"),
    ],
)
def test_what_is_no_json_object(body: bytes, message: str) -> None:
    with pytest.raises(MalformedBody, match=message):
        parse(body)


@pytest.mark.parametrize("text", ["[[1,2],[3,null]]", "[[1,2],[3,NaN]]", "[1,2,true]", "[[1,2],[3,4/*x*/]]"])
def test_something_else_among_numbers_is_named(text: str) -> None:
    numbers = Numbers(text.encode())
    with pytest.raises(InvalidParameter, match="something that is no number"):
        numbers.batch((2,), most=9)


@pytest.mark.parametrize("body", [b'{"a": [' + b"[]," * 100_001 + b"[]]}", b'{"a": [1, "' + b'","' * 100_001 + b'"]}'])
def test_too_many_entries(body: bytes) -> None:
    with pytest.raises(BodyTooLarge, match=r"more than 100000 entries.*such as NaN"):
        parse(body)


def test_nobody_can_name_a_list_that_was_taken_out() -> None:
    document = parse(b'{"a": [1, 2], "b": "0", "c": "\\u0000"}')
    assert {key: type(document[key]) for key in "abc"} == {"a": Numbers, "b": str, "c": str}


LONG = (b'{"a": [' + b"1, " * 20_000 + b"1]}", b'{"a": "' + b"x" * 300_000 + b'"}')


@pytest.mark.parametrize(("body", "in_a_thread"), [(b'{"a": [1]}', False), (LONG[0], True), (LONG[1], True)])
async def test_long_bodies_are_read_in_a_thread(body: bytes, in_a_thread: bool) -> None:
    read_by = await with_document(
        body, lambda document: (list(document), threading.get_ident()), long_reads=LongReads()
    )
    assert read_by[0] == ["a"]
    assert (read_by[1] != threading.get_ident()) == in_a_thread


async def test_long_bodies_take_turns() -> None:
    long_reads, at_once, most = LongReads(), 0, 0

    def make(document: Document) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        at_once -= 1

    await asyncio.gather(*(with_document(body, make, long_reads=long_reads) for body in LONG * 3))
    assert most == 1
