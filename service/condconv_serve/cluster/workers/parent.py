"""The supervising process, as its children see it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.orders import Alive, Connect, Disconnected, Failed, Started, StartFront
from condconv_serve.errors import ServiceError

BEAT_SECONDS = 1.0
"""How often a child says that it doesn't hang."""


class Parent:
    """The supervising process, as its child sees it.

    Attributes:
        orders: what it says, in order, each with the socket that came along, if one did.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Listen to it. If it dies, so does this process."""
        self.orders: asyncio.Queue[tuple[Any, socket.socket | None]] = asyncio.Queue()
        self._link = Link(connection, on_message=self._take, on_close=lambda _: os._exit(1))
        self._beat()

    def _beat(self) -> None:
        if not self._link.stalls:
            self._link.send(Alive())
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def tell_started(self) -> None:
        """This process serves now."""
        self._link.send(Started())

    def tell_disconnected(self) -> None:
        """This front has lost the engine process."""
        self._link.send(Disconnected())

    async def tell_failed(self, error: ServiceError) -> None:
        """This process can't serve."""
        self._link.send(Failed(error))
        await asyncio.sleep(0)  # it goes at the end of this turn of the loop

    def _take(self, message: Any, link: Link) -> None:
        with_file = isinstance(message, (Connect, StartFront))
        self.orders.put_nowait((message, socket.socket(fileno=link.take_file()) if with_file else None))
