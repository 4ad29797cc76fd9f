"""How often a key may be used."""

from __future__ import annotations

from hashlib import sha256

import pytest

from condconv_serve.errors import RateLimited
from condconv_serve.fronts.keys import ApiKey
from condconv_serve.fronts.rates import RateLimits

HASH = sha256(b"secret").hexdigest()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(name: str, requests_per_minute: int | None) -> ApiKey:
    return ApiKey(name=name, scopes=("predict",), sha256=HASH, requests_per_minute=requests_per_minute)


async def test_rate_is_per_key_and_says_when_to_come_back() -> None:
    rates = RateLimits()
    for _ in range(3):
        await rates.use(key("a", 3))
    with pytest.raises(RateLimited, match="3 requests per minute") as caught:
        await rates.use(key("a", 3))
    assert caught.value.retry_after is not None
    assert 55 < caught.value.retry_after <= 60
    await rates.use(key("b", 3))


async def test_window_moves() -> None:
    clock = Clock()
    rates, limited = RateLimits(clock=clock), key("a", 2)
    await rates.use(limited)
    clock.now += 40
    await rates.use(limited)
    with pytest.raises(RateLimited) as caught:
        await rates.use(limited)
    assert caught.value.retry_after == pytest.approx(20)
    clock.now += 20.5
    await rates.use(limited)
    with pytest.raises(RateLimited):
        await rates.use(limited)


async def test_without_a_rate_there_is_no_limit() -> None:
    rates = RateLimits()
    for _ in range(1000):
        await rates.use(key("a", None))
