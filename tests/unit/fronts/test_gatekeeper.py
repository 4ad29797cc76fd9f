"""Who may do what, and until when: as a front of any protocol asks."""

from __future__ import annotations

import time
from hashlib import sha256

import pytest

from condconv_serve.domain.facts import KeyScope, RequestFacts, deadline_by
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import Forbidden, InvalidParameter, NotReady, RateLimited, Unauthenticated
from condconv_serve.fronts.gatekeeper import Gatekeeper, demand
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.inference.batching import Priority
from condconv_serve.serving.readiness import Readiness


def request() -> RequestFacts:
    return RequestFacts(request_id="mine", trace=TraceContext.following(None))


def key(name: str, *scopes: KeyScope, requests_per_minute: int | None = None) -> ApiKey:
    digest = sha256(name.encode()).hexdigest()
    return ApiKey(name=name, scopes=scopes, sha256=digest, requests_per_minute=requests_per_minute)


def keeper(*, keys: bool = True, open_admin: bool = True) -> Gatekeeper:
    ring = KeyRing(
        [key("user", "predict"), key("admin", "admin"), key("suspended"), key("slow", "predict", requests_per_minute=2)]
    )
    readiness = Readiness(lambda: None)
    readiness.loaded()
    return Gatekeeper(readiness, keys=ring if keys else None, open_admin=open_admin, request_timeout=20.0)


@pytest.mark.parametrize(("secret", "grants"), [("user", {"predict"}), ("admin", {"predict", "admin"})])
async def test_a_key_tells_who_it_is_and_what_it_allows(secret: str, grants: set[str]) -> None:
    facts = request()
    await keeper().admit(facts, secret=secret)
    assert (facts.key_name, facts.grants) == (secret, grants)


@pytest.mark.parametrize("secret", [None, "", "wrong"])
async def test_without_a_known_key_nobody_comes_in(secret: str | None) -> None:
    facts = request()
    with pytest.raises(Unauthenticated):
        await keeper().admit(facts, secret=secret)
    assert (facts.key_name, facts.grants) == (None, set())


async def test_a_suspended_key_is_named_but_refused() -> None:
    facts = request()
    with pytest.raises(Forbidden, match="scope predict"):
        await keeper().admit(facts, secret="suspended")
    assert facts.key_name == "suspended"


async def test_requests_are_counted_once_they_are_let_in() -> None:
    gatekeeper = keeper()
    for _ in range(2):
        await gatekeeper.admit(request(), secret="slow")
    with pytest.raises(RateLimited, match="2 requests per minute"):
        await gatekeeper.admit(request(), secret="slow")
    await gatekeeper.admit(request(), secret="user")


@pytest.mark.parametrize(("open_admin", "grants"), [(True, {"predict", "admin"}), (False, {"predict"})])
async def test_without_keys_everybody_comes_in(open_admin: bool, grants: set[str]) -> None:
    facts, gatekeeper = request(), keeper(keys=False, open_admin=open_admin)
    assert not gatekeeper.asks_for_keys
    await gatekeeper.admit(facts, secret=None)
    assert (facts.key_name, facts.grants) == (None, grants)


async def test_more_than_predict_must_be_asked_for() -> None:
    facts = request()
    with pytest.raises(Forbidden, match="scope admin"):
        demand(facts, "admin")
    await keeper().admit(facts, secret="user")
    with pytest.raises(Forbidden, match="scope admin"):
        demand(facts, "admin")
    await keeper().admit(facts, secret="admin")
    demand(facts, "admin")


def test_while_it_loads_nothing_is_taken() -> None:
    readiness = Readiness(lambda: None)
    gatekeeper = Gatekeeper(readiness)
    with pytest.raises(NotReady, match="loading") as refused:
        gatekeeper.check_ready()
    assert refused.value.retry_after == 5
    readiness.loaded()
    gatekeeper.check_ready()


@pytest.mark.parametrize(
    ("timeout_ms", "seconds", "by"),
    [(None, 20.0, "service"), (1, 0.001, "caller"), (19_999, 19.999, "caller"), (20_000, 20.0, "service")],
)
def test_the_deadline_is_the_callers_or_the_servers(timeout_ms: int | None, seconds: float, by: str) -> None:
    before = time.monotonic()
    deadline = keeper().deadline(timeout_ms)
    assert before + seconds <= deadline <= time.monotonic() + seconds
    assert deadline_by(deadline) == by


def test_a_caller_may_not_wait_for_longer_than_the_server() -> None:
    with pytest.raises(InvalidParameter, match="timeout_ms may be at most 20000, not 20001"):
        keeper().deadline(20_001)


def test_priorities_by_name() -> None:
    assert [keeper().priority(name) for name in ("high", "normal", "LOW")] == list(Priority)
    with pytest.raises(InvalidParameter, match="priority may be one of high, normal, low, not 'urgent'"):
        keeper().priority("urgent")


def test_versions_are_split_by_the_callers_key_or_by_request() -> None:
    gatekeeper = keeper()
    assert gatekeeper.split_key(request(), "user 7") == "user 7"
    assert gatekeeper.split_key(request(), None) == gatekeeper.split_key(request(), "") == "mine"
