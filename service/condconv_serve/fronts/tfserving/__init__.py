"""TensorFlow Serving's REST API and gRPC services."""

from condconv_serve.fronts.tfserving.app import create_app

__all__ = ["create_app"]
