"""Answers about the images that a command was given, here or with a server, and hands each result on as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from condconv_serve.cli.common import INTERRUPTED, read_settings
from condconv_serve.cli.output import err, into_file, note
from condconv_serve.cli.results import AnsweringModel, Results
from condconv_serve.domain import Detection, ImageResult, Prediction, RoutedAnswer
from condconv_serve.errors import ServiceError
from condconv_serve.settings import Settings

if TYPE_CHECKING:
    from condconv_serve.inputs.files import LocalImage
    from condconv_serve.tasks.detection import Detect
    from condconv_serve.tasks.features import Embedding
    from condconv_serve.tasks.task import Task

Answer = TypeVar("Answer")
Answers: TypeAlias = AbstractContextManager[tuple[AnsweringModel, Iterator[ImageResult[Answer]]]]
"""Which model answers, and its answers as they come."""
Ask: TypeAlias = "Callable[[Sequence[LocalImage]], Answers[Answer]]"


@dataclass(frozen=True, kw_only=True)
class Question(Generic[Answer]):
    """What is asked about each image.

    Attributes:
        doing: what a progress bar says of it.
        task: answers it here.
        remotely: asks a server for the answers about images, in order; called as `cli.remote.classify_remotely` is.
        prepare: sees the images before they are read, and may put others in their places.
    """

    doing: str
    task: Task[Answer]
    remotely: Callable[..., Iterator[ImageResult[Answer]]]
    prepare: Callable[[Sequence[LocalImage], Settings], Sequence[LocalImage]] = lambda images, settings: images


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where images are answered: here, or on a server.

    Attributes:
        model: `NAME[/VERSION]`; the default model if None.
        model_store: directory of the store, if it was given; for here.
        server: address of the server; here if None.
        api_key: for the server, if it was given.
    """

    model: str | None
    model_store: Path | None
    server: str | None
    api_key: str | None


def classify(
    arguments: Sequence[str],
    results: Results[Prediction],
    where: Where,
    *,
    top_k: int | None,
    threshold: float = 0.0,
) -> int:
    """Classify images; as `answer`.

    Args:
        arguments: files, folders, globs, or `-`.
        results: prints them.
        where: here, or on a server.
        top_k: classes per image, if it was given.
        threshold: of these, classes with a smaller probability are left out.
    """
    from condconv_serve.tasks.classification import Classify

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[Prediction]]:
        from condconv_serve.cli.remote import classify_remotely

        return classify_remotely(*given, **options, top_k=top_k, threshold=threshold)

    question = Question(doing="classifying", task=Classify(top_k, threshold), remotely=remotely)
    return answer(arguments, results, where, question)


def route(arguments: Sequence[str], results: Results[RoutedAnswer], where: Where) -> int:
    """Show which experts images are routed to, whatever the model is for; as `answer`."""
    from condconv_serve.tasks.by_task import Routed

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[RoutedAnswer]]:
        from condconv_serve.cli.remote import route_remotely

        return route_remotely(*given, **options)

    return answer(arguments, results, where, Question(doing="routing", task=Routed(), remotely=remotely))


def detect(
    arguments: Sequence[str],
    results: Results[Detection],
    where: Where,
    *,
    task: Detect,
    routing: bool = False,
    plot: Path | None = None,
) -> int:
    """Find objects in images; as `answer`.

    Args:
        arguments: files, folders, globs, or `-`.
        results: prints them.
        where: here, or on a server.
        task: with its thresholds.
        routing: whether a server shall return routing weights.
        plot: folder for pictures, if they are wanted. One that can't be written is a failure.
    """

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[Detection]]:
        from condconv_serve.cli.remote import detect_remotely

        return detect_remotely(*given, **options, task=task, routing=routing)

    if plot is None:
        return answer(arguments, results, where, Question(doing="detecting", task=task, remotely=remotely))
    from condconv_serve.cli.pictures import WithPictures

    pictures = WithPictures(results, plot)
    question = Question(doing="detecting", task=task, remotely=remotely, prepare=pictures.prepare)
    return answer(arguments, pictures, where, question) or int(pictures.failed > 0)


def embed(arguments: Sequence[str], results: Results[Embedding], where: Where, *, logits: bool) -> int:
    """Compute images' features, and logits if wanted; as `answer`."""
    from condconv_serve.tasks.features import Embed

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[Embedding]]:
        from condconv_serve.cli.remote import embed_remotely

        return embed_remotely(*given, **options, logits=logits)

    return answer(arguments, results, where, Question(doing="embedding", task=Embed(logits), remotely=remotely))


def answer(arguments: Sequence[str], results: Results[Answer], where: Where, question: Question[Answer]) -> int:
    """Answer a question about images.

    Args:
        arguments: files, folders, globs, or `-`.
        results: prints them.
        where: here, or on a server.
        question: what is asked.

    Returns:
        The command's exit code: 1 if an image failed, 130 after Ctrl-C.

    Raises:
        ServiceError: an argument, the store, the model or the server is unusable.
    """
    from condconv_serve.inputs.files import find_images
    from condconv_serve.offline.interrupts import interrupts_held
    from condconv_serve.offline.progress import ProgressBar

    settings = read_settings(model_store=where.model_store)
    ask = (_here if where.server is None else _remotely)(settings, where, question)
    images = question.prepare(find_images(arguments, max_bytes=settings.max_body_bytes, note=note), settings)
    done = failed = 0
    try:
        with ask(images) as (model, answers):
            with interrupts_held():
                results.started(model)
            # Results on a terminal are progress enough.
            with ProgressBar(question.doing, wanted=None if into_file() else False, console=err) as bar:
                for result in answers:
                    with interrupts_held():
                        results.result(result)
                        done, failed = done + 1, failed + (result.prediction is None)
                        bar.update(done, len(images))
    except KeyboardInterrupt:
        results.ended(interrupted=True)
        note(f"interrupted after {done} of {len(images)} images")
        return INTERRUPTED
    except ServiceError:  # a server may go away in the middle; what was printed is whole even then
        results.ended(interrupted=True)
        raise
    results.ended(interrupted=False)
    return int(failed > 0)


def _here(settings: Settings, where: Where, question: Question[Answer]) -> Ask[Answer]:
    from condconv_serve.offline.bundles import find_bundle
    from condconv_serve.offline.local_service import LocalService
    from condconv_serve.store import Catalog

    bundle, task = find_bundle(settings, Catalog(settings.model_store), where.model), question.task

    @contextmanager
    def ask(images: Sequence[LocalImage]) -> Iterator[tuple[AnsweringModel, Iterator[ImageResult[Answer]]]]:
        with LocalService(settings, bundle, release=False) as service:
            task.check(service.model.info)
            yield AnsweringModel.of(service.model), service.stream((image, task) for image in images)

    return ask


def _remotely(settings: Settings, where: Where, question: Question[Answer]) -> Ask[Answer]:
    from condconv_serve.cli.remote import describe
    from condconv_serve.client import Client

    @contextmanager
    def ask(images: Sequence[LocalImage]) -> Iterator[tuple[AnsweringModel, Iterator[ImageResult[Answer]]]]:
        with Client(where.server, api_key=where.api_key) as client:
            model = describe(client, where.model)
            yield model, question.remotely(client, images, model, max_bytes=settings.max_body_bytes)

    return ask
