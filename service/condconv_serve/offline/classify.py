"""Classifies files without a server, with the same parts as the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from condconv_serve.bootstrap import Service
from condconv_serve.domain import Classification, ClassifiedImage, ImageSource, ServedModel, readable
from condconv_serve.errors import ServiceError
from condconv_serve.fronts.native.schemas import predict_response
from condconv_serve.offline.files import read_image
from condconv_serve.settings import Settings
from condconv_serve.tasks.classification import Classify

PROGRESS_FROM = 8
"""With fewer images than this a progress bar would only flicker."""


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """The results of all files, in order."""

    model: ServedModel
    results: tuple[ClassifiedImage, ...]

    @property
    def exit_code(self) -> int:
        """1 if any image failed."""
        return int(any(result.error is not None for result in self.results))

    def to_json(self, *, routing: bool) -> dict[str, Any]:
        """The answer in the shape of the HTTP answer, and the engine that computed it."""
        body = predict_response(Classification(self.model.info, self.results), routing=routing)
        return {**body.model_dump(mode="json", exclude_none=True), "computed_by": asdict(self.model.computed_by)}


def classify_files(
    settings: Settings, files: Sequence[Path], *, model: str | None, top_k: int | None, console: Console
) -> LocalAnswer:
    """Classify files with the models of the store.

    Args:
        settings: as for a server.
        files: images.
        model: name of the model; the default one if None.
        top_k: classes per image; 5, or all if there are fewer, if None.
        console: where a progress bar goes if there are many.

    Raises:
        ServiceError: the store or the model is unusable, or `top_k` impossible; an image's own error is in its result.
    """
    service = Service(settings, only=model)
    service.load()
    served, classify = service.registry.get(model), Classify(top_k)
    progress = Progress(
        TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )

    async def run() -> tuple[ClassifiedImage, ...]:
        task = progress.add_task("", total=len(files))
        # Enough to keep decoders and streams busy without reading all files at once.
        room = asyncio.Semaphore(4 * service.plan.max_batch_size)

        async def one(file: Path) -> ClassifiedImage:
            async with room:
                result = await _classify_file(service, file, settings, classify, model=model)
            progress.advance(task)
            return result

        async with service.running():
            return tuple(await asyncio.gather(*(one(file) for file in files)))

    if len(files) < PROGRESS_FROM:
        return LocalAnswer(served, asyncio.run(run()))
    with progress:
        return LocalAnswer(served, asyncio.run(run()))


async def _classify_file(
    service: Service, file: Path, settings: Settings, task: Classify, *, model: str | None
) -> ClassifiedImage:
    name = readable(file)
    try:
        data = await asyncio.to_thread(read_image, file, settings.max_body_bytes)
    except ServiceError as error:
        return ClassifiedImage(id=name, filename=name, error=error)
    source = ImageSource(data, filename=name, id=name)
    answer = await service.images.run([source], task, model=model)
    return answer.results[0]
