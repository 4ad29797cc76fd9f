"""Many images as requests of a few each: how they are cut, and how answers find back to their images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from condconv_serve.client.answers import (
    Reply,
    detection_fields,
    features_fields,
    foreign,
    prediction_fields,
    reader,
    routing_fields,
)
from condconv_serve.client.bodies import DetectionsBody, EmbeddingsBody, PredictionsBody, RoutedBody
from condconv_serve.client.calls import Call
from condconv_serve.client.exchange import RequestPolicy, Work, exchange
from condconv_serve.client.options import (
    DetectOptions,
    FeaturesOptions,
    PredictOptions,
    RoutingOptions,
    check_options,
    headers_of,
    parameters_of,
    query_of,
)
from condconv_serve.domain import ImageSource
from condconv_serve.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineStalled,
    ImageError,
    InferenceFailed,
    InvalidParameter,
    MissingImage,
    OutOfMemory,
    ServiceError,
    TooManyImages,
)
from condconv_serve.inputs import GivenImage, GivenImages, ImageInput
from condconv_serve.results import ForImage, ImageDetections, ImageFeatures, ImagePrediction, ImageRouting

Result = TypeVar("Result", bound=ForImage)

OF_THE_IMAGE = (
    ImageError,
    MissingImage,
    BodyTooLarge,
    InferenceFailed,
    EngineStalled,
    OutOfMemory,
    DeadlineExceeded,
)
"""What can be wrong with one image. Alone in its request it makes the whole answer an error."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was read, or why it could not be."""

    id: str
    filename: str | None
    source: ImageSource | None
    error: ServiceError | None = None

    @property
    def size(self) -> int:
        """Bytes that it adds to a request."""
        return 0 if self.source is None else len(self.source.data)


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Result]):
    """What is asked about images.

    Attributes:
        name: of the client's method.
        path: of the route.
        options: a TypedDict of what may be asked.
        result: the type of what comes of an image.
        body: the type of an answer's JSON.
        fields: makes the result's fields of an entry of the body.
    """

    name: str
    path: str
    options: Any
    result: Callable[..., Result]
    body: type[PredictionsBody | RoutedBody | DetectionsBody | EmbeddingsBody]
    fields: Callable[..., dict[str, Any]]

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse options that it doesn't take; see `check_options`."""
        check_options(given, self.options, of=self.name)

    def call(self, images: Sequence[Loaded], given: Mapping[str, Any]) -> Call[list[Result]]:
        """The request for images that were read."""
        data = [image.source.data for image in images if image.source is not None]
        return Call(
            method="POST",
            path=self.path,
            read=lambda reply: self.read(reply, images),
            query=query_of(parameters_of(given)),
            headers=headers_of(given),
            content=data[0] if len(data) == 1 else None,
            files=data if len(data) > 1 else (),
            seconds=given.get("timeout"),
            timed=True,
        )

    def read(self, reply: Reply, images: Sequence[Loaded]) -> list[Result]:
        """The results that a reply tells.

        Raises:
            ServiceError: the error that it tells. RemoteFailed: it is no answer about these images.
        """
        answer = reader(self.body)(reply)
        if len(answer.predictions) != len(images):
            raise foreign(reply)
        return [
            self.result(id=image.id, filename=image.filename, **self.fields(body, answer.model, reply))
            for image, body in zip(images, answer.predictions, strict=True)
        ]


def load(image: GivenImage, *, keep: bool) -> Loaded:
    """Read an image.

    Args:
        image: what to read.
        keep: whether to keep an error of the image rather than raise it.

    Raises:
        ServiceError: it can't be read.
    """
    try:
        return Loaded(image.id, image.filename, image.encoded())
    except ServiceError as error:
        if not keep:
            raise
        return Loaded(image.id, image.filename, None, error)


def one_image(image: ImageInput) -> ImageSource:
    """Read the image of a call that takes one.

    Raises:
        InvalidParameter: these are several. Otherwise as `load`.
    """
    given = GivenImages(image)
    if not given.alone:
        raise InvalidParameter("This takes one image, not many.")
    (only,) = given
    return only.encoded()


