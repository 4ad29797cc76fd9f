"""The bodies of the native routes, as pydantic models: they check, document and serialise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from condconv_serve.domain import Classification, ClassifiedImage, ClassScore, Prediction, RoutingTrace, Timings
from condconv_serve.fronts.native.problems import Problem

MAX_NAME = 1024
VERSION = "Its version, or an alias. If absent: the alias `default`, or else the newest."
"""Describes the parameter `version` of one model."""


def _no_boolean(value: Any) -> Any:
    """JSON's true and false would pass for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


NoBoolean = BeforeValidator(_no_boolean)
Whole = Annotated[int, NoBoolean]
Share = Annotated[float, NoBoolean, Field(ge=0, le=1, allow_inf_nan=False)]
"""A number from 0 to 1."""


class ImageParameters(BaseModel):
    """Parameters of a request with images. Give them in the query, or as fields of a JSON or form body."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=MAX_NAME, description="Name of the model; the default one if absent.")
    version: str | None = Field(None, max_length=MAX_NAME, description=VERSION)
    timeout_ms: Whole | None = Field(
        None,
        ge=1,
        description="Milliseconds that you wait for the answer, counted from the end of the request's body. Later "
        "answers become 504. At most the server's own limit, which holds if this is absent.",
    )
    priority: Literal["high", "normal", "low"] = Field(
        "normal", description="Which images go first when many wait. Images that have waited long move up."
    )


class ClassParameters(ImageParameters):
    """Parameters of a request whose images are classified."""

    top_k: Whole | None = Field(
        None,
        ge=1,
        description="How many classes to return, best first. Absent: 5, or all if the model has fewer.",
    )
    threshold: Share = Field(
        0.0,
        description="Of these, classes with a smaller probability are left out. If even the best one has, `classes` is "
        "an empty list.",
    )


class PredictParameters(ClassParameters):
    """Parameters of a prediction; `/routing` always returns the routing."""

    routing: bool = Field(False, description="Whether to return each image's routing weights.")


class JsonObject(BaseModel):
    """A JSON object that a body may hold in large numbers. A million unknown fields are refused in one sentence."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            raise ValueError(f"the only fields are {', '.join(cls.model_fields)}")
        return value


class EncodedImage(JsonObject):
    """One image of a JSON body."""

    data: str = Field(description="The image file in base64; a data URL is fine too.")
    id: str | None = Field(
        None, max_length=MAX_NAME, description="Returned with the answer. If absent: the position in the request."
    )
    filename: str | None = Field(None, max_length=MAX_NAME, description="Returned with the answer.")


def _as_encoded_image(value: Any) -> Any:
    if isinstance(value, str):
        return {"data": value}
    if not isinstance(value, dict):
        raise ValueError('give an image as base64, or as an object such as {"data": "<base64>", "id": "a"}')
    return value


class ImagesBody(BaseModel):
    """A JSON body: images, and the request's parameters beside them."""

    model_config = ConfigDict(extra="allow")

    images: list[Annotated[EncodedImage, BeforeValidator(_as_encoded_image, json_schema_input_type=EncodedImage | str)]]


class ModelReference(BaseModel):
    """The model that answered."""

    name: str
    version: str


class ClassBody(BaseModel):
    """One class; `probability` is the softmax over all classes."""

    index: int
    label: str
    synset: str | None = Field(None, description="WordNet id, where the class has one.")
    probability: float


class TimingsBody(BaseModel):
    """How long each stage of the image took, in milliseconds."""

    decode: float
    queue: float
    inference: float = Field(description="Time of the whole batch that the image was in.")
    total: float


RoutingBody = dict[str, list[float]]


CACHED = (
    "Whether the answer was computed for an equal image. If so, the stages took no time, and `batch_size` is that of "
    "the batch in which it was computed. Absent if the server has no response cache."
)
"""Description of `cached`."""


class PredictionBody(BaseModel):
    """The answer for one image. It has either `error` or all other fields."""

    id: str
    filename: str | None = None
    classes: list[ClassBody] | None = Field(
        None, description="The most probable classes, best first; empty if none reaches the threshold."
    )
    routing: RoutingBody | None = Field(
        None, description="Routing weights, 0 to 1, of every expert by CondConv block; `{}` for a static network."
    )
    timings_ms: TimingsBody | None = None
    batch_size: int | None = Field(None, description="Rows in the batch that the image was in.")
    cached: bool | None = Field(None, description=CACHED)
    error: Problem | None = None


class PredictResponse(BaseModel):
    """One entry per image, in order."""

    model: ModelReference
    predictions: list[PredictionBody]


class HealthResponse(BaseModel):
    """Whether the service takes requests."""

    status: str = Field(description="ok, or why not.")
    models: list[ModelReference] = []
    problems: list[str] | None = Field(None, description="What is wrong, though the service is ready.")


def predict_response(classification: Classification, *, routing: bool) -> PredictResponse:
    """Put a classification into the body's shape."""
    return PredictResponse(
        model=ModelReference(name=classification.model.name, version=classification.model.version),
        predictions=[prediction_body(result, routing=routing) for result in classification.results],
    )


def prediction_body(result: ClassifiedImage, *, routing: bool) -> PredictionBody:
    """The result of one image."""
    body = PredictionBody(id=result.id, filename=result.filename)
    if result.error is not None:
        return body.model_copy(update={"error": Problem.of(result.error)})
    assert result.prediction is not None  # exactly one of the two is set
    return body.model_copy(update=prediction_fields(result.prediction, routing=routing))


def prediction_fields(prediction: Prediction, *, routing: bool) -> dict[str, Any]:
    """An answer's fields of a `PredictionBody`."""
    return {
        "classes": [class_body(scored) for scored in prediction.classes],
        "routing": routing_body(prediction.routing) if routing else None,
        "timings_ms": timings_body(prediction.timings),
        "batch_size": prediction.batch_size,
        "cached": prediction.timings.cached,
    }


def class_body(scored: ClassScore) -> ClassBody:
    """One class as a body."""
    return ClassBody(index=scored.index, label=scored.label, synset=scored.synset, probability=scored.probability)


def routing_body(trace: RoutingTrace) -> RoutingBody:
    """Routing weights by block, as they are in float32."""
    return trace.layout.lists(trace.weights)


def timings_body(timings: Timings) -> TimingsBody:
    """Where an image's time went."""
    return TimingsBody(
        decode=milliseconds(timings.decode),
        queue=milliseconds(timings.queue),
        inference=milliseconds(timings.inference),
        total=milliseconds(timings.total),
    )


def milliseconds(seconds: float) -> float:
    """Seconds as an answer tells them."""
    return round(seconds * 1e3, 3)
