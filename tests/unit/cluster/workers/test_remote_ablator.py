"""Places of fronts in the engine process's queue for ablations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.messages import Returned
from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.cluster.workers.remote_parts import RemoteAblator
from condconv_serve.errors import AblationBusy
from tests.contract.until import until
from tests.unit.cluster.workers.pair import connected


async def test_places_are_those_of_all_fronts_and_come_back() -> None:
    async with connected() as pair:
        engine = RemoteEngine()
        await pair.connect(engine)
        here, there = RemoteAblator(pair.engine), RemoteAblator(engine)
        async with here.admit():
            async with there.admit():
                for ablator in (here, there):
                    with pytest.raises(AblationBusy):
                        await ablator.check()
                    with pytest.raises(AblationBusy):
                        async with ablator.admit():
                            pass
            await until(lambda: pair.ablator._waiting == 1)
            async with there.admit():
                engine.close()  # killed
                await until(lambda: pair.ablator._waiting == 1)
        await until(lambda: pair.ablator._waiting == 0)


async def test_a_caller_who_leaves_when_a_place_is_given_leaves_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with RemoteAblator(pair.engine).admit():
            await asyncio.Event().wait()

    async with connected() as pair:
        session = pair.engine._session
        assert session is not None
        take = session._link._on_message

        def leave_and_take(message: Any, link: Link) -> None:
            if isinstance(message, Returned):
                asked.cancel()
            take(message, link)

        monkeypatch.setattr(session._link, "_on_message", leave_and_take)
        asked = asyncio.create_task(ask())
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: pair.ablator._waiting == 0)


async def test_a_place_in_an_engine_process_that_has_gone_is_none_in_the_next_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as pair:
        ablator = RemoteAblator(pair.engine)
        async with ablator.admit():
            pair.sessions[0].close()
            await until(pair.engine.readiness.refusal)
            await until(lambda: pair.ablator._waiting == 0)
            await pair.connect()
            other = ablator.admit()
            await other.__aenter__()
        await pair.engine.call("ablator.check")
        await asyncio.sleep(0.02)
        assert pair.ablator._waiting == 1, "another one's place was given back"
        await other.__aexit__(None, None, None)
        await until(lambda: pair.ablator._waiting == 0)
    assert not caplog.records
