"""Names and versions of models, as a request gives them."""

from __future__ import annotations

from condconv_serve.errors import InvalidParameter

MAX_NAME = 256
"""Most characters of a model's name or version."""


def check_lengths(*names: str) -> None:
    """Refuse what is too long for a name or a version.

    Raises:
        InvalidParameter: one is.
    """
    if any(len(name) > MAX_NAME for name in names):
        raise InvalidParameter(f"Names and versions of models have at most {MAX_NAME} characters.")
