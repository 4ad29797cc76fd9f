"""What counts as an object, as requests of tensor protocols say it: in parameters, a query, or metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.detection import (
    DEFAULT_IOU_THRESHOLD,
    DEFAULT_MAX_DETECTIONS,
    DEFAULT_SCORE_THRESHOLD,
    MAX_DETECTIONS,
    Detect,
)

SHARES = ("score_threshold", "iou_threshold")
"""Parameters that are numbers from 0 to 1."""
MOST = "max_detections"
"""The parameter that is a whole number."""
THRESHOLDS = (*SHARES, MOST)
"""All of them, named as the fields of `Detect`."""
THRESHOLD_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "score_threshold": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": DEFAULT_SCORE_THRESHOLD,
        "description": "Only boxes with a higher score are objects. For models for detection.",
    },
    "iou_threshold": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": DEFAULT_IOU_THRESHOLD,
        "description": "Of two boxes of a class that overlap by more, the one with the lower score is left out.",
    },
    "max_detections": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_DETECTIONS,
        "default": DEFAULT_MAX_DETECTIONS,
        "description": "Most objects of an image, those with the highest scores.",
    },
}
"""How the OpenAPI documents describe them."""
_LONGEST = 100
_NUMBER = re.compile(r"(\d{1,20}(\.\d{0,40})?|\.\d{1,40})(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"\d{1,9}", re.ASCII)


def thresholds_of(given: Mapping[str, Any]) -> Detect | None:
    """Read the thresholds of a request.

    Args:
        given: parameters by name, as numbers or as text, since queries, metadata and older clients over gRPC have
            nothing else. Others than `THRESHOLDS` are passed over.

    Returns:
        None if it gives none.

    Raises:
        InvalidParameter: one isn't a number, or out of range; says what is allowed.
    """
    found: dict[str, Any] = {name: _share(given[name], name) for name in SHARES if name in given}
    if MOST in given:
        found[MOST] = _whole(given[MOST])
    return Detect(**found) if found else None


def _share(value: Any, name: str) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidParameter(f"{name} must be from 0 to 1, not {_shown(value)}.")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 1 <= value <= MAX_DETECTIONS:
        raise InvalidParameter(f"{MOST} must be a whole number from 1 to {MAX_DETECTIONS}, not {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    text = repr(value[:_LONGEST]) if isinstance(value, str) else str(value).lower()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
