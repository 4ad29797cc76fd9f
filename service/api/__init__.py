"""The HTTP interface: the only part that knows FastAPI, status codes and media types."""

from service.api.app import create_app, create_probes_app
from service.api.body import BodyLimits
from service.api.parts import Parts
from service.api.security import Access

__all__ = ["Access", "BodyLimits", "Parts", "create_app", "create_probes_app"]