class Packer:
    """Puts images together to requests."""

    def __init__(self, policy: RequestPolicy) -> None:
        """Fill requests as far as `policy` allow."""
        self._policy = policy
        self._waiting: list[Loaded] = []
        self._bytes = 0

    def add(self, image: Loaded, *, at_once: bool) -> Iterator[list[Loaded]]:
        """Take an image; gives the requests that became full, or also one that didn't, if it is to go `at_once`."""
        if self._waiting and self._bytes + image.size > self._policy.image_bytes:
            yield self._take()
        self._waiting.append(image)
        self._bytes += image.size
        if at_once or len(self._waiting) >= self._policy.images:
            yield self._take()

    def rest(self) -> Iterator[list[Loaded]]:
        """The last request, if any image is left."""
        if self._waiting:
            yield self._take()

    def _take(self) -> list[Loaded]:
        taken, self._waiting, self._bytes = self._waiting, [], 0
        return taken


def in_turn(results: Iterable[Result], given: Mapping[str, Any]) -> Iterator[Result]:
    """Results, until one has an error that is to be raised."""
    for result in results:
        if given.get("on_error") == "raise":
            result.raise_error()
        yield result


def answer_one(kind: Kind[Result], image: Loaded, given: Mapping[str, Any], policy: RequestPolicy) -> Work[Result]:
    """The answer about one image. Raises its error."""
    (result,) = yield from exchange(kind.call([image], given), policy)
    return result


def answer_some(
    kind: Kind[Result], images: Sequence[Loaded], given: Mapping[str, Any], policy: RequestPolicy
) -> Work[list[Result]]:
    """The answers about the images of one request, or of several if the server takes fewer.

    Raises:
        ServiceError: the request can't be answered; an image's own error is in its result.
    """
    good = [image for image in images if image.source is not None]
    answers = iter((yield from _ask(kind, good, given, policy)) if good else ())
    return [
        next(answers)
        if image.source is not None
        else kind.result(id=image.id, filename=image.filename, error=image.error)
        for image in images
    ]


def _ask(
    kind: Kind[Result], images: Sequence[Loaded], given: Mapping[str, Any], policy: RequestPolicy
) -> Work[list[Result]]:
    try:
        return (yield from exchange(kind.call(images, given), policy))
    except (TooManyImages, BodyTooLarge) as error:
        if len(images) == 1:
            if isinstance(error, TooManyImages):
                raise
            return [_failed(kind, images[0], error)]
        half = len(images) // 2
        if isinstance(error, TooManyImages):
            policy.images = min(policy.images, half)
        else:
            policy.image_bytes = min(policy.image_bytes, sum(image.size for image in images) // 2)
    except OF_THE_IMAGE as error:
        if len(images) > 1 or error.status is None:  # None: the network's, so it is the request's
            raise
        return [_failed(kind, images[0], error)]
    first = yield from _ask(kind, images[:half], given, policy)
    second = yield from _ask(kind, images[half:], given, policy)
    return first + second


def _failed(kind: Kind[Result], image: Loaded, error: ServiceError) -> Result:
    return kind.result(id=image.id, filename=image.filename, error=error, request_id=error.request_id)


PREDICT = Kind(
    name="predict",
    path="/predict",
    options=PredictOptions,
    result=ImagePrediction,
    body=PredictionsBody,
    fields=prediction_fields,
)
ROUTING = Kind(
    name="routing",
    path="/routing",
    options=RoutingOptions,
    result=ImageRouting,
    body=RoutedBody,
    fields=routing_fields,
)
DETECT = Kind(
    name="detect",
    path="/detect",
    options=DetectOptions,
    result=ImageDetections,
    body=DetectionsBody,
    fields=detection_fields,
)
FEATURES = Kind(
    name="features",
    path="/features",
    options=FeaturesOptions,
    result=ImageFeatures,
    body=EmbeddingsBody,
    fields=features_fields,
)
