"""Reads multipart forms (RFC 7578) whose body is in memory, as clients of all kinds send them."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from condconv_serve.errors import MalformedBody

_OF_HOST_NAMES = ("idna", "punycode")
"""What Python has among its charsets, too. No text is in them, and decoding a field would take time with the square of
its length: a form of 4 MB held up everybody for 12 seconds."""


@dataclass(slots=True)
class Part:
    """One part of a form.

    Attributes:
        name: of the field.
        filename: as the client has it; None if it gave none, which makes the part a text field for some.
        content_type: as declared; empty if it isn't.
        data: the content.
        charset: of names and texts.
    """

    name: str = ""
    filename: str | None = None
    content_type: str = ""
    data: bytearray = field(default_factory=bytearray)
    charset: str = "utf-8"

    @property
    def is_file(self) -> bool:
        """Whether it is meant as a file: it has a name like one, or a type that no text has."""
        return (
            self.filename is not None
            or self.content_type.startswith("image/")
            or self.content_type == "application/octet-stream"
        )

    @property
    def is_unused(self) -> bool:
        """Whether it is what a browser sends for a file input in which nothing was chosen."""
        return self.filename == "" and not self.data

    def text(self) -> str:
        """The content of a text field."""
        return _decode(bytes(self.data), self.charset)


def read_parts(content_type: str, body: bytes, *, most: int) -> list[Part]:
    """Read the parts of a form, but no more than one beyond `most`.

    Args:
        content_type: of the body, with the boundary.
        body: the whole form.
        most: how many parts the caller takes.

    Raises:
        MalformedBody: the form can't be parsed, or ends before its closing boundary.
    """
    _, options = parse_options_header(content_type)
    if not (boundary := options.get(b"boundary")):
        raise _malformed("Its content type names no boundary")
    reader = _Reader(_decode(options.get(b"charset", b"utf-8"), "ascii"), most)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
    except _EnoughError:
        return reader.parts
    except FormParserError as error:
        raise _malformed(str(error).rstrip(".")) from error
    if not reader.complete:
        raise _malformed("It ends before its closing boundary")
    return reader.parts


class _EnoughError(Exception):
    """There are more parts than anybody takes."""


class _Reader:
    """Puts parts together from what the parser finds."""

    def __init__(self, charset: str, most: int) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._charset = charset
        self._most = most
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": lambda data, start, end: self.parts[-1].data.extend(memoryview(data)[start:end]),
            "on_end": self._all_ends,
        }

    def _part_begins(self) -> None:
        if len(self.parts) > self._most:
            raise _EnoughError
        self.parts.append(Part(charset=self._charset))
        self._headers = {}

    def _header_ends(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        part = self.parts[-1]
        disposition = self._headers.get(b"content-disposition")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise _malformed("A part's header Content-Disposition must give its name")
        part.name = _decode(options[b"name"], self._charset)
        if (filename := options.get(b"filename")) is not None:
            part.filename = _decode(filename, self._charset)
        elif disposition and b"filename*" in disposition:
            part.filename = _extended_file_name(disposition)
        media_type, _ = parse_options_header(self._headers.get(b"content-type"))
        part.content_type = media_type.decode("latin-1").lower()

    def _all_ends(self) -> None:
        self.complete = True


def _extended_file_name(disposition: bytes) -> str | None:
    """The name in a parameter `filename*` (RFC 2231). No form should have it, but some clients send nothing else."""
    header = Message()
    header["Content-Disposition"] = disposition.decode("latin-1")
    try:
        return header.get_filename()
    except ValueError:  # in a charset that can't be that of a name
        return ""


def _decode(text: bytes, charset: str) -> str:
    try:
        if codecs.lookup(charset).name not in _OF_HOST_NAMES:
            return text.decode(charset)
    except (UnicodeError, LookupError):  # not every charset that Python knows is one of text
        pass
    return text.decode("latin-1")


def _malformed(why: str) -> MalformedBody:
    return MalformedBody(f"The multipart body can't be parsed: {why}.")
