"""JSON documents of a known shape: read within limits, checked for their schema version, and validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from condconv_serve.files import FileTooLarge, NoOrdinaryFile, read_limited
from condconv_serve.validation import Place, describe_errors, dotted

Document = TypeVar("Document", bound=BaseModel)
_MAX_BYTES = 2**20


def read_document(file: Path, kind: type[Document], *, name: str, error: type[Exception]) -> Document | None:
    """Read and validate a JSON document of a megabyte at most.

    Args:
        file: where it is.
        kind: its shape.
        name: what messages call it.
        error: what to raise.

    Returns:
        The document; None if there is no such file.

    Raises:
        Exception: it can't be read or is no such document, as an `error`; says why.
    """
    try:
        raw = read_limited(file, _MAX_BYTES)
    except FileNotFoundError:
        return None
    except NoOrdinaryFile as reason:
        raise error(f"{name} is no ordinary file.") from reason
    except FileTooLarge as reason:
        raise error(f"{name} has more than {_MAX_BYTES} bytes.") from reason
    except OSError as reason:
        raise error(f"{name} can't be read.") from reason
    return parse_document(raw, kind, name=name, error=error)


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
