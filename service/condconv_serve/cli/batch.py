"""Answers about many images as rows of a file, which an interrupted command goes on with: `--output`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from condconv_serve.cli.answering import Question, Where, answering_at
from condconv_serve.cli.common import code_of, read_settings
from condconv_serve.cli.output import err, note
from condconv_serve.cli.results import AnsweringModel
from condconv_serve.domain import readable
from condconv_serve.errors import ConfigurationError, InvalidParameter, MissingImage, ServiceError

if TYPE_CHECKING:
    from condconv_serve.jobs.journal import Journal
    from condconv_serve.jobs.photos import Photos
    from condconv_serve.jobs.table import Column


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How images become rows of a file.

    Attributes:
        output: the file.
        concurrency: how many requests are under way at once.
        patience: seconds to wait for a server that is busy or away.
        retry_failed: whether to ask again about images that failed in an earlier run.
        restart: whether to forget what earlier runs have answered.
        shard: which share of the images, if not all.
    """

    output: Path
    concurrency: int
    patience: float
    retry_failed: bool
    restart: bool
    shard: str | None


def write_batch(arguments: Sequence[str], batch: Batch, where: Where, question: Question[Any]) -> int:
    """Answer a question about images, and write a row for each.

    Args:
        arguments: files, folders or globs.
        batch: where to, and how.
        where: here, or on a server.
        question: what is asked.

    Returns:
        The command's exit code: 1 if an image failed or a folder can't be read.

    Raises:
        ServiceError: an argument, the output, the store, the model or the server is unusable. What was answered before
            is in the output, or at least in the journal, and the same command goes on.
        KeyboardInterrupt: Ctrl-C or SIGTERM before anything was asked.
        typer.Exit: with the code of either of them; likewise.
    """
    from condconv_serve.jobs.photos import WHOLE, Photos, Shard
    from condconv_serve.jobs.writers import check_output
    from condconv_serve.offline.interrupts import sigterm_interrupts

    check_output(batch.output)
    shard = WHOLE if batch.shard is None else Shard.parse(batch.shard)
    settings = read_settings(model_store=where.model_store)
    answering = answering_at(settings, where, question, patience=batch.patience)
    photos = Photos(arguments, shard)
    with sigterm_interrupts(), answering() as (model, ask):
        about = {
            "question": question.name,
            "model": f"{model.name}/{model.version}",
            "weights": model.weights_sha256,
            "precision": model.computed_by.precision,
            "options": {**asdict(question.task), "routing": question.routing},  # type: ignore[call-overload]
            "shard": str(shard),
        }
        with _journal(batch, about) as journal:
            return _Writing(batch, model, question, about, journal, photos).run(ask)


@contextmanager
def _journal(batch: Batch, about: Mapping[str, Any]) -> Iterator[Journal]:
    from condconv_serve.jobs.journal import Journal

    name, there = readable(batch.output), batch.output.exists()
    with Journal(batch.output, restart=batch.restart) as journal:
        try:
            head = journal.head
            if head is None and there and not batch.restart:
                raise InvalidParameter(
                    f"{name} is there, and its journal {readable(journal.file)} isn't, so nobody knows what is in it. "
                    "Write to another --output, or give --restart to replace it."
                )
            if head is None:
                journal.begin(about)
            elif different := [
                _difference(what, head.get(what), now) for what, now in about.items() if head.get(what) != now
            ]:
                raise InvalidParameter(
                    f"{name} was begun in another way: {'; '.join(different)}. Rows of different kinds don't go "
                    "into one file. To go on, give the same again; or write to another --output; or give --restart to "
                    "answer all images anew."
                )
            yield journal
        finally:
            if journal.head is None or not (len(journal) or batch.output.exists()):
                journal.remove()


