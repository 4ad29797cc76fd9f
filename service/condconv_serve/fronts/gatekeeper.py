"""What every request passes, in every front: key, rate, readiness, deadline, priority, split key. Knows no protocol."""

from __future__ import annotations

import time
from typing import Protocol

from condconv_serve.domain.facts import Deadline, DeadlineBy, KeyScope, RequestFacts
from condconv_serve.errors import CapacityError, Forbidden, InvalidParameter, Unauthenticated
from condconv_serve.fronts.keys import ALL_SCOPES, ApiKey, KeyRing
from condconv_serve.fronts.rates import RateLimits, Rates
from condconv_serve.inference.batching import Priority

API_KEY_HEADER = "X-API-Key"  # pragma: allowlist secret
"""Name of the header, or of the gRPC metadata, that holds an API key."""

SPLIT_KEY_HEADER = "X-Split-Key"
"""Name of the header, or of the gRPC metadata. Equal values get equal versions, so a user stays with one version."""


class ReadyState(Protocol):
    """Whether requests can be answered: `condconv_serve.serving.readiness.Readiness`, or its mirror elsewhere."""

    @property
    def draining(self) -> bool:
        """Whether the service is about to end."""
        ...

    def refusal(self) -> CapacityError | None:
        """Why requests can't be answered now; None if they can."""
        ...

    def unready(self) -> CapacityError | None:
        """Why requests should go elsewhere; None if they should come."""
        ...

    def problems(self) -> list[str]:
        """What else is wrong, a sentence each."""
        ...


class Gatekeeper:
    """Decides who may do what, and until when. All fronts of a service share one, since it counts requests by key."""

    def __init__(
        self,
        readiness: ReadyState,
        *,
        keys: KeyRing | None = None,
        open_admin: bool = True,
        request_timeout: float = 30.0,
        rates: Rates | None = None,
    ) -> None:
        """Take the rules.

        Args:
            readiness: says whether requests can be answered.
            keys: the API keys that are accepted; None lets everybody in.
            open_admin: whether everybody has the scope `admin` if there are no keys.
            request_timeout: most seconds that an answer may take.
            rates: counts requests by key; those of this process if None.
        """
        self._readiness = readiness
        self._keys = keys
        self._open_grants = ALL_SCOPES if open_admin else frozenset[KeyScope]({"predict"})
        self._request_timeout = request_timeout
        self._rates = rates or RateLimits()

    @property
    def asks_for_keys(self) -> bool:
        """Whether requests need an API key."""
        return self._keys is not None

    async def admit(self, facts: RequestFacts, *, secret: str | None) -> None:
        """Let a request in if its key has the scope `predict`, and count it.

        Notes the key's name and scopes in `facts`. Call it once for each request, before anything else.

        Args:
            facts: of the request.
            secret: the API key of the request, if it has one.

        Raises:
            Unauthenticated: there is no key, or an unknown one.
            Forbidden: the key lacks the scope.
            RateLimited: the key has used up its requests of the last minute.
        """
        if key := self.identify(facts, secret=secret):
            await self._rates.use(key)

    def identify(self, facts: RequestFacts, *, secret: str | None) -> ApiKey | None:
        """Do the same without counting, for connections on which requests will come; each of them is admitted.

        Returns:
            The key; None if there are no keys.
        """
        if self._keys is None:
            facts.grants = self._open_grants
            return None
        if not secret:
            raise Unauthenticated(f"An API key is needed, as {API_KEY_HEADER} or as Authorization: Bearer.")
        key = self._keys.find(secret)
        facts.key_name, facts.grants = key.name, key.grants
        demand(facts, "predict")
        return key

    def check_ready(self) -> None:
        """Refuse a request that can't be answered now.

        Raises:
            CapacityError: why it can't, and when a new try makes sense.
        """
        if reason := self._readiness.refusal():
            raise reason

    @property
    def request_timeout(self) -> float:
        """Most seconds that an answer may take."""
        return self._request_timeout

    def deadline(self, timeout_ms: float | None = None) -> Deadline:
        """When a request that starts now must be answered, on the monotonic clock.

        Args:
            timeout_ms: milliseconds that the caller waits; None means the server's longest.

        Raises:
            InvalidParameter: `timeout_ms` is longer than the server allows.
        """
        longest = self._request_timeout
        if timeout_ms is None:
            return Deadline(time.monotonic() + longest, by="service")
        if timeout_ms > longest * 1e3:
            raise InvalidParameter(f"timeout_ms may be at most {longest * 1e3:.0f}, not {timeout_ms}.")
        by: DeadlineBy = "caller" if timeout_ms < longest * 1e3 else "service"
        return Deadline(time.monotonic() + timeout_ms / 1e3, by=by)

    def priority(self, name: str) -> Priority:
        """The priority of a name: high, normal or low.

        Raises:
            InvalidParameter: there is no such priority.
        """
        try:
            return Priority[name.upper()]
        except KeyError as error:
            names = ", ".join(priority.name.lower() for priority in Priority)
            raise InvalidParameter(f"priority may be one of {names}, not {name[:100]!r}.") from error

    def split_key(self, facts: RequestFacts, given: str | None) -> str:
        """The key that picks a version where an alias splits traffic: the caller's own, or else the request's id."""
        return given or facts.request_id


def demand(facts: RequestFacts, scope: KeyScope) -> None:
    """Refuse a request without a scope. A request that wasn't admitted has no scopes.

    Raises:
        Forbidden: the request's API key lacks the scope.
    """
    if scope not in facts.grants:
        raise Forbidden(f"This needs an API key with the scope {scope}.")
