"""Tells Ray Serve which versions a replica serves, so that requests for them come here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

logger = logging.getLogger(__name__)


async def advertise(versions: Collection[str]) -> None:
    """Tell that this replica answers these versions, as `model/version`.

    Ray Serve's own `serve.multiplexed` tells the same in this way. It can't be used here: it loads what is asked for,
    while we follow the store, and it doesn't know of versions that are dropped. Without this, requests still find
    their way, with more tries while a version is being loaded.
    """
    try:
        from ray.serve._private.common import RequestRoutingInfo
        from ray.serve.context import _get_global_client, _get_internal_replica_context

        context = _get_internal_replica_context()
        info = RequestRoutingInfo(replica_id=context.replica_id, multiplexed_model_ids=list(versions))
        await asyncio.to_thread(_get_global_client().record_request_routing_info, info)
    except (ImportError, AttributeError, TypeError) as error:  # none of it is public, so another release may differ
        logger.warning("Ray can't be told which versions this replica serves: %s", error)
