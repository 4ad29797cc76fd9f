"""Runs a job: asks about the photos that have no answer yet, and keeps what comes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from condconv_serve.domain import ImageResult
from condconv_serve.errors import (
    BodyTooLarge,
    CapacityError,
    DeadlineExceeded,
    EngineStalled,
    ImageError,
    InferenceFailed,
    MissingImage,
    OutOfMemory,
    RemoteFailed,
    RequestError,
    ServiceError,
)
from condconv_serve.inputs.files import LocalImage
from condconv_serve.jobs.journal import Entry, Journal
from condconv_serve.jobs.parallel import in_parallel
from condconv_serve.jobs.photos import Photo, Photos
from condconv_serve.jobs.progress import Progress
from condconv_serve.jobs.table import Column, answer_of
from condconv_serve.offline.interrupts import interrupts_held

Ask = Callable[[Sequence[LocalImage]], Iterable[ImageResult[Any]]]
"""Answers a few images, in order, from any thread."""

PHOTOS_AT_ONCE = 16
"""That one question is about."""
MOST_IN_A_ROW = 100
"""If so many photos one after the other fail for reasons that aren't theirs, it's no use to go on."""

_OF_THE_PHOTO = (ImageError, MissingImage, BodyTooLarge)
_OF_A_BATCH = (DeadlineExceeded, EngineStalled, OutOfMemory)


def _slugs(root: type[ServiceError]) -> Iterator[str]:
    yield root.slug
    for child in root.__subclasses__():
        yield from _slugs(child)


PASSING = frozenset(_slugs(CapacityError))
"""Errors that tell of the server rather than the photo: such photos are asked about again without being told to."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done.

    Attributes:
        photos: what to answer.
        journal: keeps the answers, and knows those of earlier runs.
        columns: of the output.
        concurrency: how many questions are under way at once.
        retry_failed: whether to ask again about photos that failed in an earlier run.
    """

    photos: Photos
    journal: Journal
    columns: tuple[Column, ...]
    concurrency: int
    retry_failed: bool

    def run(self, ask: Ask, progress: Progress) -> None:
        """Answer all photos that aren't answered yet.

        Photos whose error tells of the server are asked about a second time in the end.

        Raises:
            ServiceError: it is no use to go on; what was answered is in the journal.
            KeyboardInterrupt: Ctrl-C was pressed; likewise.
        """
        self._answer(ask, self._unanswered(progress), progress.answered)
        again = (entry.photo.path for entry in self.journal.failed(PASSING))
        self._answer(ask, (Photo.at(path) for path in again if path in self.photos), lambda count, *, failed: None)

    def _unanswered(self, progress: Progress) -> Iterator[Photo]:
        for photo in self.photos:
            known, slug = self.journal.known(photo)
            if known and (slug is None or not (self.retry_failed or slug in PASSING)):
                progress.skipped()
            else:
                yield photo

    def _answer(self, ask: Ask, photos: Iterator[Photo], tell: Callable[..., None]) -> None:
        in_a_row = 0
        some = iter(lambda: list(islice(photos, PHOTOS_AT_ONCE)), [])
        for asked, results in in_parallel(lambda some: answers(ask, some), some, threads=self.concurrency):
            with interrupts_held():
                entries = [self._entry(*one) for one in zip(asked, results, strict=True)]
                self.journal.put(entries)
                tell(len(entries), failed=sum(entry.slug is not None for entry in entries))
            for result in results:
                in_a_row = in_a_row + 1 if _is_servers(result.error) else 0
                if in_a_row >= MOST_IN_A_ROW and result.error is not None:
                    raise RemoteFailed(f"{in_a_row} images failed one after the other. The last one: {result.error}")

    def _entry(self, photo: Photo, result: ImageResult[Any]) -> Entry:
        if result.prediction is None:
            error = result.error or ServiceError("There is no answer.")
            return Entry(photo=photo, slug=error.slug, detail=str(error), answer={})
        return Entry(photo=photo, answer=answer_of(result.prediction, self.columns))


def answers(ask: Ask, photos: Sequence[Photo]) -> list[ImageResult[Any]]:
    """A result for each photo, in order.

    If a question fails as a whole for what may be the fault of one photo, each photo gets a question of its own.

    Raises:
        ServiceError: it would be of no use to ask about other photos.
    """
    images = [photo.image for photo in photos]
    try:
        return list(ask(images))
    except ServiceError as error:
        if _ends_the_job(error):
            raise
        if len(images) == 1:
            return [ImageResult(id=images[0].id, filename=images[0].filename, error=error)]
        return [result for photo in photos for result in answers(ask, [photo])]


def _ends_the_job(error: ServiceError) -> bool:
    if isinstance(error, _OF_THE_PHOTO):
        return False
    if isinstance(error, RemoteFailed):
        return True
    if isinstance(error, _OF_A_BATCH) and error.status is not None:  # a server said so, of these photos
        return False
    # The client has been patient by now with a server that is full, starts, or doesn't answer.
    return isinstance(error, RequestError | CapacityError)


def _is_servers(error: ServiceError | None) -> bool:
    return error is not None and (isinstance(error, CapacityError | InferenceFailed) or type(error) is ServiceError)
