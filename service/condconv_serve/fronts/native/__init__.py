"""The service's own HTTP interface: JSON answers, errors as problem details (RFC 9457), OpenAPI, and the page."""

from condconv_serve.fronts.native.app import create_app, create_probes_app
from condconv_serve.fronts.native.context import AppContext
from condconv_serve.fronts.native.images import BodyLimits

__all__ = ["AppContext", "BodyLimits", "create_app", "create_probes_app"]
