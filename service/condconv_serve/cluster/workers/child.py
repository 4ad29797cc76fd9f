"""A child of the supervising process: learns from it what to be, and is that until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable

from prometheus_client import disable_created_metrics

from condconv_serve.cluster.workers.orders import StartEngine, StartFront
from condconv_serve.cluster.workers.parent import Parent
from condconv_serve.cluster.workers.spawning import end_with_parent, name_process
from condconv_serve.errors import ServiceError, unexpected_error
from condconv_serve.http.server import ENDING, HANGUP, IGNORED
from condconv_serve.telemetry.logs import configure_logging

logger = logging.getLogger(__name__)


def run(connection: socket.socket) -> int:
    """Be what the parent says.

    Args:
        connection: to the parent.

    Returns:
        The exit code.
    """
    end_with_parent()
    for number in (*ENDING, *HANGUP, *IGNORED):  # who sends them to all means the parent, which passes them on
        signal.signal(number, signal.SIG_IGN)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_be_what_is_asked(connection))


async def _be_what_is_asked(connection: socket.socket) -> int:
    parent = Parent(connection)
    order, listener = await parent.orders.get()
    configure_logging(order.settings.log_level, order.settings.log_format, on_thread=True)
    try:
        if isinstance(order, StartEngine):
            name_process("condconv-engine")
            from condconv_serve.cluster.workers.engine_process import run_engine

            await run_engine(order, parent)
        else:
            from condconv_serve.cluster.workers.front_process import run_front

            assert isinstance(order, StartFront)
            assert listener is not None
            name_process(f"condconv-front{order.number}"[:15])
            probes = (await parent.orders.get())[1] if order.probes else None
            await run_front(order, parent, listener, probes)
    except ServiceError as error:
        await parent.tell_failed(error)
        return 1
    except Exception:
        logger.exception("a process of the service met an unexpected error")
        await parent.tell_failed(unexpected_error())
        return 1
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def main() -> None:
    """Run in an interpreter of its own: the number of the connection is the only argument."""
    sys.exit(run(socket.socket(fileno=int(sys.argv[1]))))
