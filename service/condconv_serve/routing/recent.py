"""The routing of recent requests: the newest ones, each only for its sender."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property

from condconv_serve.domain import Detection, ImageResult, RoutedAnswer
from condconv_serve.errors import RoutingNotFound

MAX_REQUESTS = 1000
MAX_BYTES = 16 * 2**20
_BYTES_PER_IMAGE = 1000  # timings, and Python's own
_BYTES_PER_CLASS = 160
_BYTES_PER_OBJECT = 600
_Place = tuple[str | None, str]


@dataclass(frozen=True, kw_only=True)
class RecentRequest:
    """What was answered to one request; `at` is in seconds since the epoch."""

    request_id: str
    model: str
    version: str
    at: float
    results: tuple[ImageResult[RoutedAnswer], ...]

    @cached_property
    def size(self) -> int:
        """About how many bytes it takes."""
        return sum(
            _BYTES_PER_IMAGE
            + sys.getsizeof(result.filename)
            + sys.getsizeof(result.id)
            + (_size(result.prediction) if result.prediction else 0)
            for result in self.results
        )


class RecentRequests:
    """The newest requests, within limits of their number and memory. Thread-safe."""

    def __init__(self, *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        """Start empty."""
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._requests: OrderedDict[_Place, RecentRequest] = OrderedDict()

    def remember(self, request: RecentRequest, *, owner: str | None) -> None:
        """Keep a request for its owner: the name of the API key that sent it.

        A later request with the same id replaces it. A request larger than the whole memory isn't kept.
        """
        request = replace(request, results=tuple(_detached(result) for result in request.results))
        if request.size > self._max_bytes:
            return
        with self._lock:
            self._drop((owner, request.request_id))
            self._requests[owner, request.request_id] = request
            self._bytes += request.size
            while self._bytes > self._max_bytes or len(self._requests) > self._max_requests:
                self._drop(next(iter(self._requests)))

    async def find(self, request_id: str, *, owner: str | None) -> RecentRequest:
        """Return a request of this owner.

        Raises:
            RoutingNotFound: there is no such request, or it has another owner; the message is the same.
        """
        with self._lock:
            request = self._requests.get((owner, request_id))
        if request is None:
            raise RoutingNotFound(
                f"No recent request of yours has the id {request_id[:128]!r}; only the newest ones are kept, and none "
                "outlives a restart."
            )
        return request

    def _drop(self, place: _Place) -> None:
        if (request := self._requests.pop(place, None)) is not None:
            self._bytes -= request.size


def _size(answer: RoutedAnswer) -> int:
    entries = (
        len(answer.objects) * _BYTES_PER_OBJECT
        if isinstance(answer, Detection)
        else len(answer.classes) * _BYTES_PER_CLASS
    )
    return answer.routing.weights.nbytes + entries


def _detached(result: ImageResult[RoutedAnswer]) -> ImageResult[RoutedAnswer]:
    """A copy that keeps nothing else in memory: not a whole batch's weights, nor an error's frames and image."""
    if result.prediction is None:
        if result.error is not None:
            result.error.__traceback__ = result.error.__cause__ = result.error.__context__ = None
        return result
    routing = result.prediction.routing
    return replace(
        result, prediction=replace(result.prediction, routing=replace(routing, weights=routing.weights.copy()))
    )
