"""What the log says of a server that starts: where it listens, and who may use it."""

from __future__ import annotations

import logging
import socket

from condconv_serve.fronts.keys import KeyRing
from condconv_serve.http.server import is_local, url

logger = logging.getLogger(__name__)


def log_ports(listener: socket.socket, probes: socket.socket | None, keys: KeyRing | None) -> None:
    """Say where the server listens, and who may use it."""
    logger.info("listening on %s", url(listener))
    if probes is not None:
        logger.info("metrics and probes on %s", url(probes))
    if keys is not None:
        logger.info("%d API keys are accepted: %s", len(keys), ", ".join(key.name for key in keys))
    elif is_local(listener):
        logger.info("there are no API keys, so only this machine may use the service; condconv keys new makes keys")
    else:
        logger.warning(
            "there are no API keys: anyone who can reach %s may use the service; condconv keys new makes keys",
            url(listener),
        )
