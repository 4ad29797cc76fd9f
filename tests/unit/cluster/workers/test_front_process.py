"""The parts of a front, wired together."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from condconv_serve.cluster.workers.front_process import Front
from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.messages import Welcome
from condconv_serve.cluster.workers.orders import StartFront
from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.errors import NotReady
from condconv_serve.settings import Settings
from tests.contract.until import until


async def test_a_thread_that_waits_for_the_engine_process_does_not_keep_a_front_from_ending(tmp_path: Path) -> None:
    def wait() -> BaseException | None:
        """As the decoding of a JPEG by the model's own decoder."""
        return asyncio.run_coroutine_threadsafe(engine.call("anything"), loop).exception(20)

    loop, engine = asyncio.get_running_loop(), RemoteEngine()
    order = StartFront(Settings(), number=1, fronts=2, metrics=tmp_path, open_admin=False, probes=False)
    ours, theirs = socket.socketpair()
    heard = list[Any]()
    other = Link(theirs, on_message=lambda message, _: heard.append(message))
    other.send(Welcome(8))
    engine.connect(ours)
    session = engine._session
    await until(lambda: session is not None and session.welcomed)
    front = Front(order, engine)
    async with front.running():
        waiting = front.threads.submit(wait)
        await until(lambda: heard)
    assert isinstance(waiting.result(), NotReady)
    other.close()
