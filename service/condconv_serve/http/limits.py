"""Limits of connections, and of open files: each connection needs one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
"""Most bytes before a request's body; the parser itself has no limit."""

MAX_PIPELINED = 1024
"""Most requests that a connection may send ahead of their answers."""

REFUSED_AT_ONCE = 64
"""Most connections beyond the limit that may wait for their 503. Further ones are closed at once."""

LINGER_PAUSE = 5.0
LINGER_TIMEOUT = 30.0
LINGER_BYTES = 256 * 2**20
"""How long and how much is read after an answer: nginx' `lingering_timeout` and `lingering_time`, and bytes."""

_FILES_BESIDES_CONNECTIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of the connections of one server.

    Attributes:
        header_timeout: seconds from a connection's opening, or a request's first byte, to the end of its headers.
        write_timeout: most seconds that a client may leave an answer unread.
        max_connections: most connections at the same time.
        elsewhere: gets how many there are here, and returns how many other processes of the same server have, which
            count, too.
        share: so many are let in here, however many there are elsewhere: those that idle there make no room here.
        head_grace: seconds that a connection without a whole request's headers is safe from making room for others.
        linger_pause: most seconds that a client may pause while it sends the rest of a body that has been answered.
        linger_timeout: most seconds that it may take for that rest.
        linger_bytes: most bytes of it.
    """

    header_timeout: float
    write_timeout: float
    max_connections: int
    elsewhere: Callable[[int], int] = lambda own: 0
    share: int = 0
    head_grace: float = 1.0
    linger_pause: float = LINGER_PAUSE
    linger_timeout: float = LINGER_TIMEOUT
    linger_bytes: int = LINGER_BYTES

    def exceeded_by(self, own: int) -> bool:
        """Whether that many connections here are too many."""
        return own + self.elsewhere(own) > self.max_connections and own > self.share


def allow_open_files(max_connections: int) -> None:
    """Let this process open as many files as that many connections need; the usual soft limit is 1024."""
    if sys.platform == "win32":
        return
    import resource

    needed = max_connections + _FILES_BESIDES_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        logger.warning("only %d files may be open at once, too few for %d connections", most, max_connections)
