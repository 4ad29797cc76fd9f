"""Logs: one line per event, for people or for programs, with the ids of its request."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Literal, ParamSpec, TextIO, TypeVar

from pythonjsonlogger.json import JsonFormatter

from condconv_serve.domain.facts import RequestFacts
from condconv_serve.telemetry.log_thread import LogThread

LogFormat = Literal["auto", "json", "pretty"]
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


_request: ContextVar[RequestFacts | None] = ContextVar("condconv_request", default=None)


@contextlib.contextmanager
def request_logged_as(facts: RequestFacts) -> Iterator[None]:
    """Put a request's ids on every line logged inside the block, by this task and by tasks that it starts."""
    token = _request.set(facts)
    try:
        yield
    finally:
        _request.reset(token)


def current_request() -> RequestFacts | None:
    """The request whose ids this task's lines have; None outside of requests."""
    return _request.get()


class ContextThreads(ThreadPoolExecutor):
    """Threads that log with the ids of the request that they work for."""

    def submit(
        self, fn: Callable[Arguments, Returned], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Returned]:
        """Run a function in the caller's context."""
        return super().submit(partial(copy_context().run, fn, *args, **kwargs))


class _RequestIds(logging.Filter):
    """Adds the request's ids to a record. `request_suffix` is empty if the message already names the id."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_suffix = ""
        request = _request.get()
        if request is not None and not hasattr(record, "request_id"):
            record.request_id = request.request_id
            record.trace_id = request.trace.trace_id
            record.request_suffix = f" [{request.request_id}]"
        return True


def configure_logging(level: str, log_format: LogFormat = "auto", *, on_thread: bool = False) -> None:
    """Log to stderr. This replaces what was configured before.

    Args:
        level: least severe level of the service's own lines; libraries log warnings and errors.
        log_format: `json`: one object per line. `pretty`: coloured lines for people. `auto`: coloured on a terminal,
            plain elsewhere.
        on_thread: write on a thread of its own, so that nobody waits if nobody reads. See `count_lost_lines`.
    """
    make_handler = partial(_handler, log_format)
    handler = LogThread(make_handler) if on_thread else make_handler(sys.stderr)
    handler.addFilter(_RequestIds())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("condconv_serve").setLevel(level.upper())


def count_lost_lines(count: Callable[[], object]) -> None:
    """Call `count` for each line that the log loses from now on, if it is written on a thread of its own."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogThread):
            handler.count_lost = count


def _handler(log_format: LogFormat, stream: TextIO) -> logging.Handler:
    terminal = stream.isatty()
    if log_format == "pretty" or (log_format == "auto" and terminal):
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(file=stream, emoji=False, force_terminal=True, width=None if terminal else 200)
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, log_time_format="%X", omit_repeated_times=False
        )
        handler.setFormatter(logging.Formatter("%(message)s%(request_suffix)s"))
        return handler
    handler = logging.StreamHandler(stream)
    if log_format == "json":
        handler.setFormatter(json_formatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s%(request_suffix)s"))
    return handler


def json_formatter() -> JsonFormatter:
    """One JSON object per record: timestamp, level, logger, message, and the record's other fields."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        # uvicorn's message once more, with escape sequences.
        reserved_attrs=[*_standard_attributes(), "request_suffix", "color_message"],
    )


def _standard_attributes() -> list[str]:
    return [*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"]
