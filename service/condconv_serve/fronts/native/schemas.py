"""The bodies of the native routes, as pydantic models: they check, document and serialise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from condconv_serve.domain import Classification, ClassifiedImage, Prediction, RoutingTrace, ServedModel
from condconv_serve.fronts.native.problems import Problem
from condconv_serve.serving.versions import State, VersionStatus
from condconv_serve.store.aliases import Alias

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


class RoutingParameters(BaseModel):
    """Parameters of a request with images. Give them in the query, or as fields of a JSON or form body."""

    model_config = ConfigDict(extra="forbid")

    top_k: Whole | None = Field(
        None,
        ge=1,
        description="How many classes to return, best first. Absent: 5, or all if the model has fewer.",
    )
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


class PredictParameters(RoutingParameters):
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


class PredictionBody(BaseModel):
    """The answer for one image. It has either `error` or all other fields."""

    id: str
    filename: str | None = None
    classes: list[ClassBody] | None = None
    routing: RoutingBody | None = Field(
        None, description="Routing weights, 0 to 1, of every expert by CondConv block; `{}` for a static network."
    )
    timings_ms: TimingsBody | None = None
    batch_size: int | None = Field(None, description="Rows in the batch that the image was in.")
    error: Problem | None = None


class PredictResponse(BaseModel):
    """One entry per image, in order."""

    model: ModelReference
    predictions: list[PredictionBody]


class VersionBody(BaseModel):
    """How one version is doing."""

    version: str
    state: State = Field(
        description="available: in the store, but not loaded. stale: serves from memory, but its files are gone or "
        "can't be loaded, so it would not be there after a restart. retiring: answers its last requests, and gets no "
        "new ones. incomplete: its files are still being copied. failed: can't be loaded."
    )
    reason: str | None = Field(
        None,
        description="Why it can't be loaded. For a version that serves: why its files can't be loaded anew.",
    )


class AliasBody(BaseModel):
    """Where an alias points."""

    versions: dict[str, int] = Field(description="Versions with their relative weights.", examples=[{"1": 90, "2": 10}])
    previous: dict[str, int] | None = Field(None, description="Where it pointed before.")


class AliasRequest(BaseModel):
    """Where the alias shall point: at one version, or at several by weight."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "1"}]})

    version: str | None = Field(None, max_length=MAX_NAME, description="The only version.")
    versions: dict[str, StrictInt] | None = Field(
        None, description="Versions with their relative weights, which are whole numbers from 1 to 1000000."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> AliasRequest:
        if (self.version is None) == (self.versions is None):
            raise ValueError('Give either "version" or "versions"')
        return self

    def split(self) -> dict[str, int]:
        """Versions with their relative weights."""
        return {self.version: 1} if self.version is not None else dict(self.versions or {})


class AliasesResponse(BaseModel):
    """All aliases of a model."""

    aliases: dict[str, AliasBody]


class ModelSummary(BaseModel):
    """One model of the store, served or not.

    `architecture` and the fields after it describe its newest served version.
    """

    name: str
    versions: list[str] = Field(description="Served versions, oldest first.")
    default: bool = Field(description="Whether requests that name no model get this one.")
    all_versions: list[VersionBody] = Field(description="All versions, served or not, oldest first.")
    aliases: dict[str, AliasBody] = Field(
        description="Aliases in force. The one called `default` is for requests that name no version."
    )
    task: str | None = Field(None, description="What its outputs mean: classification.")
    architecture: str | None = None
    num_classes: int | None = None
    num_experts: int | None = None


class ModelsResponse(BaseModel):
    """All models of the store."""

    models: list[ModelSummary]


class ArchitectureBody(BaseModel):
    """The network's architecture, and its parameters that differ from the registered ones."""

    model_config = ConfigDict(extra="allow")

    name: str


class OutputBody(BaseModel):
    """One output of a network."""

    name: str
    shape: list[int] = Field(description="Without the batch axis.")
    dtype: str


class EngineBody(BaseModel):
    """What computes a model."""

    engine: str = Field(description="tensorflow or openvino.")
    precision: str = Field(description="float32 or bfloat16.")
    device: str
    reason: str = Field(description="Why this engine was chosen.")


class ModelResponse(BaseModel):
    """One served version of a model, in full."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    version: str
    versions: list[str] = Field(description="All served versions of the model, oldest first.")
    all_versions: list[VersionBody] = Field(description="All versions, served or not, oldest first.")
    aliases: dict[str, AliasBody] = Field(description="Aliases in force.")
    task: str = Field(description="What the outputs mean: classification.")
    outputs: list[OutputBody] = Field(description="What the network returns for each image.")
    architecture: ArchitectureBody
    parameters: int = Field(description="Trained parameters.")
    multiply_adds: int | None = Field(
        None,
        description="Multiply-adds per image, kernel mixing included; absent if a layer can't be counted.",
    )
    num_classes: int
    labels_count: int
    num_experts: int = Field(description="The most experts that any block has.")
    routing_blocks: list[str] = Field(description="The CondConv blocks, in order.")
    routing_experts: list[int] = Field(description="How many experts each of them has.")
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
    problems: list[str] | None = Field(None, description="What is wrong, though the service is ready.")


def predict_response(classification: Classification, *, routing: bool) -> PredictResponse:
    """Put a classification into the body's shape."""
    return PredictResponse(
        model=ModelReference(name=classification.model.name, version=classification.model.version),
        predictions=[prediction_body(result, routing=routing) for result in classification.results],
    )


def version_body(status: VersionStatus) -> VersionBody:
    """How a version is doing, as a body."""
    return VersionBody(version=status.version, state=status.state, reason=status.reason)


def alias_body(alias: Alias) -> AliasBody:
    """An alias as a body."""
    return AliasBody(versions=alias.versions, previous=alias.previous)


def model_summary(
    name: str,
    versions: Mapping[str, ServedModel],
    *,
    default: bool,
    statuses: Sequence[VersionStatus],
    aliases: Mapping[str, Alias],
) -> ModelSummary:
    """Summarise a model by its newest served version."""
    summary = ModelSummary(
        name=name,
        versions=sorted(versions, key=int),
        default=default,
        all_versions=[version_body(status) for status in statuses],
        aliases={alias: alias_body(to) for alias, to in aliases.items()},
    )
    if not versions:
        return summary
    newest = versions[summary.versions[-1]]
    return summary.model_copy(
        update={
            "task": newest.info.task,
            "architecture": newest.info.manifest.architecture.name,
            "num_classes": len(newest.info.labels),
            "num_experts": newest.info.routing.shape[1],
        }
    )


def model_response(model: ServedModel, summary: ModelSummary) -> ModelResponse:
    """Describe one version in full."""
    info = model.info
    manifest = info.manifest.model_dump(mode="json", exclude_none=True)
    return ModelResponse(
        **{key: manifest[key] for key in ModelResponse.model_fields if key in manifest},
        versions=summary.versions,
        all_versions=summary.all_versions,
        aliases=summary.aliases,
        outputs=[OutputBody(**asdict(output)) for output in info.outputs],
        parameters=info.cost.parameters,
        multiply_adds=info.cost.multiply_adds,
        labels_count=len(info.labels),
        num_experts=info.routing.shape[1],
        routing_blocks=list(info.routing.blocks),
        routing_experts=list(info.routing.experts),
        computed_by=EngineBody(**asdict(model.computed_by)),
        model_card=info.model_card,
    )


def prediction_body(result: ClassifiedImage, *, routing: bool) -> PredictionBody:
    """The result of one image."""
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
            decode=milliseconds(timings.decode),
            queue=milliseconds(timings.queue),
            inference=milliseconds(timings.inference),
            total=milliseconds(timings.total),
        ),
        "batch_size": prediction.batch_size,
    }


def routing_body(trace: RoutingTrace) -> RoutingBody:
    """Routing weights by block, as they are in float32."""
    return trace.layout.lists(trace.weights)


def milliseconds(seconds: float) -> float:
    """Seconds as an answer tells them."""
    return round(seconds * 1e3, 3)
