"""How many files this process may have open: each connection is one."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger(__name__)

_FILES_BESIDES_CONNECTIONS = 256


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
