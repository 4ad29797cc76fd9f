"""The Open Inference Protocol, version 2, as KServe and Triton speak it.

`rest.py` is the front over HTTP. What knows no HTTP is shared with gRPC: data types, inputs, outputs, parameters,
metadata, statistics and the repository.
"""

from condconv_serve.fronts.oip.errors import render
from condconv_serve.fronts.oip.rest import create_app

__all__ = ["create_app", "render"]
