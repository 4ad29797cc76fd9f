"""Values and interfaces that several packages share. Values are frozen; there is no HTTP, TensorFlow or Pillow here."""

from condconv_serve.domain.ablation import Ablated, Ablation, Ablator
from condconv_serve.domain.answers import Answered, Classification, ClassifiedImage, ClassScore, ImageResult, Prediction
from condconv_serve.domain.images import (
    ImageSource,
    Interpolation,
    JpegCropper,
    MadeRow,
    Pixels,
    Preprocessing,
    Row,
    TransformName,
)
from condconv_serve.domain.manifest import Manifest
from condconv_serve.domain.model import (
    Cost,
    Engine,
    EngineDescription,
    Label,
    ModelInfo,
    ModelSource,
    NativeState,
    NativeUse,
    ServedModel,
)
from condconv_serve.domain.routing import RoutingLayout, RoutingOverrides, RoutingProfile, RoutingTrace
from condconv_serve.domain.tensors import LOGITS, ROUTING, OutputSpec, RowAnswer, Tensors, Timings, rows_of
from condconv_serve.domain.text import can_be_label, readable

__all__ = [
    "LOGITS",
    "ROUTING",
    "Ablated",
    "Ablation",
    "Ablator",
    "Answered",
    "ClassScore",
    "Classification",
    "ClassifiedImage",
    "Cost",
    "Engine",
    "EngineDescription",
    "ImageResult",
    "ImageSource",
    "Interpolation",
    "JpegCropper",
    "Label",
    "MadeRow",
    "Manifest",
    "ModelInfo",
    "ModelSource",
    "NativeState",
    "NativeUse",
    "OutputSpec",
    "Pixels",
    "Prediction",
    "Preprocessing",
    "RoutingLayout",
    "RoutingOverrides",
    "RoutingProfile",
    "RoutingTrace",
    "Row",
    "RowAnswer",
    "ServedModel",
    "Tensors",
    "Timings",
    "TransformName",
    "can_be_label",
    "readable",
    "rows_of",
]
