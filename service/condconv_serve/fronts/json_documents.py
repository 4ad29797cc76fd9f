"""Reads JSON bodies fast, and so that nobody else waits: long lists of numbers are read piece by piece, in a thread.

A picture of 224 pixels a side is 150,000 numbers. A JSON parser makes an object of each, and other threads wait
meanwhile. So lists of numbers are taken out of the text first, the rest is parsed, and each list is read only when
somebody needs it, straight into an array.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from condconv_serve.errors import BodyTooLarge, InvalidParameter, MalformedBody, TooManyImages
from condconv_serve.fronts.long_reads import LongReads

MAX_ENTRIES = 100_000
"""Most entries of a body's lists and objects, not counting the numbers of lists of numbers. A million would hold up
everybody for a second or two."""

INLINE_BYTES = 256 * 1024
"""Bodies up to this size are read on the event loop, which takes a millisecond; a thread would take longer."""

INLINE_NUMBER_BYTES = 16 * 1024
"""The same for bodies with lists of numbers, which take longer to read."""

Document = Mapping[str, Any]
"""A parsed body: an object, in which each list of numbers that is the value of a key is `Numbers`."""
Result = TypeVar("Result")

_PIECE = 32 * 1024
_BLOCK = 2**20
_WHITESPACE = b" \t\r\n"
# The value of a key that begins as a list of numbers does. Possessive, so that it looks at each byte once.
_STARTS_NUMBERS = re.compile(rb":[ \t\r\n]*+(\[[\[ \t\r\n]*+-?[0-9])")
_NUMBER_CHARACTERS = b"0123456789+-.eE"
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
_ALL_ZEROS = bytes.maketrans(_NUMBER_CHARACTERS, b"0" * len(_NUMBER_CHARACTERS))
# Stands in a document where a list of numbers was. Nobody outside this process can know it.
_PLACE = secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A list of numbers, or of such lists, as it stands in a body."""

    text: bytes = field(repr=False)

    def __str__(self) -> str:
        """Its beginning, for messages."""
        return self.text[:100].decode(errors="replace")

    def batch(self, shape: tuple[int, ...], *, most: int) -> NDArray[np.float32]:
        """Read a list of arrays that all have one shape.

        Args:
            shape: of each array.
            most: most arrays.

        Returns:
            float32 `[N, *shape]`.

        Raises:
            InvalidParameter: it is no such list. TooManyImages: it has more arrays than allowed.
            MalformedBody: it is no valid JSON.
        """
        structure = self._structure()
        count = (len(structure) - 1) // (_length_of(shape) + 1)
        if not _is_structure(structure, (count, *shape)):
            raise self._misshaped(structure, ("N", *shape))
        if count > most:
            raise TooManyImages(f"The request has {count} rows; {most} are allowed.")
        return self._read((count, *shape))

    def array(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Read an array of one shape, float32; the errors are those of `batch`."""
        structure = self._structure()
        if not _is_structure(structure, shape):
            raise self._misshaped(structure, shape)
        return self._read(shape)

    def array_or_flat(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Read an array that stands in lists of its shape, or in one flat list; the errors are those of `batch`."""
        nested = self.text[1:].lstrip(_WHITESPACE).startswith(b"[")
        return self.array(shape if nested else (prod(shape),)).reshape(shape)

    def _structure(self) -> bytes:
        """The brackets and commas alone."""
        zeros = _translate(self.text, _ALL_ZEROS, _WHITESPACE)
        # With NumPy, since `b"0[" in zeros` takes longer, and nobody else can run meanwhile.
        codes = np.frombuffer(zeros, np.uint8)
        before, after = codes[:-1], codes[1:]
        if (((before == ord("0")) & (after == ord("["))) | ((before == ord("]")) & (after == ord("0")))).any():
            raise MalformedBody("JSON Parse error: in a list of numbers, a comma is missing beside a bracket.")
        return _translate(zeros, None, b"0")

    def _misshaped(self, structure: bytes, shape: tuple[int | str, ...]) -> InvalidParameter:
        if structure.translate(None, b"[],"):
            return InvalidParameter("A list of numbers holds something that is no number, such as null, true or NaN.")
        depth = len(structure) - len(structure.lstrip(b"["))
        wanted = ", ".join(map(str, shape))
        return InvalidParameter(
            f"Expecting numbers in lists of the shape [{wanted}] but got {structure.count(b',') + 1} numbers in lists "
            f"that are {depth} deep."
        )

    def _read(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        values = np.empty(prod(shape), np.float32)
        place = 0
        for piece in self._pieces():
            try:
                found = np.array(pydantic_core.from_json(b"[" + piece + b"]"), np.float64)
            except (ValueError, OverflowError) as error:
                raise MalformedBody(f"JSON Parse error: in a list of numbers, {error}.") from error
            with np.errstate(over="ignore"):  # whoever asked for the numbers says which are allowed
                values[place : place + len(found)] = found
            place += len(found)
        if place != len(values):
            raise MalformedBody("JSON Parse error: in a list of numbers, one is missing.")
        return values.reshape(shape)

    def _pieces(self) -> Iterator[bytes]:
        """The numbers without the brackets, cut at commas."""
        flat = _translate(self.text, _NO_BRACKETS, b"")
        start = 0
        while start < len(flat):
            end = flat.find(b",", start + _PIECE)
            end = len(flat) if end < 0 else end
            yield flat[start:end]
            start = end + 1


async def with_document(body: bytes, make: Callable[[Document], Result], *, long_reads: LongReads) -> Result:
    """Parse a body and make something of it, in a thread if that may take long.

    Args:
        body: JSON.
        make: makes something of the document.
        long_reads: gives long bodies their turns.

    Raises:
        MalformedBody: it is no JSON object. BodyTooLarge: it has more than `MAX_ENTRIES` entries.
    """
    size = len(body)
    if size <= INLINE_NUMBER_BYTES or (size <= INLINE_BYTES and not _STARTS_NUMBERS.search(body)):
        return make(parse(body))
    return await long_reads.run(lambda: make(parse(body)))


def parse(body: bytes) -> Document:
    """Parse a body; the errors are those of `with_document`."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    if len(body) > INLINE_BYTES or _STARTS_NUMBERS.search(body):
        text, numbers = _take_out_numbers(body)
    else:
        text, numbers = body, {}
    if text.count(b",") > MAX_ENTRIES:
        raise _too_many()
    try:
        found = pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedBody(f"JSON Parse error: {error}.") from error
    if not isinstance(found, dict):
        raise MalformedBody("JSON Value: Is not object.")
    return _put_back(found, numbers) if numbers else found


def _put_back(value: Any, numbers: Mapping[str, Numbers]) -> Any:
    """Put each list of numbers in the place of its name."""
    if isinstance(value, dict):
        return {key: _put_back(inner, numbers) for key, inner in value.items()}
    if isinstance(value, list):
        return [_put_back(inner, numbers) for inner in value]
    return numbers.get(value, value) if isinstance(value, str) else value


def _take_out_numbers(body: bytes) -> tuple[bytes, dict[str, Numbers]]:
    """Put a name in the place of each list of numbers."""
    # Backslashes could hide quotes that don't end a string. In a copy of equal length they are gone.
    shadow = body.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in body else body
    if shadow.count(b'"') > 2 * MAX_ENTRIES:
        raise _too_many()
    kept: list[bytes] = []
    numbers: dict[str, Numbers] = {}
    start = 0
    for position, part in enumerate(shadow.split(b'"')):
        end = start + len(part)
        # Every other part is a string.
        if position % 2 == 0 and (found := _numbers_in(part)):
            name = f"{_PLACE}{len(numbers)}"
            numbers[name] = Numbers(part[found])
            kept += [part[: found.start], b'"', name.encode(), b'"', part[found.stop :], b'"']
        else:
            kept += [body[start:end], b'"']
        start = end + 1
    return b"".join(kept[:-1]), numbers


def _numbers_in(part: bytes) -> slice | None:
    """Where a list of numbers lies between two strings, if it is whole and the value of a key."""
    if not (first := _STARTS_NUMBERS.search(part)):
        return None
    start = first.start(1)
    ends = [place for place in (part.find(brace, start) for brace in (b"{", b"}")) if place >= 0]
    stop = part.rfind(b"]", start, min(ends, default=len(part))) + 1
    # It is whole if as many brackets end as begin. Others, as in {"a": [1, "b"]}, hold more than numbers.
    blocks = [(place, min(place + _BLOCK, stop)) for place in range(start, stop, _BLOCK)]
    surplus = sum(part.count(b"]", *block) - part.count(b"[", *block) for block in blocks)
    return slice(start, stop) if stop and surplus == 0 else None


def _is_structure(structure: bytes, shape: tuple[int, ...]) -> bool:
    """Whether these are the brackets and commas of an array of that shape."""
    if len(structure) != _length_of(shape):
        return False
    wanted = b""
    for size in reversed(shape):
        wanted = b"[" + b",".join([wanted] * size) + b"]"
    return structure == wanted


def _length_of(shape: tuple[int, ...]) -> int:
    """How many brackets and commas an array has."""
    length = 0
    for size in reversed(shape):
        length = size * (length + 1) + 1
    return length


def _translate(text: bytes, table: bytes | None, delete: bytes) -> bytes:
    """As `bytes.translate`, but others may run in between."""
    return b"".join(text[start : start + _BLOCK].translate(table, delete) for start in range(0, len(text), _BLOCK))


def _too_many() -> BodyTooLarge:
    return BodyTooLarge(
        f"The JSON body has more than {MAX_ENTRIES} entries, the most that is allowed. Numbers of a list count, too, "
        "if it holds anything else, such as NaN, null, true or text."
    )
