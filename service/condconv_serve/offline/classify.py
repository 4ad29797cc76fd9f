"""Classifies images without a server, with the same parts as the server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from condconv_serve.bootstrap import Service
from condconv_serve.domain import ClassifiedImage, ImageSource, ServedModel
from condconv_serve.errors import ServiceError
from condconv_serve.offline.files import LocalImage
from condconv_serve.settings import Settings
from condconv_serve.tasks.classification import Classify


class Listener(Protocol):
    """Gets results as they come, in the order of the images."""

    def started(self, model: ServedModel) -> None:
        """The model is loaded."""

    def result(self, result: ClassifiedImage) -> None:
        """An image has its classes, or its own error."""


def classify_images(
    settings: Settings, images: Iterable[LocalImage], listener: Listener, *, bundle: Path, top_k: int | None = None
) -> None:
    """Classify images with one version of a model.

    Ctrl-C ends it with a KeyboardInterrupt between two calls of the listener, never during one.

    Args:
        settings: as for a server.
        images: what to classify; a few are read ahead, however many there are.
        listener: gets each result once all before it are there; nothing is kept here.
        bundle: directory of the version.
        top_k: classes per image; 5, or all if there are fewer, if None.

    Raises:
        ServiceError: the store or the model is unusable, or `top_k` impossible; an image's own error is in its result.
    """
    service = Service(settings, only=bundle.parent.name)
    model, classify = service.load_only(bundle), Classify(top_k)
    classify.check(model.info)
    asyncio.run(_classify_all(service, model, images, classify, listener, settings))


async def _classify_all(
    service: Service,
    model: ServedModel,
    images: Iterable[LocalImage],
    task: Classify,
    listener: Listener,
    settings: Settings,
) -> None:
    async def classify(image: LocalImage) -> ClassifiedImage:
        try:
            data = await asyncio.to_thread(image.read, settings.max_body_bytes)
        except ServiceError as error:
            return ClassifiedImage(id=image.name, filename=image.name, error=error)
        source = ImageSource(data, filename=image.name, id=image.name)
        answer = await service.images.run([source], task, model=model.name, version=model.version)
        return answer.results[0]

    # Keeps decoders and streams busy.
    ahead = min(4 * service.plan.max_batch_size * service.plan.streams, settings.max_queue_rows)
    coming: deque[asyncio.Task[ClassifiedImage]] = deque()
    async with service.running():
        listener.started(model)
        try:
            for image in images:
                if len(coming) == ahead:
                    listener.result(await coming.popleft())
                coming.append(asyncio.create_task(classify(image)))
            while coming:
                listener.result(await coming.popleft())
        finally:
            for one in coming:
                one.cancel()
            await asyncio.gather(*coming, return_exceptions=True)
