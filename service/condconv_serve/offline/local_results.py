"""What a task answered about an image, as Python callers get it."""

from __future__ import annotations

from typing import Any

from condconv_serve.domain import Detection, ImageResult, ModelInfo, Prediction, RoutedAnswer
from condconv_serve.results import (
    ImageDetections,
    ImageFeatures,
    ImagePrediction,
    ImageRouting,
    ModelVersion,
    RoutingInsight,
)
from condconv_serve.routing.views import insight_view
from condconv_serve.tasks.features import Embedding


def predicted(result: ImageResult[Prediction], model: ModelInfo) -> ImagePrediction:
    """The classes of one image."""
    found = result.prediction
    if found is None:
        return ImagePrediction(**_about(result, model))
    return ImagePrediction(**_about(result, model), classes=found.classes, routing=found.routing)


def routed(result: ImageResult[RoutedAnswer], model: ModelInfo) -> ImageRouting:
    """The routing of one image, its classes or objects, and what stands out."""
    found = result.prediction
    if found is None:
        return ImageRouting(**_about(result, model))
    insight = RoutingInsight.of(insight_view(found, model, live={}))
    said: dict[str, Any] = {"classes": found.classes} if isinstance(found, Prediction) else _objects(found)
    return ImageRouting(**_about(result, model), **said, routing=found.routing, insight=insight)


def detected(result: ImageResult[Detection], model: ModelInfo) -> ImageDetections:
    """The objects in one image."""
    found = result.prediction
    if found is None:
        return ImageDetections(**_about(result, model))
    return ImageDetections(**_about(result, model), **_objects(found), routing=found.routing)


def embedded(result: ImageResult[Embedding], model: ModelInfo) -> ImageFeatures:
    """The features of one image."""
    found = result.prediction
    if found is None:
        return ImageFeatures(**_about(result, model))
    return ImageFeatures(**_about(result, model), features=found.features, logits=found.logits)


def _objects(found: Detection) -> dict[str, Any]:
    return {"objects": found.objects, "width": found.width, "height": found.height}


def _about(result: ImageResult[Any], model: ModelInfo) -> dict[str, Any]:
    found = result.prediction
    return {
        "id": result.id,
        "filename": result.filename,
        "error": result.error,
        "model": ModelVersion(model.name, model.version),
        "timings": None if found is None else found.timings,
        "batch_size": None if found is None else found.batch_size,
    }
