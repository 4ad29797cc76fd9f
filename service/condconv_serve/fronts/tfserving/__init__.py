"""TensorFlow Serving's REST API and gRPC services."""

from condconv_serve.fronts.tfserving.app import create_app
from condconv_serve.fronts.tfserving.errors import render

__all__ = ["create_app", "render"]
