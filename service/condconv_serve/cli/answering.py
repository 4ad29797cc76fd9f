"""Answers about the images that a command was given, here or with a server, and hands each result on as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
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
Ask: TypeAlias = "Callable[[Sequence[LocalImage]], Iterator[ImageResult[Answer]]]"
"""Answers about images as they come, in order. Threads may share it."""
Answering: TypeAlias = "Callable[[], AbstractContextManager[tuple[AnsweringModel, Ask[Answer]]]]"
"""Gets ready to answer, and says which model does it."""


@dataclass(frozen=True, kw_only=True)
class Question(Generic[Answer]):
    """What is asked about each image.

    Attributes:
        name: of the command.
        doing: what a progress bar says of it.
        task: answers it here.
        remotely: asks a server for the answers about images, in order; called as `cli.remote.classify_remotely` is.
        prepare: sees the images before they are read, and may put others in their places.
        routing: whether answers are to have routing weights.
    """

    name: str
    doing: str
    task: Task[Answer]
    remotely: Callable[..., Iterator[ImageResult[Answer]]]
    prepare: Callable[[Sequence[LocalImage], Settings], Sequence[LocalImage]] = lambda images, settings: images
    routing: bool = False


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


def classifying(*, top_k: int | None, threshold: float = 0.0, routing: bool = False) -> Question[Prediction]:
    """Which class is it?

    Args:
        top_k: classes per image, if it was given.
        threshold: of these, classes with a smaller probability are left out.
        routing: whether a server shall return routing weights.
    """
    from condconv_serve.tasks.classification import Classify

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[Prediction]]:
        from condconv_serve.cli.remote import classify_remotely

        return classify_remotely(*given, **options, top_k=top_k, threshold=threshold, routing=routing)

    task = Classify(top_k, threshold)
    return Question(name="predict", doing="classifying", task=task, remotely=remotely, routing=routing)


def routed() -> Question[RoutedAnswer]:
    """Which experts is it routed to, whatever the model is for?"""
    from condconv_serve.tasks.by_task import Routed

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[RoutedAnswer]]:
        from condconv_serve.cli.remote import route_remotely

        return route_remotely(*given, **options)

    return Question(name="routing", doing="routing", task=Routed(), remotely=remotely, routing=True)


def detecting(task: Detect, *, routing: bool = False) -> Question[Detection]:
    """Which objects are in it?

    Args:
        task: with its thresholds.
        routing: whether a server shall return routing weights.
    """

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[Detection]]:
        from condconv_serve.cli.remote import detect_remotely

        return detect_remotely(*given, **options, task=task, routing=routing)

    return Question(name="detect", doing="detecting", task=task, remotely=remotely, routing=routing)


def embedding(*, logits: bool) -> Question[Embedding]:
    """What are its features, and its logits if wanted?"""
    from condconv_serve.tasks.features import Embed

    def remotely(*given: Any, **options: Any) -> Iterator[ImageResult[Embedding]]:
        from condconv_serve.cli.remote import embed_remotely

        return embed_remotely(*given, **options, logits=logits)

    return Question(name="features", doing="embedding", task=Embed(logits), remotely=remotely)


def answer_with_pictures(
    arguments: Sequence[str], results: Results[Detection], where: Where, question: Question[Detection], plot: Path
) -> int:
    """As `answer`, and write a picture for each image to the folder `plot`. One that can't be written is a failure."""
    from condconv_serve.cli.pictures import WithPictures

    pictures = WithPictures(results, plot)
    return answer(arguments, pictures, where, replace(question, prepare=pictures.prepare)) or int(pictures.failed > 0)


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
    answering = answering_at(settings, where, question)
    images = question.prepare(find_images(arguments, max_bytes=settings.max_body_bytes, note=note), settings)
    done = failed = 0
    try:
        with answering() as (model, ask):
            with interrupts_held():
                results.started(model)
            # Results on a terminal are progress enough.
            with ProgressBar(question.doing, wanted=None if into_file() else False, console=err) as bar:
                for result in ask(images):
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


def answering_at(
    settings: Settings, where: Where, question: Question[Answer], *, patience: float | None = None
) -> Answering[Answer]:
    """Find what answers: a bundle here, or a server.

    Args:
        settings: as for a server.
        where: here, or on a server.
        question: what is asked.
        patience: seconds to wait for a server that is busy or away, once it has said which model answers; the client's
            usual patience if None.

    Raises:
        ServiceError: the store or the model is unusable.
    """
    return _here(settings, where, question) if where.server is None else _remotely(settings, where, question, patience)


def _here(settings: Settings, where: Where, question: Question[Answer]) -> Answering[Answer]:
    from condconv_serve.offline.bundles import find_bundle
    from condconv_serve.offline.local_service import LocalService
    from condconv_serve.store import Catalog

    bundle, task = find_bundle(settings, Catalog(settings.model_store), where.model), question.task

    @contextmanager
    def answering() -> Iterator[tuple[AnsweringModel, Ask[Answer]]]:
        with LocalService(settings, bundle, release=False) as service:
            task.check(service.model.info)
            yield (
                AnsweringModel.of(service.model),
                lambda images: service.stream((image, task) for image in images),
            )

    return answering


def _remotely(
    settings: Settings, where: Where, question: Question[Answer], patience: float | None
) -> Answering[Answer]:
    from condconv_serve.cli.remote import describe
    from condconv_serve.client import Client

    patient: dict[str, Any] = {} if patience is None else {"timeout": patience, "retries": 10**9, "concurrency": 1}

    @contextmanager
    def answering() -> Iterator[tuple[AnsweringModel, Ask[Answer]]]:
        with Client(where.server, api_key=where.api_key) as client:
            model = describe(client, where.model)
        with Client(where.server, api_key=where.api_key, **patient) as client:
            yield (
                model,
                lambda images: question.remotely(client, images, model, max_bytes=settings.max_body_bytes),
            )

    return answering
