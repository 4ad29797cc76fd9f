"""JSON documents of a known shape: read, checked for their schema version, and validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from condconv_serve.validation import Place, describe_errors, dotted

Document = TypeVar("Document", bound=BaseModel)


def parse_document(
    raw: bytes | str,
    kind: type[Document],
    *,
    name: str,
    error: type[Exception],
    newest: int = 1,
    valid: str = "valid",
    hint: str = "",
    write_place: Callable[[Place, Any], str] = lambda place, _: dotted(place),
) -> Document:
    """Validate a JSON document.

    A newer `schema_version` is reported before anything else, since a newer document may differ in any way.

    Args:
        raw: the document.
        kind: its shape.
        name: what messages call it.
        error: what to raise.
        newest: the newest schema version that `kind` describes.
        valid: completes the message `<name> is not ...`, such as `a valid catalogue`.
        hint: a sentence that ends every message.
        write_place: writes where an error is, given the place and the document.

    Raises:
        Exception: it is no JSON, newer, or not valid, as an `error`; says where and how.
    """
    hint = f" {hint}" if hint else ""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as reason:
        raise error(f"{name} is not valid JSON ({reason}).{hint}") from reason
    found = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(found, int) and found > newest:
        raise error(f"{name} has schema version {found}, newer than {newest}, the newest one known here.{hint}")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as reason:
        described = describe_errors(reason, write_place=lambda place: write_place(place, document))
        raise error(f"{name} is not {valid}: {described}.{hint}") from reason
