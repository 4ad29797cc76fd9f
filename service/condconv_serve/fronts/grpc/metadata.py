"""What clients send along with a call, and what goes back with its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from condconv_serve.domain.facts import RequestFacts
from condconv_serve.fronts.gatekeeper import API_KEY_HEADER, SPLIT_KEY_HEADER
from condconv_serve.http.cache_control import CACHE_CONTROL_HEADER, CACHE_STATUS_HEADER, cache_status

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
TRACERESPONSE = "traceresponse"
CACHE_CONTROL = CACHE_CONTROL_HEADER.lower()
CACHE_STATUS = CACHE_STATUS_HEADER.lower()
API_KEY = API_KEY_HEADER.lower()
SPLIT_KEY = SPLIT_KEY_HEADER.lower()
_BEARER = "bearer "


def readable(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Metadata by name; values that are bytes are left out.

    The last value counts, but for `cache-control`: all its directives do, in one value or in several.
    """
    found: dict[str, str] = {}
    for name, value in metadata or ():
        if isinstance(value, str):
            found[name] = f"{found[name]}, {value}" if name == CACHE_CONTROL and name in found else value
    return found


def secret_of(metadata: Mapping[str, str]) -> str | None:
    """The API key: `x-api-key`, or else `authorization: Bearer`, which a proxy may want for itself."""
    if key := metadata.get(API_KEY):
        return key
    authorization = metadata.get("authorization", "")
    return authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else None


def with_answer(facts: RequestFacts) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of every answer."""
    status = cache_status(facts)
    told = () if status is None else ((CACHE_STATUS, status),)
    return (REQUEST_ID, facts.request_id), (TRACERESPONSE, str(facts.trace)), *told
