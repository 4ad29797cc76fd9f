"""The Accept header: which form of an answer a client prefers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Form = TypeVar("Form", bound=str)


def preferred(accept: str, by_type: Mapping[str, Form], *, otherwise: Form) -> Form:
    """The form that an Accept header prefers.

    Args:
        accept: the header.
        by_type: forms by media type; `image/*` and the like may be among them.
        otherwise: if the header names none of them, or takes anything.
    """
    best: tuple[float, Form] = (0.0, otherwise)
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = _quality(parameters)
        name = otherwise if media_type in ("*/*", "application/*") else by_type.get(media_type)
        if name is not None and quality > best[0]:
            best = (quality, name)
    return best[1]


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
