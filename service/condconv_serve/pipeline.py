"""From a request's images to its answer: decode, compute, let a task say what the result means.

All fronts that take images use it, and so does the command line.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from condconv_serve.domain import (
    Answered,
    ImageResult,
    ImageSource,
    MadeRow,
    ModelInfo,
    PixelSource,
    RowAnswer,
    ServedModel,
)
from condconv_serve.errors import ServiceError, unexpected_error
from condconv_serve.imaging import ImageDecoder
from condconv_serve.imaging.given_pixels import row_of_pixels
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.tasks.task import FindsObjects, Task

Answer = TypeVar("Answer")
MAX_HOLD_SECONDS = 0.005
"""After so much work on a request's answers, others get their turn: thousands of boxes take a while."""
logger = logging.getLogger(__name__)


class ImagePipeline:
    """Answers the images of requests."""

    def __init__(
        self,
        plane: InferencePlane,
        decoder: ImageDecoder,
        *,
        observe: Callable[[ModelInfo, RowAnswer], None] = lambda model, row: None,
        count_objects: Callable[[str, Sequence[float]], None] = lambda model, scores: None,
    ) -> None:
        """Wire the parts together.

        Args:
            plane: computes rows.
            decoder: makes rows of images.
            observe: gets what the network answered for each image, for statistics; called on the event loop.
            count_objects: gets a detector's name, and the scores of the objects that its answer for an image holds.
        """
        self.plane = plane
        self.decoder = decoder
        self._observe = observe
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
    ) -> Answered[Answer]:
        """Answer the images of one request.

        Args:
            images: undecoded images, or rows of pixels; at least one.
            task: what to answer about them.
            model: name of the model; the default one if None.
            version: its version or an alias; the alias `default`, or else the newest version, if None.
            split_key: where an alias splits traffic, equal keys get equal versions; see `ModelSource.get`.
            priority: how urgent they are.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.

        Returns:
            One result per image, in order. A failed image has its error; the others are still answered.

        Raises:
            InvalidParameter: the model can't do this task with these parameters.
            ModelNotFound: no such model. VersionNotFound: no such version.
            QueueFull, WaitTooLong, Draining: the images can't be taken; none was decoded.
        """
        with self.plane.lease(model, version, split_key=split_key) as served:
            task.check(served.info)
            sources = [partial(self._row, image, served, deadline=deadline) for image in images]
            rows = await self.plane.infer_each(served, sources, priority=priority, deadline=deadline)
            results, since = list[ImageResult[Answer]](), time.monotonic()
            for place, (image, row) in enumerate(zip(images, rows, strict=True)):
                results.append(self._result(image, place, row, task, served.info))
                if time.monotonic() - since > MAX_HOLD_SECONDS:
                    await asyncio.sleep(0)
                    since = time.monotonic()
            return Answered(served.info, tuple(results))

    async def _row(self, image: ImageSource | PixelSource, model: ServedModel, *, deadline: float) -> MadeRow:
        if isinstance(image, PixelSource):
            return MadeRow(row_of_pixels(image.values, model.info), placement=image.placement)
        return await self.decoder.decode(image.data, model, deadline=deadline)

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
        self._observe(model, row)
        if isinstance(task, FindsObjects) and (scores := task.scores_in(answer)) is not None:
            self._count_objects(model.name, scores)
        return ImageResult(id=identity, filename=filename, prediction=answer)
