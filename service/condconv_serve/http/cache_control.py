"""What a request's `Cache-Control` says, and what the answer's `Cache-Status` says about the response cache."""

from __future__ import annotations

from condconv_serve.domain.caching import FROM_CACHE
from condconv_serve.domain.facts import RequestFacts

CACHE_CONTROL_HEADER = "Cache-Control"
CACHE_STATUS_HEADER = "Cache-Status"
"""Says where the answer came from (RFC 9211), if there is a response cache."""

_NAME = "condconv-serve"


def note_cache_control(facts: RequestFacts, value: str | None) -> None:
    """Note what a request's sender asks for, as RFC 9111 has it.

    `no-cache`: no answer that was computed earlier. `max-age=60`: none older than a minute. `no-store`: its own answer
    isn't kept. `only-if-cached`: nothing is computed. Other directives change nothing, since answers don't become
    stale.

    Args:
        facts: of the request.
        value: of its header, several ones joined by commas; None without one.
    """
    if not value:
        return
    for directive in value.split(","):  # none that counts here has a comma in it
        name, _, argument = directive.partition("=")
        match name.strip().lower():
            case "no-cache":
                facts.cache_max_age = 0.0
            case "no-store":
                facts.cache_store = False
            case "only-if-cached":
                facts.cache_only = True
            case "max-age":
                facts.cache_max_age = min(facts.cache_max_age, _seconds(argument.strip().strip('"')))


def cache_status(facts: RequestFacts) -> str | None:
    """What to tell of where a request's answer came from; None if no cache was asked."""
    if not facts.cached:
        return None
    images, found = sum(facts.cached.values()), sum(facts.cached.get(result, 0) for result in FROM_CACHE)
    if facts.cached.get("hit") == images:
        return f"{_NAME}; hit"
    if found == images:
        return f"{_NAME}; fwd=miss; collapsed"
    if found:
        return f'{_NAME}; fwd=partial; detail="{found} of {images} images"'
    return f"{_NAME}; fwd=request" if facts.cached.get("bypass") else f"{_NAME}; fwd=miss"


def _seconds(text: str) -> float:
    """An age; one that can't be read counts as 0, so that nobody gets an answer that is older than asked for."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0.0