def _difference(what: str, before: Any, now: Any) -> str:
    if what == "model":
        return f"its model is {before} (--model {before}), and now it would be {now}"
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        before, now = (", ".join(f"{name} {values.get(name)}" for name in names) for values in (before, now))
    return f"its {what} had {before}, and now {now}" if what == "options" else f"its {what} is {before}, and now {now}"


class _Writing:
    """Runs a job, and makes its output however the run ends."""

    def __init__(
        self,
        batch: Batch,
        model: AnsweringModel,
        question: Question[Any],
        about: Mapping[str, Any],
        journal: Journal,
        photos: Photos,
    ) -> None:
        self._batch, self._model, self._about = batch, model, about
        self._journal, self._photos = journal, photos
        self._columns = _columns(question, model)

    def run(self, ask: Any) -> int:
        from condconv_serve.jobs.progress import Progress
        from condconv_serve.jobs.run import Job

        batch, photos, journal = self._batch, self._photos, self._journal
        note(f"{self._model.name}/{self._model.version}, computed by {self._model.computed_by}")
        job = Job(
            photos=photos,
            journal=journal,
            columns=self._columns,
            concurrency=batch.concurrency,
            retry_failed=batch.retry_failed,
        )
        with self._told_how_to_go_on():
            try:
                with Progress(err, lambda: sum(1 for _ in photos.paths())) as progress:
                    job.run(ask, progress)
            except (KeyboardInterrupt, ServiceError):
                if len(journal):
                    self._write(interrupted=True)
                raise
        left_out = photos.left_out.describe()
        if not len(journal) and not photos.others_have_some():
            raise MissingImage(f"There is no image to answer.{f' Left out: {left_out}.' if left_out else ''}")
        if left_out:
            note(f"Left out: {left_out}.")
        with self._told_how_to_go_on():
            failed = self._write(interrupted=False)
        return int(failed or photos.left_out.unreadable)

    @contextmanager
    def _told_how_to_go_on(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, ServiceError) as error:
            again = "run the same command again" + ", but without --restart" * self._batch.restart
            note(f"To go on, {again}." if len(self._journal) else "Nothing has been answered yet.")
            if isinstance(error, KeyboardInterrupt):
                raise typer.Exit(code_of(error)) from None
            raise

    def _write(self, *, interrupted: bool) -> bool:
        """Write the output, and say so; whether an image has failed.

        Raises:
            ConfigurationError: it can't be written.
        """
        from condconv_serve.jobs.table import Table
        from condconv_serve.jobs.writers import write

        journal, model, name = self._journal, self._model, readable(self._batch.output)
        table = Table(
            columns=self._columns,
            layout=model.routing,
            model=model.name,
            version=model.version,
            about={**self._about, **model.makes(interrupted=interrupted).to_json()},
        )
        try:
            write(self._batch.output, table, journal)
        except OSError as error:
            raise ConfigurationError(
                f"{name} can't be written: {error.strerror or error}. All answers are in {readable(journal.file)}."
            ) from error
        failures = journal.failures()
        slugs = ", ".join(f"{slug} {count:,}" for slug, count in failures.items())
        note(
            f"{'interrupted; ' if interrupted else ''}wrote {name}: {len(journal):,} images, "
            f"{failures.total():,} failed{f' ({slugs})' if slugs else ''}"
        )
        if failures and not interrupted:
            note("The column error says why. To ask again about these, add --retry-failed.")
        return bool(failures)


def _columns(question: Question[Any], model: AnsweringModel) -> tuple[Column, ...]:
    from condconv_serve.jobs import table
    from condconv_serve.tasks.features import Embed

    own: tuple[Column, ...]
    if isinstance(question.task, Embed):
        own = (*table.OF_FEATURES, *((table.LOGITS,) if question.task.logits else ()))
    else:
        own = table.OF_OBJECTS if model.task == "detection" else table.OF_CLASSES
    routing = (table.ROUTING,) if question.routing and model.routing else ()
    return (*table.OF_EVERY_PHOTO, *own, *routing)
