"""What a server's answers mean: results, or errors by their slug."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from condconv_serve import errors
from condconv_serve.domain import (
    Box,
    ClassScore,
    DetectedObject,
    ImageSource,
    RoutingChange,
    RoutingLayout,
    RoutingTrace,
    Timings,
)
from condconv_serve.errors import CapacityError, RemoteFailed, ServiceError
from condconv_serve.results import AblatedVariant, ImageAblation, ImageRouting, ModelVersion, RoutingInsight
from condconv_serve.retry_after import seconds_to_wait

Value = TypeVar("Value")
Error = TypeVar("Error", bound=ServiceError)

REQUEST_ID_HEADER = "X-Request-Id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer as it came.

    Attributes:
        server: address of the server, for messages.
        status: code of HTTP.
        headers: their names in any case.
        content: the body, whole.
    """

    server: str
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def request_id(self) -> str | None:
        """The request's id, as the server's log has it."""
        return self.headers.get(REQUEST_ID_HEADER)


class ProblemBody(BaseModel):
    """An error, as RFC 9457 problem details."""

    detail: str
    slug: str | None = None
    status: int | None = None
    retry_after: float | None = Field(None, ge=0)


class HealthBody(BaseModel):
    """What probes say if all is well."""

    status: Literal["ok"]


class ClassBody(BaseModel):
    """One class."""

    index: int
    label: str
    probability: float
    synset: str | None = None

    def score(self) -> ClassScore:
        """As results have it."""
        return ClassScore(self.index, self.label, self.synset, self.probability)


class TimingsBody(BaseModel):
    """Times in milliseconds."""

    decode: float
    queue: float
    inference: float
    total: float

    def seconds(self) -> Timings:
        """As results have them."""
        return Timings(**{name: value / 1e3 for name, value in self})


RoutingBody = dict[str, list[float]]


class ImageBody(BaseModel):
    """What every answer for one image has: `error`, or the rest."""

    id: str
    filename: str | None = None
    timings_ms: TimingsBody | None = None
    batch_size: int | None = None
    error: ProblemBody | None = None


class PredictionBody(ImageBody):
    """The answer for one image of `/predict` or `/routing`."""

    classes: list[ClassBody] = []
    routing: RoutingBody | None = None
    insight: dict[str, Any] | None = None


class ObjectBody(BaseModel):
    """One object in a photo."""

    index: int
    label: str
    score: float
    box: Box
    box_normalized: Box
    synset: str | None = None

    def found(self) -> DetectedObject:
        """As results have it."""
        return DetectedObject(**dict(self))


class DetectionBody(ImageBody):
    """The answer for one image of `/detect`."""

    width: int | None = None
    height: int | None = None
    detections: list[ObjectBody] = []
    routing: RoutingBody | None = None


class FeaturesBody(ImageBody):
    """The answer for one image of `/features`."""

    features: list[float] | None = None
    logits: list[float] | None = None


class PredictionsBody(BaseModel):
    """The answer for all images of a request."""

    model: ModelVersion
    predictions: list[PredictionBody]


class RecentBody(PredictionsBody):
    """What was answered to a recent request."""

    request_id: str


class DetectionsBody(BaseModel):
    """The answer of `/detect` for all images of a request."""

    model: ModelVersion
    predictions: list[DetectionBody]


class EmbeddingsBody(BaseModel):
    """The answer of `/features` for all images of a request."""

    model: ModelVersion
    predictions: list[FeaturesBody]


class ChangeBody(BaseModel):
    """A change to one block's routing."""

    block: str
    off: tuple[int, ...] | None = None
    uniform: bool = False
    weights: tuple[float | None, ...] | None = None


class VariantBody(BaseModel):
    """What an answer would have been."""

    name: str
    changes: list[ChangeBody]
    probability: float
    difference: float
    top: ClassBody
    same_top: bool
    routing: RoutingBody | None = None


class AblationBody(BaseModel):
    """What an answer would have been with other routings."""

    model: ModelVersion
    top: ClassBody
    routing: RoutingBody
    variants: list[VariantBody]
    timings_ms: TimingsBody


def reader(kind: type[Value]) -> Callable[[Reply], Value]:
    """What makes a value of this kind of a reply's JSON; its errors are those of `content_of`."""
    hashable: Any = kind  # for mypy

    def read(reply: Reply) -> Value:
        content = content_of(reply)
        try:
            value: Value = _adapter(hashable).validate_json(content, strict=True)
        except ValidationError as error:
            raise foreign(reply) from error
        return value

    return read


def nothing(reply: Reply) -> None:
    """Take an answer for a yes. Errors are those of `content_of`."""
    content_of(reply)


def read_health(reply: Reply) -> None:
    """Take the server's own word that all is well; a proxy's page in its place is no such word."""
    reader(HealthBody)(reply)


