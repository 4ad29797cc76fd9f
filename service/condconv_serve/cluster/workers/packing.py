"""The messages of each row as plain tuples, which take a tenth of the time to pickle that tuples with names take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from condconv_serve.cluster.workers.arena import Layout, Placed
from condconv_serve.cluster.workers.messages import Ended, Logged, Open, RowDone, RowMade
from condconv_serve.domain import Placement

_PLACEMENT = ("photo_width", "photo_height", "left", "top", "width", "height")
_fields_of_placement = attrgetter(*_PLACEMENT)


def pack(message: Any) -> Any:
    """A plain tuple that begins with the name of the message's type; any other message as it is."""
    kind = type(message)
    found = _PACKED.get(kind)
    return message if found is None else (kind.__name__, *found(message))


def unpack(packed: Any) -> Any:
    """The message again.

    Raises:
        KeyError, TypeError, ValueError: nothing that `pack` has made.
    """
    if type(packed) is not tuple:  # a tuple with names is another type
        return packed
    kind, *fields = packed
    return _UNPACKED[kind](*fields)


def _open(message: Open) -> tuple[Any, ...]:
    logged = message.logged
    return message if logged is None else message._replace(logged=tuple(logged))  # type: ignore[arg-type]


def _named_open(*fields: Any) -> Open:
    message = Open(*fields)
    return message if message.logged is None else message._replace(logged=Logged(*message.logged))


def _row_made(message: RowMade) -> tuple[Any, ...]:
    number, row, seconds, placement, arena, slot, placed, array, copies = message
    place = None if placed is None else tuple(placed)
    return number, row, seconds, _placement(placement), arena, slot, place, array, copies


def _named_row_made(*fields: Any) -> RowMade:
    number, row, seconds, placement, arena, slot, placed, array, copies = fields
    place = None if placed is None else Placed(*placed)
    return RowMade(number, row, seconds, _named_placement(placement), arena, slot, place, array, copies)


def _ended(message: Ended) -> tuple[Any, ...]:
    number, outcomes, error, spare_rows = message
    return number, [_row_done(row) if isinstance(row, RowDone) else row for row in outcomes], error, spare_rows


def _named_ended(number: int, outcomes: list[Any], *rest: Any) -> Ended:
    return Ended(number, tuple([_named_row_done(*row) if type(row) is tuple else row for row in outcomes]), *rest)


def _row_done(row: RowDone) -> tuple[Any, ...]:
    decode, queue, inference, total, batch_size, placement, cache, layout, tensors = row
    lie = None if layout is None else _layout(layout)
    return decode, queue, inference, total, batch_size, _placement(placement), cache, lie, tensors


def _named_row_done(*fields: Any) -> RowDone:
    decode, queue, inference, total, batch_size, placement, cache, layout, tensors = fields
    lie = None if layout is None else _named_layout(layout)
    return RowDone(decode, queue, inference, total, batch_size, _named_placement(placement), cache, lie, tensors)


def _placement(placement: Placement | None) -> tuple[float, ...] | None:
    return None if placement is None else _fields_of_placement(placement)


def _named_placement(fields: tuple[Any, ...] | None) -> Placement | None:
    return None if fields is None else Placement(**dict(zip(_PLACEMENT, fields, strict=True)))


@functools.lru_cache(maxsize=256)
def _layout(layout: Layout) -> tuple[Any, ...]:
    return tuple((name, tuple(placed)) for name, placed in layout)


@functools.lru_cache(maxsize=256)
def _named_layout(plain: tuple[Any, ...]) -> Layout:
    return tuple((name, Placed(*placed)) for name, placed in plain)


_PACKED: Mapping[type, Callable[[Any], tuple[Any, ...]]] = {Open: _open, RowMade: _row_made, Ended: _ended}
_UNPACKED: Mapping[str, Callable[..., Any]] = {
    "Open": _named_open,
    "RowMade": _named_row_made,
    "Ended": _named_ended,
}
