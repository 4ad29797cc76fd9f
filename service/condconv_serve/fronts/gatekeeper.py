"""What every request has to pass, whichever front it comes to. Knows no protocol: a front reads and writes its own."""

from __future__ import annotations

import time

from condconv_serve.domain.facts import KeyScope, RequestFacts
from condconv_serve.errors import Forbidden, InvalidParameter, Unauthenticated
from condconv_serve.fronts.keys import ALL_SCOPES, KeyRing
from condconv_serve.fronts.rates import RateLimits
from condconv_serve.inference.batching import Priority
from condconv_serve.serving.readiness import Readiness

API_KEY_HEADER = "X-API-Key"  # pragma: allowlist secret
"""Name of the header, or of the gRPC metadata, that holds an API key."""

SPLIT_KEY_HEADER = "X-Split-Key"
"""Name of the header, or of the gRPC metadata: equal values get equal versions, so a user stays with one of them."""


class Gatekeeper:
    """Decides who may do what, and until when. One for all fronts of a service, since it counts requests by key."""

    def __init__(
        self,
        readiness: Readiness,
        *,
        keys: KeyRing | None = None,
        open_admin: bool = True,
        request_timeout: float = 30.0,
    ) -> None:
        """Take the rules.

        Args:
            readiness: says whether requests can be answered.
            keys: the API keys that are taken; None lets everybody in.
            open_admin: whether everybody may also do what needs the scope `admin`, where there are no keys.
            request_timeout: the most seconds that an answer may take.
        """
        self._readiness = readiness
        self._keys = keys
        self._open_grants = ALL_SCOPES if open_admin else frozenset[KeyScope]({"predict"})
        self._request_timeout = request_timeout
        self._rates = RateLimits()

    @property
    def asks_for_keys(self) -> bool:
        """Whether requests need an API key."""
        return self._keys is not None

    def admit(self, facts: RequestFacts, *, secret: str | None) -> None:
        """Let a request in that may `predict`, and count it. Who came with it, and what that allows, goes to `facts`.

        Call it once for each request, before anything of the request is looked at.

        Args:
            facts: of the request.
            secret: the API key that it came with, if any.

        Raises:
            Unauthenticated: there is no key, or an unknown one.
            Forbidden: the key lacks the scope.
            RateLimited: the key has had its requests of the last minute.
        """
        if self._keys is None:
            facts.grants = self._open_grants
            return
        if not secret:
            raise Unauthenticated(f"An API key is needed, as {API_KEY_HEADER} or as Authorization: Bearer.")
        key = self._keys.find(secret)
        facts.key_name, facts.grants = key.name, key.grants
        demand(facts, "predict")
        self._rates.use(key)

    def check_ready(self) -> None:
        """Refuse what can't be answered now.

        Raises:
            CapacityError: why it can't, and when a new try makes sense.
        """
        if reason := self._readiness.refusal():
            raise reason

    def deadline(self, timeout_ms: int | None = None) -> float:
        """When a request that starts now must be answered, on the monotonic clock.

        Args:
            timeout_ms: milliseconds that the caller waits; None means as long as the server lets it.

        Raises:
            InvalidParameter: that is longer than the server lets it.
        """
        longest = self._request_timeout
        if timeout_ms is None:
            return time.monotonic() + longest
        if timeout_ms > longest * 1e3:
            raise InvalidParameter(f"timeout_ms may be at most {longest * 1e3:.0f}, not {timeout_ms}.")
        return time.monotonic() + timeout_ms / 1e3

    def priority(self, name: str) -> Priority:
        """The priority of a name: high, normal or low.

        Raises:
            InvalidParameter: it is none of these.
        """
        try:
            return Priority[name.upper()]
        except KeyError as error:
            names = ", ".join(priority.name.lower() for priority in Priority)
            raise InvalidParameter(f"priority may be one of {names}, not {name[:100]!r}.") from error

    def split_key(self, facts: RequestFacts, given: str | None) -> str:
        """What decides which version a request gets where an alias splits traffic: what the caller gave, or its id."""
        return given or facts.request_id


def demand(facts: RequestFacts, scope: KeyScope) -> None:
    """Refuse a request that lacks a scope; one that hasn't been admitted has none.

    Raises:
        Forbidden: its API key lacks the scope.
    """
    if scope not in facts.grants:
        raise Forbidden(f"This needs an API key with the scope {scope}.")