def content_of(reply: Reply) -> bytes:
    """The body of an answer that is no error.

    Raises:
        ServiceError: the error that the server tells, of its class in `condconv_serve.errors`. RemoteFailed: an error
            without such a class, or no answer of condconv-serve.
    """
    if 200 <= reply.status < 300:
        return reply.content
    try:
        problem = ProblemBody.model_validate_json(reply.content)
    except ValidationError as error:
        raise foreign(reply) from error
    raise error_of(problem, reply)


def error_of(problem: ProblemBody, reply: Reply) -> ServiceError:
    """The error that a problem tells."""
    kind = _by_slug().get(problem.slug or "", RemoteFailed)
    wait = problem.retry_after
    if wait is None and not reply.status < 300:
        wait = seconds_to_wait(reply.headers.get("Retry-After"))
    error = kind(problem.detail)
    if isinstance(error, CapacityError | RemoteFailed):
        error.retry_after = wait
    return _from(reply, error, status=problem.status or reply.status)


def foreign(reply: Reply) -> RemoteFailed:
    """What to say of an answer that can't be ours."""
    text = f"The server at {reply.server} answered {reply.status}, but this is no answer of condconv-serve."
    if 300 <= reply.status < 400 and (elsewhere := reply.headers.get("Location")):
        text += f" It says that this is now at {elsewhere[:200]}; use that address."
    error = RemoteFailed(text, retry_after=seconds_to_wait(reply.headers.get("Retry-After")))
    return _from(reply, error, status=reply.status)


def common_fields(body: ImageBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """What every answer for one image has, as the fields of results, but for the image's own names."""
    return {
        "model": model,
        "request_id": reply.request_id,
        "error": None if body.error is None else error_of(body.error, reply),
        "timings": None if body.timings_ms is None else body.timings_ms.seconds(),
        "batch_size": body.batch_size,
    }


def prediction_fields(body: PredictionBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """The fields of `ImagePrediction`."""
    return {
        **common_fields(body, model, reply),
        "classes": tuple(scored.score() for scored in body.classes),
        "routing": None if body.routing is None else trace_of(body.routing),
    }


def routing_fields(body: PredictionBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """The fields of `ImageRouting`."""
    try:
        insight = None if body.insight is None else RoutingInsight.of(body.insight)
    except ValidationError as error:
        raise foreign(reply) from error
    return {**prediction_fields(body, model, reply), "insight": insight}


def detection_fields(body: DetectionBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """The fields of `ImageDetections`."""
    return {
        **common_fields(body, model, reply),
        "objects": tuple(one.found() for one in body.detections),
        "width": body.width,
        "height": body.height,
        "routing": None if body.routing is None else trace_of(body.routing),
    }


def features_fields(body: FeaturesBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """The fields of `ImageFeatures`."""
    return {
        **common_fields(body, model, reply),
        "features": None if body.features is None else np.array(body.features, np.float32),
        "logits": None if body.logits is None else np.array(body.logits, np.float32),
    }


def read_recent(reply: Reply) -> list[ImageRouting]:
    """A recent request's images. Errors are those of `content_of`."""
    answer = reader(RecentBody)(reply)
    return [
        ImageRouting(
            id=body.id,
            filename=body.filename,
            **routing_fields(body, answer.model, reply) | {"request_id": answer.request_id},
        )
        for body in answer.predictions
    ]


def read_ablation(reply: Reply, image: ImageSource) -> ImageAblation:
    """What the answer to an image would have been. Errors are those of `content_of`."""
    body = reader(AblationBody)(reply)
    return ImageAblation(
        id=image.id or "0",
        filename=image.filename,
        model=body.model,
        request_id=reply.request_id,
        timings=body.timings_ms.seconds(),
        batch_size=len(body.variants) + 1,
        top=body.top.score(),
        routing=trace_of(body.routing),
        variants=tuple(_variant(variant) for variant in body.variants),
    )


def trace_of(weights: Mapping[str, Sequence[float]]) -> RoutingTrace:
    """Routing weights by block as one array."""
    layout = RoutingLayout.of({block: len(own) for block, own in weights.items()})
    filled = np.zeros(layout.shape, np.float32)
    for place, own in enumerate(weights.values()):
        filled[place, : len(own)] = own
    return RoutingTrace(layout, filled)


def _variant(body: VariantBody) -> AblatedVariant:
    return AblatedVariant(
        name=body.name,
        changes=tuple(RoutingChange(**dict(change)) for change in body.changes),
        probability=body.probability,
        difference=body.difference,
        top=body.top.score(),
        same_top=body.same_top,
        routing=None if body.routing is None else trace_of(body.routing),
    )


def _from(reply: Reply, error: Error, *, status: int) -> Error:
    error.status, error.request_id = status, reply.request_id
    return error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _by_slug() -> Mapping[str, type[ServiceError]]:
    """Classes of errors by slug. The root comes first: classes between it and the leaves have its slug."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServiceError)]
    return {kind.slug: kind for kind in reversed(kinds)}
