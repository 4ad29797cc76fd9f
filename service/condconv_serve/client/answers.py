"""What a server's answers mean: results, or errors by their slug."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from condconv_serve import errors
from condconv_serve.client.bodies import (
    AblationBody,
    ChangeBody,
    DetectionAblationBody,
    DetectionBody,
    DetectionVariantBody,
    FeaturesBody,
    HealthBody,
    ImageBody,
    PredictionBody,
    ProblemBody,
    RecentBody,
    RoutedDetectionBody,
    VariantBody,
)
from condconv_serve.domain import DetectedObject, ImageSource, RoutingChange, RoutingLayout, RoutingTrace
from condconv_serve.errors import BodyTooLarge, CapacityError, InvalidParameter, RemoteFailed, ServiceError
from condconv_serve.results import (
    AblatedDetections,
    AblatedVariant,
    DetectionAblation,
    ImageAblation,
    ImageRouting,
    KeptObject,
    LostObject,
    ModelVersion,
    NewObject,
    RoutingInsight,
)
from condconv_serve.retry_after import seconds_to_wait

Value = TypeVar("Value")
Error = TypeVar("Error", bound=ServiceError)

REQUEST_ID_HEADER = "X-Request-Id"

AnyAblation: Any = AblationBody | DetectionAblationBody


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
            without such a class, or no answer of condconv-serve. BodyTooLarge: also if a proxy says so.
    """
    if 200 <= reply.status < 300:
        return reply.content
    try:
        problem = ProblemBody.model_validate_json(reply.content)
    except ValidationError as error:
        if reply.status == 413:
            raise _too_large(reply) from error
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


def _too_large(reply: Reply) -> BodyTooLarge:
    text = f"The server at {reply.server}, or a proxy before it, takes no request of so many bytes."
    return _from(reply, BodyTooLarge(text), status=reply.status)


def common_fields(body: ImageBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """What every answer for one image has, as the fields of results, but for the image's own names."""
    return {
        "model": model,
        "request_id": reply.request_id,
        "error": None if body.error is None else error_of(body.error, reply),
        "timings": None if body.timings_ms is None else body.timings_ms.seconds(),
        "batch_size": body.batch_size,
        "cached": body.cached,
    }


def prediction_fields(body: PredictionBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """The fields of `ImagePrediction`."""
    return {
        **common_fields(body, model, reply),
        "classes": tuple(scored.score() for scored in body.classes),
        "routing": None if body.routing is None else trace_of(body.routing),
    }


def routing_fields(body: PredictionBody | RoutedDetectionBody, model: ModelVersion, reply: Reply) -> dict[str, Any]:
    """The fields of `ImageRouting`."""
    try:
        insight = None if body.insight is None else RoutingInsight.of(body.insight)
    except ValidationError as error:
        raise foreign(reply) from error
    if isinstance(body, RoutedDetectionBody):
        return {**detection_fields(body, model, reply), "insight": insight}
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
    """What a classifier's answer to an image would have been. Errors are those of `content_of`.

    Raises:
        InvalidParameter: a detector answered.
    """
    body = reader(AnyAblation)(reply)
    if isinstance(body, DetectionAblationBody):
        raise InvalidParameter(f"{body.model.name} is a model for detection: ask it by detection_ablation.")
    return ImageAblation(
        **_ablation_fields(body, reply, image),
        top=body.top.score(),
        variants=tuple(_variant(variant) for variant in body.variants),
    )


def read_detection_ablation(reply: Reply, image: ImageSource) -> DetectionAblation:
    """What a detector would have found in an image. Errors are those of `content_of`.

    Raises:
        InvalidParameter: a classifier answered.
    """
    body = reader(AnyAblation)(reply)
    if isinstance(body, AblationBody):
        raise InvalidParameter(f"{body.model.name} is a model for classification: ask it by ablation.")
    objects = tuple(one.found() for one in body.detections)
    try:
        variants = tuple(_detection_variant(variant, objects) for variant in body.variants)
    except IndexError as error:
        raise foreign(reply) from error
    return DetectionAblation(
        **_ablation_fields(body, reply, image),
        objects=objects,
        width=body.width,
        height=body.height,
        variants=variants,
    )


def trace_of(weights: Mapping[str, Sequence[float]]) -> RoutingTrace:
    """Routing weights by block as one array."""
    layout = RoutingLayout.of({block: len(own) for block, own in weights.items()})
    filled = np.zeros(layout.shape, np.float32)
    for place, own in enumerate(weights.values()):
        filled[place, : len(own)] = own
    return RoutingTrace(layout, filled)


def _ablation_fields(body: AblationBody | DetectionAblationBody, reply: Reply, image: ImageSource) -> dict[str, Any]:
    return {
        "id": image.id or "0",
        "filename": image.filename,
        "model": body.model,
        "request_id": reply.request_id,
        "timings": body.timings_ms.seconds(),
        "batch_size": len(body.variants) + 1,
        "routing": trace_of(body.routing),
    }


def _variant(body: VariantBody) -> AblatedVariant:
    return AblatedVariant(
        name=body.name,
        changes=_changes(body.changes),
        probability=body.probability,
        difference=body.difference,
        top=body.top.score(),
        same_top=body.same_top,
        routing=None if body.routing is None else trace_of(body.routing),
    )


def _detection_variant(body: DetectionVariantBody, objects: Sequence[DetectedObject]) -> AblatedDetections:
    kept = ((objects[one.detection], one) for one in body.kept)
    return AblatedDetections(
        name=body.name,
        changes=_changes(body.changes),
        similarity=body.similarity,
        kept=tuple(
            KeptObject(before=before, now=one.now(before), difference=one.difference, overlap=one.overlap)
            for before, one in kept
        ),
        lost=tuple(
            LostObject(before=objects[one.detection], score=one.score, difference=one.difference) for one in body.lost
        ),
        new=tuple(NewObject(now=one.found(), difference=one.difference) for one in body.new),
        routing=None if body.routing is None else trace_of(body.routing),
    )


def _changes(bodies: Sequence[ChangeBody]) -> tuple[RoutingChange, ...]:
    return tuple(RoutingChange(**dict(change)) for change in bodies)


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
