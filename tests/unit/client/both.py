"""Both clients behind one face, so that one suite tests them: `AsyncClient` works in an event loop of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from condconv_serve import AsyncClient, Client

KINDS = ("sync", "async")


class Blocking:
    """An `AsyncClient` that threads can use."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, {"close": "aclose"}.get(name, name))
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            answer = found(*arguments, **options)
            if inspect.isawaitable(answer):
                return self._runner.run(_await(answer))
            return self._each(answer) if isinstance(answer, AsyncIterator) else answer

        return call

    def _each(self, answers: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    answer = self._runner.run(_await(anext(answers)))
                except StopAsyncIteration:
                    return
                yield answer
        finally:
            self._runner.run(answers.aclose())  # type: ignore[attr-defined]


async def _await(answer: Awaitable[Any]) -> Any:
    return await answer


@contextmanager
def opened(kind: str, url: str | None = "http://server", **options: Any) -> Iterator[Any]:
    """A client of either kind."""
    if kind == "sync":
        with Client(url, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        blocking = Blocking(AsyncClient(url, **options), runner)
        try:
            yield blocking
        finally:
            blocking.close()


@contextmanager
def answered_by(kind: str, answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> Iterator[Any]:
    """A client of either kind whose requests a function answers."""
    with opened(kind, transport=httpx.MockTransport(answer), **options) as client:
        yield client
