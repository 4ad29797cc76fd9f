"""Turns pydantic's validation errors into a sentence. Knows nothing else of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from pydantic import ValidationError

Place = Sequence[int | str]
"""Where an error is, as pydantic has it: names of fields and numbers of entries."""


def dotted(place: Place) -> str:
    """A place as people write it, `checkpoints.0.name`; empty for the whole."""
    return ".".join(map(str, place))


def describe_errors(
    error: ValidationError | Sequence[Any],
    *,
    most: int = 5,
    total: int | None = None,
    write_place: Callable[[Place], str] = dotted,
    whole: str = "document",
    unknown: str | None = None,
    show_values: bool = False,
    hide_unknown: bool = False,
) -> str:
    """Describe errors without a full stop: `mean: Field required; size: Input should be greater than 0 and 2 more`.

    Args:
        error: what pydantic raised, or its list of errors.
        most: how many errors are described; the others are counted.
        total: how many there are, if the list holds only the first ones.
        write_place: writes where an error is.
        whole: what to call the place of an error that is in no field.
        unknown: what to say of a field that doesn't exist; pydantic's own words if None.
        show_values: say what was given, too. Leave it out where a secret may stand.
        hide_unknown: leave out the name of a field that doesn't exist: it may be anything, even a secret.
    """
    found = _listed(error)
    parts = []
    for item in found[:most]:
        no_such = item["type"] == "extra_forbidden"
        place = write_place(item["loc"][:-1] if no_such and hide_unknown else item["loc"]) or whole
        message = unknown if no_such and unknown is not None else _message(item)
        given = f", not {item['input']!r}" if show_values else ""
        parts.append(f"{place}: {message}{given}")
    more = (total or len(found)) - len(parts)
    return "; ".join(parts) + (f" and {more} more" if more else "")


def first_message(error: ValidationError) -> str:
    """The first error without its place: for a single value, and where a place would say nothing."""
    return _message(error.errors(include_url=False)[0])


def wanted_values(error: ValidationError) -> Iterator[tuple[str, str]]:
    """The name of each wrong field of the first level, and what it should be: `Input should be A or B, not 'c'`.

    A field that may be of several kinds has an error for each; they become one.
    """
    for (name, given), kinds in groupby(_listed(error), lambda item: (item["loc"][0], repr(item["input"]))):
        first, *others = map(_message, kinds)
        wanted = " or ".join((first, *(other.removeprefix("Input should be ") for other in others)))
        yield str(name), f"{wanted}, not {given}"


def _listed(error: ValidationError | Sequence[Any]) -> Sequence[Any]:
    return error.errors(include_url=False) if isinstance(error, ValidationError) else error


def _message(item: Any) -> str:
    return str(item["msg"]).removeprefix("Value error, ")
