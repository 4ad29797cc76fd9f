"""The Python client of a running server: `Client`, and `AsyncClient` for asyncio.

What is sent and what answers mean is decided by functions that do no I/O (`calls`, `answers`, `exchange`, `many`); two
senders send and wait, one on threads, one in tasks.
"""

from condconv_serve.client.asynchronous import AsyncClient
from condconv_serve.client.live import LiveRouting
from condconv_serve.client.models import AliasTarget, ModelDetails, ModelSummary, ShadowComparison, VersionState
from condconv_serve.client.sync import Client

__all__ = [
    "AliasTarget",
    "AsyncClient",
    "Client",
    "LiveRouting",
    "ModelDetails",
    "ModelSummary",
    "ShadowComparison",
    "VersionState",
]
