"""What Prometheus gets: the text of all metrics, in the form that the scraper accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


@dataclass(frozen=True, slots=True)
class Exposed:
    """The text of all metrics, and what it is."""

    content: bytes
    content_type: str


class Exposition(Protocol):
    """Writes down all metrics of a service, of all its processes."""

    async def expose(self, accept: str) -> Exposed:
        """All metrics in the Prometheus text format, or in OpenMetrics if the header `accept` asks for it."""
        ...


class RegistryExposition:
    """The metrics of one registry: implements `Exposition` for a service in one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Expose `registry`."""
        self._registry = registry

    async def expose(self, accept: str) -> Exposed:
        """See `Exposition.expose`."""
        encode, content_type = choose_encoder(accept)
        return Exposed(encode(self._registry), content_type)
