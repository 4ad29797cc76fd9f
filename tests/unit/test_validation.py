import json

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from condconv_serve.documents import parse_document
from condconv_serve.errors import BundleError
from condconv_serve.validation import describe_errors, first_message, wanted_values


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(1, gt=0)


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")
    schema_version: int = 1
    parts: list[Part] = []
    name: str = "a"

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if name == "odd":
            raise ValueError("must not be odd")
        return name


def errors_of(kind, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    return caught.value


@pytest.mark.parametrize(
    ("value", "options", "says"),
    [
        ({"parts": [{"size": 0}]}, {}, "parts.0.size: Input should be greater than 0"),
        ({"parts": [{"size": 0}]}, {"show_values": True}, "parts.0.size: Input should be greater than 0, not 0"),
        ({"parts": [{"size": 0}]}, {"write_place": lambda place: place[-1]}, "size: Input should be greater than 0"),
        ({"name": "odd"}, {}, "name: must not be odd"),
        ({"parts": [{"secret": 1}]}, {}, "parts.0.secret: Extra inputs are not permitted"),
        ({"parts": [{"secret": 1}]}, {"unknown": "no such field"}, "parts.0.secret: no such field"),
        ({"parts": [{"secret": 1}]}, {"hide_unknown": True}, "parts.0: Extra inputs are not permitted"),
        ({"secret": 1}, {"hide_unknown": True, "whole": "the keys"}, "the keys: Extra inputs are not permitted"),
        ({"name": 1, "parts": 1}, {"most": 1}, "parts: Input should be a valid list and 1 more"),
    ],
)
def test_errors_become_a_sentence(value, options, says):
    assert describe_errors(errors_of(Document, value), **options) == says


def test_five_are_described_and_the_others_counted():
    error = errors_of(list[int], list("abcdefg"))
    assert describe_errors(error).count("valid integer") == 5
    assert describe_errors(error).endswith(" and 2 more")
    assert describe_errors(error.errors()[:2], total=7).endswith(" and 5 more")


def test_the_first_message_alone():
    assert first_message(errors_of(int, "x")).startswith("Input should be a valid integer")
    assert first_message(errors_of(Document, {"name": "odd"})) == "must not be odd"


def test_several_kinds_of_one_field_become_one():
    class Options(BaseModel):
        cores: int | bool

    (found,) = wanted_values(errors_of(Options, {"cores": "many"}))
    name, wanted = found
    assert name == "cores"
    assert wanted.startswith("Input should be a valid integer, ")
    assert " or a valid boolean, " in wanted
    assert wanted.endswith(", not 'many'")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("", "a.json is not valid JSON (Expecting value: line 1 column 1 (char 0)). Sorry."),
        (b"\xff", "a.json is not valid JSON ('utf-8' codec can't decode byte 0xff in position 0"),
        ("[" * 100_000, "a.json is not valid JSON ("),
        ("[]", "a.json is not a document: document: Input should be an object. Sorry."),
        ('{"schema_version": 3, "new": 1}', "a.json has schema version 3, newer than 2, the newest one known here. S"),
        ('{"name": 1}', "a.json is not a document: <name of {'name': 1}>: Input should be a valid string. Sorry."),
    ],
)
def test_a_document_that_is_refused(raw, says):
    def place(where, document):
        return f"<{where[0]} of {document}>" if where else ""

    with pytest.raises(BundleError) as caught:
        parse_document(
            raw,
            Document,
            name="a.json",
            error=BundleError,
            newest=2,
            valid="a document",
            hint="Sorry.",
            write_place=place,
        )
    assert str(caught.value).startswith(says)


def test_a_document_that_is_taken():
    document = parse_document(
        json.dumps({"schema_version": 1, "name": "b"}), Document, name="a.json", error=BundleError
    )
    assert (document.name, document.parts) == ("b", [])
