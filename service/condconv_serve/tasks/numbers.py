"""Numbers that come with a request: what is none, or not in its range, is refused by name."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from condconv_serve.errors import InvalidParameter


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1.

    Raises:
        InvalidParameter: says what is allowed.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise InvalidParameter(f"{name} must be from 0 to 1, not {_shown(value)}.")


def check_count(name: str, value: Any, *, most: int, remark: str = "") -> None:
    """Refuse what is no whole number from 1 to `most`; `remark` says what that is.

    Raises:
        InvalidParameter: says what is allowed.
    """
    whole = "" if isinstance(value, Integral) else "a whole number "
    if whole or not _is_number(value) or not 1 <= value <= most:
        raise InvalidParameter(f"{name} must be {whole}from 1 to {most}{remark}, not {_shown(value)}.")


def _is_number(value: Any) -> bool:
    """Whether it is a number of Python or NumPy; True and False would pass for 1 and 0."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return str(value) if _is_number(value) else repr(value)[:100]
