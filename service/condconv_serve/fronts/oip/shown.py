"""What somebody sent, as messages of errors show it: as JSON has it, not Python, and cut to a length that fits."""

from __future__ import annotations

from typing import Any

import pydantic_core

from condconv_serve.fronts.json_documents import Numbers

_LONGEST = 100
"""Most characters that are shown."""


def shown(value: Any) -> str:
    """A value of a request, for a message: `'text'`, `null`, `[1, 2]`."""
    if isinstance(value, str):
        text = repr(value[: _LONGEST + 1])
    elif isinstance(value, Numbers):
        text = str(value)
    else:
        text = pydantic_core.to_json(value, inf_nan_mode="constants", fallback=str).decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
