"""The bodies of the native routes, as pydantic models: they check, document and serialise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.api.problems import Problem
from service.classifier import Classification
from service.domain import ImageResult, Prediction, RoutingTrace, ServedModel

MAX_NAME = 1024


class RoutingParameters(BaseModel):
    """Parameters of a request with images: in the query, or as fields of a JSON or form body."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1, description="How many classes to return, best first; at most the model's number.")
    model: str | None = Field(None, max_length=MAX_NAME, description="Name of the model; the default one if absent.")
    version: str | None = Field(None, max_length=MAX_NAME, description="Its version; the newest if absent.")
    timeout_ms: int | None = Field(
        None,
        ge=1,
        description="Milliseconds, from the end of the request's body, after which the answer is of no use any more; "
        "the server's own limit if absent, and at most that.",
    )
    priority: Literal["high", "normal", "low"] = Field(
        "normal", description="Who goes first when rows wait; what has waited long enough moves up."
    )


class PredictParameters(RoutingParameters):
    """Parameters of a prediction; `/routing` always returns the routing."""

    routing: bool = Field(False, description="Whether to return each image's routing weights.")


class EncodedImage(BaseModel):
    """One image of a JSON body."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="The image file in base64; a data URL is fine too.")
    id: str | None = Field(None, max_length=MAX_NAME, description="Returned with the answer; the position if absent.")
    filename: str | None = Field(None, max_length=MAX_NAME, description="Returned with the answer.")


def _as_encoded_image(value: Any) -> Any:
    if isinstance(value, str):
        return {"data": value}
    if not isinstance(value, dict):
        raise ValueError('An image is base64, or an object such as {"data": "<base64>", "id": "a"}')
    return value


class ImagesBody(BaseModel):
    """The images of a JSON body; the parameters may stand beside them."""

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
    """Where the image's time went, in milliseconds."""

    decode: float
    queue: float
    inference: float = Field(description="Of the whole batch that the image rode in.")
    total: float


RoutingBody = dict[str, list[float]]


class PredictionBody(BaseModel):
    """The answer for one image: `error`, or all the rest."""

    id: str
    filename: str | None = None
    classes: list[ClassBody] | None = None
    routing: RoutingBody | None = Field(
        None, description="Routing weights, 0 to 1, of every expert by CondConv block; `{}` for a static network."
    )
    timings_ms: TimingsBody | None = None
    batch_size: int | None = Field(None, description="Rows in the batch that the image rode in.")
    error: Problem | None = None


class PredictResponse(BaseModel):
    """One entry per image, in order."""

    model: ModelReference
    predictions: list[PredictionBody]


class ModelSummary(BaseModel):
    """One served model."""

    name: str
    versions: list[str] = Field(description="Served versions, oldest first.")
    default: bool = Field(description="Whether requests that name no model get this one.")
    architecture: str
    num_classes: int
    num_experts: int


class ModelsResponse(BaseModel):
    """All served models."""

    models: list[ModelSummary]


class ArchitectureBody(BaseModel):
    """The network's architecture, and those of its parameters that differ from the registered ones."""

    model_config = ConfigDict(extra="allow")

    name: str


class EngineBody(BaseModel):
    """What computes a model."""

    engine: str = Field(description="tensorflow or openvino.")
    precision: str = Field(description="float32 or bfloat16.")
    device: str
    reason: str | None = Field(None, description="Why it isn't the engine that was tried first.")


class ModelResponse(BaseModel):
    """One served version of a model, in full."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    versions: list[str] = Field(description="All served versions of the model, oldest first.")
    architecture: ArchitectureBody
    parameters: int = Field(description="Trained parameters.")
    multiply_adds: int = Field(description="Multiply-adds per image, kernel mixing included.")
    num_classes: int
    labels_count: int
    num_experts: int
    routing_blocks: list[str] = Field(description="The CondConv blocks, in order.")
    computed_by: EngineBody
    preprocessing: dict[str, Any]
    files: dict[str, dict[str, Any]] = Field(description="Size in bytes and SHA-256 of each file of the bundle.")
    provenance: dict[str, Any]
    licence: str
    accuracy: list[dict[str, Any]]
    model_card: str = Field(description="Markdown.")


class HealthResponse(BaseModel):
    """Whether the service takes requests."""

    status: str = Field(description="ok, or why not.")
    models: list[ModelReference] = []


def predict_response(classification: Classification, *, routing: bool) -> PredictResponse:
    """Put a classification into the body's shape."""
    return PredictResponse(
        model=ModelReference(name=classification.model.name, version=classification.model.version),
        predictions=[prediction_body(result, routing=routing) for result in classification.results],
    )


def model_summary(name: str, versions: Mapping[str, ServedModel], *, default: bool) -> ModelSummary:
    """Summarise a model by its newest version."""
    ordered = sorted(versions, key=int)
    newest = versions[ordered[-1]]
    return ModelSummary(
        name=name,
        versions=ordered,
        default=default,
        architecture=newest.description["architecture"]["name"],
        num_classes=len(newest.labels),
        num_experts=newest.num_experts,
    )


def model_response(model: ServedModel, versions: list[str]) -> ModelResponse:
    """Describe one version in full."""
    return ModelResponse(
        **{key: model.description[key] for key in ModelResponse.model_fields if key in model.description},
        versions=versions,
        labels_count=len(model.labels),
        num_experts=model.num_experts,
        routing_blocks=list(model.routing_blocks),
        computed_by=EngineBody(**asdict(model.computed_by)),
    )


def prediction_body(result: ImageResult, *, routing: bool) -> PredictionBody:
    """What became of one image."""
    body = PredictionBody(id=result.id, filename=result.filename)
    if result.error is not None:
        return body.model_copy(update={"error": Problem.of(result.error)})
    assert result.prediction is not None  # exactly one of the two is set
    return body.model_copy(update=_answer(result.prediction, routing=routing))


def _answer(prediction: Prediction, *, routing: bool) -> dict[str, Any]:
    timings = prediction.timings
    return {
        "classes": [
            ClassBody(index=c.index, label=c.label, synset=c.synset, probability=c.probability)
            for c in prediction.classes
        ],
        "routing": routing_body(prediction.routing) if routing else None,
        "timings_ms": TimingsBody(
            decode=_milliseconds(timings.decode),
            queue=_milliseconds(timings.queue),
            inference=_milliseconds(timings.inference),
            total=_milliseconds(timings.total),
        ),
        "batch_size": prediction.batch_size,
    }


def routing_body(trace: RoutingTrace) -> RoutingBody:
    """Routing weights by block, as they are in float32."""
    return {block: weights.tolist() for block, weights in zip(trace.blocks, trace.weights, strict=True)}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 3)
