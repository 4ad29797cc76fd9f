"""Answers about images without a server, with the same parts as the server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from condconv_serve.bootstrap import Service
from condconv_serve.domain import ClassifiedImage, ImageResult, ImageSource, ServedModel
from condconv_serve.errors import ServiceError
from condconv_serve.offline.files import LocalImage
from condconv_serve.settings import Settings
from condconv_serve.tasks.classification import Classify
from condconv_serve.tasks.task import Task

Answer = TypeVar("Answer")
Result_contra = TypeVar("Result_contra", contravariant=True)


class Listener(Protocol[Result_contra]):
    """Gets results as they come, in the order of the images."""

    def started(self, model: ServedModel) -> None:
        """The model is loaded."""

    def result(self, result: Result_contra, /) -> None:
        """An image has its answer, or its own error."""


def classify_images(
    settings: Settings,
    images: Iterable[LocalImage],
    listener: Listener[ClassifiedImage],
    *,
    bundle: Path,
    top_k: int | None = None,
) -> None:
    """Classify images with one version of a model.

    Args:
        settings: as for a server.
        images: what to classify.
        listener: gets each result.
        bundle: directory of the version.
        top_k: classes per image; 5, or all if there are fewer, if None.

    Raises:
        ServiceError: as `answer_images`.
    """
    task = Classify(top_k)
    answer_images(settings, ((image, task) for image in images), listener, bundle=bundle)


def answer_images(
    settings: Settings,
    images: Iterable[tuple[LocalImage, Task[Answer]]],
    listener: Listener[ImageResult[Answer]],
    *,
    bundle: Path,
) -> None:
    """Do a task for each image with one version of a model.

    Ctrl-C ends it with a KeyboardInterrupt between two calls of the listener, never during one.

    Args:
        settings: as for a server.
        images: what to answer about; a few are read ahead, however many there are.
        listener: gets each result once all before it are there; nothing is kept here.
        bundle: directory of the version.

    Raises:
        ServiceError: the store or the model is unusable, or a task impossible; an image's own error is in its result.
    """
    service = Service(settings, only=bundle.parent.name)
    model = service.load_only(bundle)
    asyncio.run(_answer_all(service, model, images, listener, settings))


async def _answer_all(
    service: Service,
    model: ServedModel,
    images: Iterable[tuple[LocalImage, Task[Answer]]],
    listener: Listener[ImageResult[Answer]],
    settings: Settings,
) -> None:
    async def answer(image: LocalImage, task: Task[Answer]) -> ImageResult[Answer]:
        try:
            data = await asyncio.to_thread(image.read, settings.max_body_bytes)
        except ServiceError as error:
            return ImageResult(id=image.name, filename=image.name, error=error)
        source = ImageSource(data, filename=image.name, id=image.name)
        answered = await service.images.run([source], task, model=model.name, version=model.version)
        return answered.results[0]

    # Keeps decoders and streams busy.
    ahead = min(4 * service.plan.max_batch_size * service.plan.streams, settings.max_queue_rows)
    coming: deque[asyncio.Task[ImageResult[Answer]]] = deque()
    async with service.running():
        started = False
        try:
            for image, task in images:
                task.check(model.info)
                if not started:
                    listener.started(model)
                    started = True
                if len(coming) == ahead:
                    listener.result(await coming.popleft())
                coming.append(asyncio.create_task(answer(image, task)))
            while coming:
                listener.result(await coming.popleft())
        finally:
            for one in coming:
                one.cancel()
            await asyncio.gather(*coming, return_exceptions=True)
