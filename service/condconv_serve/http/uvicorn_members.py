"""What the guard needs of uvicorn beyond its documented interface, and whether the installed version has it."""

from __future__ import annotations

from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from condconv_serve.errors import ConfigurationError

_USED = {
    # Methods are looked for in the class, attributes among those that its constructor sets.
    HttpToolsProtocol: (
        *("_unset_keepalive_if_required", "cycle", "expect_100_continue", "flow", "parser", "pipeline"),
        "timeout_keep_alive_task",
    ),
    RequestResponseCycle: ("disconnected", "keep_alive", "message_event", "more_body", "response_complete"),
}


def check_uvicorn(guard: type, *, protocol: type = HttpToolsProtocol, cycle: type = RequestResponseCycle) -> None:
    """Check that uvicorn has what the guard replaces or sets. Under another name uvicorn would not use it.

    Args:
        guard: each public member of it replaces one of `protocol`.
        protocol: uvicorn's protocol.
        cycle: uvicorn's request with its answer.

    Raises:
        ConfigurationError: something is missing.
    """
    replaced = [name for name in vars(guard) if not name.startswith("_")]
    needed = [(protocol, name) for name in (*replaced, *_USED[HttpToolsProtocol])]
    needed += [(cycle, name) for name in _USED[RequestResponseCycle]]
    missing = [name for owner, name in needed if name not in {*dir(owner), *_set_by_constructor(owner)}]
    if missing:
        raise ConfigurationError(
            f"uvicorn {uvicorn.__version__} lacks {', '.join(missing)}, so slow and silent clients could not be cut "
            "off; install a version that condconv-serve allows: pip install --upgrade condconv-serve."
        )


def _set_by_constructor(owner: type) -> tuple[str, ...]:
    code: Any = getattr(vars(owner).get("__init__"), "__code__", None)
    return code.co_names if code else ()
