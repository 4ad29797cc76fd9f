"""Draws pictures for requests, one at a time, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from condconv_serve.domain import RoutingTrace
from condconv_serve.routing.provenance import Provenance

Traces = Sequence[tuple[str, RoutingTrace]]
"""A title and the routing weights of each image."""


def _draw(traces: Traces, kind: str, made_by: Provenance) -> bytes:
    from condconv_serve.routing.picture import Look  # matplotlib takes a while to import
    from condconv_serve.routing.plot import draw_routing

    return draw_routing(traces, Look(kind=kind, made_by=made_by))


class Drawer:
    """One thread for pictures: matplotlib holds the interpreter, so two at once would only slow each other down.

    Use as a context manager; leaving it begins no further picture, and waits for none.
    """

    def __init__(self, draw: Callable[[Traces, str, Provenance], bytes] = _draw) -> None:
        """Prepare; the thread starts with the first picture."""
        self._draw = draw
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")

    async def draw(self, traces: Traces, kind: str, made_by: Provenance) -> bytes:
        """Draw one heat map per image, as `condconv_serve.routing.plot.draw_routing` does.

        Args:
            traces: at least one image's.
            kind: of file: png or svg.
            made_by: what made it.

        Raises:
            InvalidParameter: a static network's empty routing.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._draw, traces, kind, made_by)

    def __enter__(self) -> Drawer:
        """Draw."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Draw no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
