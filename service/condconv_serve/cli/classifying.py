"""Classifies the images that a command was given, here or with a server, and hands each result on as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from condconv_serve.cli.common import INTERRUPTED, read_settings
from condconv_serve.cli.output import err, into_file, note
from condconv_serve.cli.results import AnsweringModel, Results
from condconv_serve.domain import ClassifiedImage
from condconv_serve.errors import ServiceError
from condconv_serve.settings import Settings

if TYPE_CHECKING:
    from condconv_serve.inputs.files import LocalImage

Answers: TypeAlias = AbstractContextManager[tuple[AnsweringModel, Iterator[ClassifiedImage]]]
"""Which model answers, and its answers as they come."""
Ask: TypeAlias = "Callable[[Sequence[LocalImage]], Answers]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where images are classified: here, or on a server.

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
    arguments: Sequence[str], results: Results, where: Where, *, top_k: int | None, routing: bool = False
) -> int:
    """Classify images.

    Args:
        arguments: files, folders, globs, or `-`.
        results: prints them.
        where: here, or on a server.
        top_k: classes per image, if it was given.
        routing: whether a server shall return routing weights.

    Returns:
        The command's exit code: 1 if an image failed, 130 after Ctrl-C.

    Raises:
        ServiceError: an argument, the store, the model or the server is unusable.
    """
    from condconv_serve.inputs.files import find_images
    from condconv_serve.offline.interrupts import interrupts_held
    from condconv_serve.offline.progress import ProgressBar

    settings = read_settings(model_store=where.model_store)
    ask = _here(settings, where, top_k) if where.server is None else _remotely(settings, where, top_k, routing)
    images = find_images(arguments, max_bytes=settings.max_body_bytes, note=note)
    done = failed = 0
    try:
        with ask(images) as (model, answers):
            with interrupts_held():
                results.started(model)
            # Results on a terminal are progress enough.
            with ProgressBar("classifying", wanted=None if into_file() else False, console=err) as bar:
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


def _here(settings: Settings, where: Where, top_k: int | None) -> Ask:
    from condconv_serve.offline.bundles import find_bundle
    from condconv_serve.offline.local_service import LocalService
    from condconv_serve.store import Catalog
    from condconv_serve.tasks.classification import Classify

    bundle, task = find_bundle(settings, Catalog(settings.model_store), where.model), Classify(top_k)

    @contextmanager
    def ask(images: Sequence[LocalImage]) -> Iterator[tuple[AnsweringModel, Iterator[ClassifiedImage]]]:
        with LocalService(settings, bundle, release=False) as service:
            task.check(service.model.info)
            yield AnsweringModel.of(service.model), service.stream((image, task) for image in images)

    return ask


def _remotely(settings: Settings, where: Where, top_k: int | None, routing: bool) -> Ask:
    from condconv_serve.cli.remote import classify_remotely, describe
    from condconv_serve.client import Client

    @contextmanager
    def ask(images: Sequence[LocalImage]) -> Iterator[tuple[AnsweringModel, Iterator[ClassifiedImage]]]:
        limit = settings.max_body_bytes
        with Client(where.server, api_key=where.api_key) as client:
            model = describe(client, where.model)
            yield model, classify_remotely(client, images, model, max_bytes=limit, top_k=top_k, routing=routing)

    return ask
