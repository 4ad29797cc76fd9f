"""What the command line does without a server: the same parts as behind HTTP, run once over files."""

from __future__ import annotations

import asyncio
import glob
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from condconv_serve.bootstrap import Service, load_model, plan_engines
from condconv_serve.domain import ImageResult, ImageSource, RoutingProfile, ServedModel, readable
from condconv_serve.errors import BodyTooLarge, BundleError, MissingImage, ServiceError
from condconv_serve.fronts.native.schemas import predict_response
from condconv_serve.imaging import decode_image, sufficient_side, transform
from condconv_serve.routing.profile import profile_from
from condconv_serve.routing.tally import Tally
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.settings import Settings
from condconv_serve.store import open_bundle
from condconv_serve.tasks.classification import Classification

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"})
"""What is taken for an image when a directory is searched."""
PROGRESS_FROM = 8
"""With fewer images than this a progress bar would only flicker."""
_UNLIMITED = 2**40


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """What became of all files, in order."""

    model: ServedModel
    results: tuple[ImageResult, ...]

    @property
    def exit_code(self) -> int:
        """1 if any image failed."""
        return int(any(result.error is not None for result in self.results))

    def to_json(self, *, routing: bool) -> dict[str, Any]:
        """The answer in the shape that HTTP gives it, and what computed it."""
        body = predict_response(Classification(self.model, self.results), routing=routing)
        return {**body.model_dump(mode="json", exclude_none=True), "computed_by": asdict(self.model.computed_by)}


def expand(arguments: Sequence[str]) -> list[Path]:
    """Turn files, directories (searched with all below) and globs into files.

    Raises:
        MissingImage: an argument stands for no file.
    """
    files: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.exists():
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
        if not found:
            raise MissingImage(f"{argument}: no such file, no directory with images, and no glob that matches any.")
        files.extend(found)
    return files


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
    served = service.registry.get(model)
    progress = Progress(
        TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )

    async def run() -> tuple[ImageResult, ...]:
        task = progress.add_task("", total=len(files))
        # Enough to keep decoders and streams busy without reading all files at once.
        room = asyncio.Semaphore(4 * service.plan.max_batch_size)

        async def one(file: Path) -> ImageResult:
            async with room:
                result = await _classify_file(service, file, settings, model=model, top_k=top_k)
            progress.advance(task)
            return result

        async with service.running():
            return tuple(await asyncio.gather(*(one(file) for file in files)))

    if len(files) < PROGRESS_FROM:
        return LocalAnswer(served, asyncio.run(run()))
    with progress:
        return LocalAnswer(served, asyncio.run(run()))


async def _classify_file(
    service: Service, file: Path, settings: Settings, *, model: str | None, top_k: int | None
) -> ImageResult:
    name = readable(file)
    try:
        data = await asyncio.to_thread(_read, file, settings.max_body_bytes)
    except ServiceError as error:
        return ImageResult(id=name, filename=name, error=error)
    source = ImageSource(data, filename=name, id=name)
    answer = await service.classifier.classify([source], model=model, top_k=top_k)
    return answer.results[0]


def _read(file: Path, max_bytes: int) -> bytes:
    try:
        if (size := file.stat().st_size) > max_bytes:
            raise BodyTooLarge(f"The file has {size} bytes; the most allowed is {max_bytes}.")
        return file.read_bytes()
    except OSError as error:
        raise MissingImage(f"The file can't be read: {error.strerror}.") from error


def verify_bundle(path: Path, plan: EnginePlan) -> None:
    """Check a bundle as a server would before serving it, and compute one image.

    Raises:
        BundleError: says what is wrong.
    """
    model = load_model(open_bundle(path), plan)
    size = model.preprocessing.image_size
    output = model.engine(np.zeros((1, size, size, 3), np.uint8))
    if not np.isfinite(output.logits).all():
        raise BundleError(f"{model.name}/{model.version}: the answer for a black image is not finite.")


@dataclass(frozen=True, slots=True)
class ProfiledFiles:
    """A profile of files' routing, and the files that could not be used with the reason of each."""

    profile: RoutingProfile
    failures: tuple[tuple[Path, ServiceError], ...]


def profile_files(
    settings: Settings, bundle: Path, files: Sequence[Path], *, min_class_images: int, console: Console
) -> ProfiledFiles:
    """Make a reference profile of a bundle's routing over files.

    Args:
        settings: as for a server.
        bundle: the bundle's directory.
        files: images.
        min_class_images: images that a class needs for a profile of its own.
        console: where a progress bar goes.

    Raises:
        BundleError: the bundle is unusable, or its network static.
        MissingImage: none of the files could be used.
    """
    plan = plan_engines(settings)
    model = load_model(open_bundle(bundle), plan)
    if not model.routing_blocks:
        raise BundleError(f"{model.name}/{model.version} is a static network, without routing.")
    chunks = [files[start : start + plan.max_batch_size] for start in range(0, len(files), plan.max_batch_size)]
    failures: list[tuple[Path, ServiceError]] = []
    progress = Progress(TextColumn("profiling"), BarColumn(), MofNCompleteColumn(), console=console)

    def count(stream: int) -> Tally:
        tally = Tally((len(model.routing_blocks), model.num_experts), class_bytes=_UNLIMITED)
        for chunk in chunks[stream :: plan.streams]:
            rows = [row for file in chunk if (row := _row(file, model, settings, failures)) is not None]
            if rows:
                output = model.engine(np.stack(rows), stream)
                classes = output.logits.argmax(axis=1)
                tally.merge(Tally.of(output.routing, classes, class_bytes=_UNLIMITED, experts=model.experts))
            progress.advance(task, len(chunk))
        return tally

    with progress, ThreadPoolExecutor(plan.streams) as threads:
        task = progress.add_task("", total=len(files))
        total, *others = threads.map(count, range(plan.streams))
    for tally in others:
        total.merge(tally)
    if not total.count:
        raise MissingImage(f"None of the {len(files)} files could be used; the first one: {failures[0][1]}")
    return ProfiledFiles(
        profile_from(total, min_class_images=min_class_images), tuple(sorted(failures, key=lambda failure: failure[0]))
    )


def _row(file: Path, model: ServedModel, settings: Settings, failures: list[tuple[Path, ServiceError]]) -> Any:
    """A file's row for the network; None if it can't be used, which is noted."""
    try:
        photo = decode_image(
            _read(file, settings.max_body_bytes),
            max_pixels=settings.max_pixels,
            sufficient_side=sufficient_side(model.preprocessing),
        )
    except ServiceError as error:
        failures.append((file, error))
        return None
    return transform(photo, model.preprocessing)
