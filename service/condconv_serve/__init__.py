"""condconv-serve: serves CondConv image classifiers and detectors, and shows which experts they used.

Importing this is cheap: TensorFlow is imported when something is used that needs it.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condconv_serve.client import AsyncClient, Client
    from condconv_serve.domain import Box, ClassScore, DetectedObject, RoutingChange, Timings, Variant
    from condconv_serve.errors import ServiceError
    from condconv_serve.inputs.drawn import draw_objects
    from condconv_serve.nn import CondConv2D, CondConvDense, DepthwiseCondConv2D
    from condconv_serve.offline.load import load
    from condconv_serve.offline.model import Model
    from condconv_serve.results import (
        AblatedDetections,
        AblatedVariant,
        DetectionAblation,
        ImageAblation,
        ImageDetections,
        ImageFeatures,
        ImagePrediction,
        ImageRouting,
        ModelVersion,
    )
    from condconv_serve.training import Description, save_bundle

__version__ = "0.1.0"

__all__ = [
    "AblatedDetections",
    "AblatedVariant",
    "AsyncClient",
    "Box",
    "ClassScore",
    "Client",
    "CondConv2D",
    "CondConvDense",
    "DepthwiseCondConv2D",
    "Description",
    "DetectedObject",
    "DetectionAblation",
    "ImageAblation",
    "ImageDetections",
    "ImageFeatures",
    "ImagePrediction",
    "ImageRouting",
    "Model",
    "ModelVersion",
    "RoutingChange",
    "ServiceError",
    "Timings",
    "Variant",
    "__version__",
    "draw_objects",
    "load",
    "save_bundle",
]

_WHERE = {
    "AblatedDetections": "condconv_serve.results",
    "AblatedVariant": "condconv_serve.results",
    "AsyncClient": "condconv_serve.client",
    "Box": "condconv_serve.domain",
    "ClassScore": "condconv_serve.domain",
    "Client": "condconv_serve.client",
    "CondConv2D": "condconv_serve.nn",
    "CondConvDense": "condconv_serve.nn",
    "DepthwiseCondConv2D": "condconv_serve.nn",
    "Description": "condconv_serve.training",
    "DetectedObject": "condconv_serve.domain",
    "DetectionAblation": "condconv_serve.results",
    "ImageAblation": "condconv_serve.results",
    "ImageDetections": "condconv_serve.results",
    "ImageFeatures": "condconv_serve.results",
    "ImagePrediction": "condconv_serve.results",
    "ImageRouting": "condconv_serve.results",
    "Model": "condconv_serve.offline.model",
    "ModelVersion": "condconv_serve.results",
    "RoutingChange": "condconv_serve.domain",
    "ServiceError": "condconv_serve.errors",
    "Timings": "condconv_serve.domain",
    "Variant": "condconv_serve.domain",
    "draw_objects": "condconv_serve.inputs.drawn",
    "load": "condconv_serve.offline.load",
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
