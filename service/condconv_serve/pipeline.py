"""From a request's images to its answer: decode, compute, let a task say what the result means.

All fronts that take images use it, and so does the command line.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from condconv_serve.domain import (
    Answered,
    Copies,
    ImageResult,
    ImageSource,
    MadeRow,
    ModelInfo,
    PixelSource,
    Row,
    RowAnswer,
    RowSource,
    ServedModel,
    Tensors,
)
from condconv_serve.domain.caching import CacheUse
from condconv_serve.errors import NotCached, ServiceError, unexpected_error
from condconv_serve.imaging import ImageDecoder
from condconv_serve.imaging.digests import digests_of
from condconv_serve.imaging.given_pixels import row_of_pixels
from condconv_serve.inference.batching import Priority
from condconv_serve.store.aliases import Alias, mirrors_of
from condconv_serve.tasks.task import FindsObjects, Task

Answer = TypeVar("Answer")
MAX_HOLD_SECONDS = 0.005
"""After so much work on a request's answers, others get their turn: thousands of boxes take a while."""
logger = logging.getLogger(__name__)


class Plane(Protocol):
    """Leases a model, and computes its rows: `InferencePlane`, or what stands for one in another process.

    All methods do what those of `condconv_serve.inference.plane.InferencePlane` say.
    """

    def lease(
        self, model: str | None = None, version: str | None = None, *, split_key: str | None = None
    ) -> AbstractContextManager[ServedModel]:
        """Find a model, and keep it loaded until the block ends."""
        ...

    async def check(
        self,
        model: str | None = None,
        version: str | None = None,
        *,
        split_key: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        cache: CacheUse | None = None,
    ) -> None:
        """Refuse a request before its body is read, if not even one row of it could be admitted."""
        ...

    async def infer(
        self, model: ServedModel, rows: Row, *, priority: Priority = Priority.NORMAL, deadline: float = math.inf
    ) -> Tensors:
        """Compute the rows of one request."""
        ...

    async def infer_each(
        self,
        model: ServedModel,
        sources: Sequence[RowSource],
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        cache: CacheUse | None = None,
    ) -> list[RowAnswer | ServiceError]:
        """Make and compute the rows of one request. If a row fails, the others are still answered."""
        ...


@dataclass(frozen=True, slots=True)
class _Copies:
    """Which versions get copies of a request's images.

    A file goes along only if one of them needs it: it may be large, and the engine in another process.
    """

    to: tuple[str, ...]
    with_file: bool

    def of(self, image: ImageSource | PixelSource) -> Copies:
        if isinstance(image, PixelSource):
            return Copies(to=self.to, is_pixels=True)
        return Copies(to=self.to, image=image.data if self.with_file else None)


class ImagePipeline:
    """Answers the images of requests."""

    def __init__(
        self,
        plane: Plane,
        decoder: ImageDecoder,
        *,
        digests: bool = False,
        aliases: Callable[[str], Mapping[str, Alias]] = lambda model: {},
        count_objects: Callable[[str, Sequence[float]], None] = lambda model, scores: None,
    ) -> None:
        """Wire the parts together.

        Args:
            plane: computes rows.
            decoder: makes rows of images.
            digests: whether the plane gets a hash of each image. Hashing costs about a millisecond per megabyte.
            aliases: those of a model that are in force; they say which versions get copies of its images.
            count_objects: gets a detector's name, and the scores of the objects that its answer for an image holds.
        """
        self.plane = plane
        self.decoder = decoder
        self._digests = digests
        self._aliases = aliases
        self._count_objects = count_objects

    async def run(
        self,
        images: Sequence[ImageSource | PixelSource],
        task: Task[Answer],
        *,
        model: str | None = None,
        version: str | None = None,
        split_key: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        cache: CacheUse | None = None,
    ) -> Answered[Answer]:
        """Answer the images of one request.

        Args:
            images: undecoded images, or rows of pixels; at least one.
            task: what to answer about them.
            model: name of the model; the default one if None.
            version: its version or an alias; the alias `default`, or else the newest version, if None.
            split_key: where an alias splits traffic, equal keys get equal versions; see `ModelSource.get`. Where it
                mirrors requests, all of a key are mirrored or none.
            priority: how urgent they are.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.
            cache: how it may use the response cache, if there is one; not at all if None.

        Returns:
            One result per image, in order. A failed image has its error; the others are still answered.

        Raises:
            InvalidParameter: the model can't do this task with these parameters.
            ModelNotFound: no such model. VersionNotFound: no such version.
            NotCached: only answers from the cache are wanted, and there is no cache.
            QueueFull, WaitTooLong, Draining: the images can't be taken; none was decoded.
        """
        with self.plane.lease(model, version, split_key=split_key) as served:
            task.check(served.info)
            if cache is not None and cache.only and not self._digests:
                raise NotCached("This server keeps no answers, and the request takes no other.")
            digests = await digests_of(images) if self._digests else [None] * len(images)
            copies = self._copies(served, mirrors_of(self._aliases(served.name), version, split_key))
            sources = [
                RowSource(partial(self._row, image, served, copies=copies, deadline=deadline), digest)
                for image, digest in zip(images, digests, strict=True)
            ]
            rows = await self.plane.infer_each(served, sources, priority=priority, deadline=deadline, cache=cache)
            results, since = list[ImageResult[Answer]](), time.monotonic()
            for place, (image, row) in enumerate(zip(images, rows, strict=True)):
                results.append(self._result(image, place, row, task, served.info))
                if time.monotonic() - since > MAX_HOLD_SECONDS:
                    await asyncio.sleep(0)
                    since = time.monotonic()
            return Answered(served.info, tuple(results))

    def _copies(self, model: ServedModel, to: tuple[str, ...]) -> _Copies | None:
        return _Copies(to, with_file=any(self._crops_otherwise(model, version) for version in to)) if to else None

    def _crops_otherwise(self, model: ServedModel, version: str) -> bool:
        """Whether another version makes its own rows of an image's file; not if it isn't served."""
        try:
            with self.plane.lease(model.name, version) as other:
                return not model.info.preprocessing.makes_rows_like(other.info.preprocessing)
        except ServiceError:
            return False

    async def _row(
        self, image: ImageSource | PixelSource, model: ServedModel, *, copies: _Copies | None, deadline: float
    ) -> MadeRow:
        if isinstance(image, PixelSource):
            made = MadeRow(row_of_pixels(image.values, model.info), placement=image.placement)
        else:
            made = await self.decoder.decode(image.data, model, deadline=deadline)
        return made if copies is None else replace(made, copies=copies.of(image))

    def _result(
        self,
        image: ImageSource | PixelSource,
        place: int,
        row: RowAnswer | ServiceError,
        task: Task[Answer],
        model: ModelInfo,
    ) -> ImageResult[Answer]:
        identity = image.id if image.id is not None else str(place)
        filename = image.filename if isinstance(image, ImageSource) else None
        if isinstance(row, ServiceError):
            return ImageResult(id=identity, filename=filename, error=row)
        try:
            answer = task.answer(row, model)
        except Exception:  # a defect of ours must not spoil the request's other images
            logger.exception("the answer of %s/%s for an image met an unexpected error", model.name, model.version)
            error = unexpected_error()
            return ImageResult(id=identity, filename=filename, error=error)
        if isinstance(task, FindsObjects) and (scores := task.scores_in(answer)) is not None:
            self._count_objects(model.name, scores)
        return ImageResult(id=identity, filename=filename, prediction=answer)
