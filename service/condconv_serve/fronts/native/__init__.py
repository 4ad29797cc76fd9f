"""The service's own HTTP interface: JSON answers, errors as problem details (RFC 9457), OpenAPI, and the page."""

from condconv_serve.fronts.native.app import create_app, create_probes_app

__all__ = ["create_app", "create_probes_app"]
