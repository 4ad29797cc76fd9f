"""Work for a client that has gone ends; work for one that waits is returned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from condconv_serve.errors import InferenceFailed
from condconv_serve.http.disconnect import unless_disconnected


def request_of(messages: asyncio.Queue[dict[str, Any]]) -> Request:
    return Request({"type": "http"}, receive=messages.get)


async def test_result_and_error_are_passed_on() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise InferenceFailed("No.")

    request = request_of(asyncio.Queue())
    assert await unless_disconnected(request, answer()) == 7
    with pytest.raises(InferenceFailed):
        await unless_disconnected(request, fail())


async def test_work_is_cancelled_and_has_ended_when_the_client_has_gone() -> None:
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended = True

    task = asyncio.create_task(unless_disconnected(request_of(messages), work()))
    await asyncio.sleep(0.01)
    messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    await asyncio.sleep(0.01)
    assert not task.done(), "the end of the body is no disconnect"
    messages.put_nowait({"type": "http.disconnect"})
    with pytest.raises(ClientDisconnect):
        await asyncio.wait_for(task, 60)
    assert ended


async def test_cancelling_from_outside_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    task = asyncio.create_task(unless_disconnected(request_of(asyncio.Queue()), work()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
