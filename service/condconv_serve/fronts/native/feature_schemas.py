"""The bodies of `POST /features`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from condconv_serve.domain import Answered
from condconv_serve.fronts.json_answers import values_of
from condconv_serve.fronts.native.problems import Problem
from condconv_serve.fronts.native.schemas import CACHED, ImageParameters, ModelReference, TimingsBody, timings_body
from condconv_serve.tasks.feature_files import EmbeddedImage
from condconv_serve.tasks.features import Embedding

FeaturesFormat = Literal["json", "npz", "csv", "raw"]
SHAPE_HEADER = "X-Features-Shape"
MODEL_HEADER = "X-Features-Model"
"""Headers of answers that aren't JSON."""


class FeaturesParameters(ImageParameters):
    """Parameters of `POST /features`."""

    logits: bool = Field(False, description="Whether to return each image's class scores before the softmax, too.")
    format: FeaturesFormat | None = Field(
        None,
        description="The form of the answer. If absent, the Accept header chooses; without it, JSON. `raw` is nothing "
        "but little-endian float32 numbers.",
    )


class FeaturesBody(BaseModel):
    """The features of one image. It has either `error` or all other fields."""

    id: str
    filename: str | None = None
    features: list[float] | None = Field(None, description="What the classifier reads, with the digits of float32.")
    logits: list[float] | None = Field(None, description="Class scores before the softmax, if asked for.")
    timings_ms: TimingsBody | None = None
    batch_size: int | None = Field(None, description="Rows in the batch that the image was in.")
    cached: bool | None = Field(None, description=CACHED)
    error: Problem | None = None


class FeaturesResponse(BaseModel):
    """One entry per image, in order."""

    model: ModelReference
    predictions: list[FeaturesBody]


def features_response(answered: Answered[Embedding]) -> FeaturesResponse:
    """Put features into the body's shape."""
    return FeaturesResponse.model_construct(
        model=ModelReference(name=answered.model.name, version=answered.model.version),
        predictions=[features_body(result) for result in answered.results],
    )


def features_body(result: EmbeddedImage) -> FeaturesBody:
    """The result of one image."""
    if result.error is not None:
        return FeaturesBody(id=result.id, filename=result.filename, error=Problem.of(result.error))
    embedding = result.prediction
    assert embedding is not None  # exactly one of the two is set
    return FeaturesBody.model_construct(  # checking so many numbers would take longer than writing them
        id=result.id,
        filename=result.filename,
        features=values_of(embedding.features),
        logits=None if embedding.logits is None else values_of(embedding.logits),
        timings_ms=timings_body(embedding.timings),
        batch_size=embedding.batch_size,
        cached=embedding.timings.cached,
        error=None,
    )
