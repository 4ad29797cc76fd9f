"""condconv-serve: serves CondConv image classifiers, and shows which experts they used.

Importing this is cheap: TensorFlow is imported when something is used that needs it.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condconv_serve.errors import ServiceError
    from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D
    from condconv_serve.training import Description, save_bundle

__version__ = "0.1.0"

__all__ = ["CondConv2D", "DepthwiseCondConv2D", "Description", "ServiceError", "__version__", "save_bundle"]

_WHERE = {
    "CondConv2D": "condconv_serve.nn",
    "DepthwiseCondConv2D": "condconv_serve.nn",
    "Description": "condconv_serve.training",
    "ServiceError": "condconv_serve.errors",
    "save_bundle": "condconv_serve.training",
}

# TensorFlow's default is oneDNN only on CPUs with AVX-512 VNNI or newer instructions. On other CPUs oneDNN makes it
# nearly twice as fast, too, and grouped convolutions need it. TensorFlow reads this when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
