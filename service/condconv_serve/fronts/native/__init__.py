"""The HTTP interface: the only part that knows FastAPI, status codes and media types."""

from condconv_serve.fronts.native.app import create_app, create_probes_app
from condconv_serve.fronts.native.body import BodyLimits
from condconv_serve.fronts.native.context import Parts
from condconv_serve.fronts.native.security import Access

__all__ = ["Access", "BodyLimits", "Parts", "create_app", "create_probes_app"]
