"""The HTTP interface: the only part that knows FastAPI, status codes and media types."""

from service.api.app import create_app
from service.api.body import BodyLimits
from service.api.parts import Parts

__all__ = ["BodyLimits", "Parts", "create_app"]
