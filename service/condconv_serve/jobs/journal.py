"""A job's journal: every answer is in it as soon as it is known, whatever happens to the process then.

It is an SQLite file beside the output, with a row for each photo. Parquet can't be added to, and a photo may be
answered a second time; so the output is made of the journal, whole, whenever the job stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from condconv_serve.domain import readable
from condconv_serve.errors import ConfigurationError
from condconv_serve.jobs.photos import Photo

SUFFIX = ".job"
_OURS, _LAYOUT = 0x436F4A6F, 1
_TABLES = (
    "CREATE TABLE head (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE photos ("
    "path BLOB NOT NULL UNIQUE, size INTEGER, mtime_ns INTEGER, slug TEXT, detail TEXT, answer TEXT)",
    f"PRAGMA application_id = {_OURS}",
    f"PRAGMA user_version = {_LAYOUT}",
)
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_PUT = """
INSERT INTO photos VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET
size = excluded.size, mtime_ns = excluded.mtime_ns, slug = excluded.slug, detail = excluded.detail,
answer = excluded.answer
"""


def journal_of(output: Path) -> Path:
    """The file of an output's journal."""
    return output.with_name(output.name + SUFFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known about a photo: an answer, or why there is none.

    Attributes:
        photo: as it was when it was asked about.
        slug: of the error; None if there is an answer.
        detail: of the error, for people.
        answer: columns of the output by name; empty if there is an error.
    """

    photo: Photo
    slug: str | None = None
    detail: str | None = None
    answer: Mapping[str, Any]


class Journal:
    """The journal of one output. Use as a context manager; only one process has it open at a time."""

    def __init__(self, output: Path, *, restart: bool = False) -> None:
        """Open the journal of an output, or begin one.

        Args:
            output: what is made of it.
            restart: whether to forget everything that it holds, even if that can't be read.

        Raises:
            ConfigurationError: it can't be read or written, is no journal, or another process has it open.
        """
        self.file = journal_of(output)
        self._output = output
        with self._told():
            try:
                self._database = self._open(empty=restart)
            except sqlite3.DatabaseError as error:
                if not restart or error.sqlite_errorcode & 0xFF not in _DAMAGED:
                    raise
                self.remove()
                self._database = self._open()

    def __enter__(self) -> Self:
        """Keep it open until the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._database.close()

    def remove(self) -> None:
        """Remove it from the disk."""
        for rest in ("-journal", "-wal", "-shm", ""):
            self.file.with_name(self.file.name + rest).unlink(missing_ok=True)

    @property
    def head(self) -> dict[str, Any] | None:
        """What the job is about; None if it hasn't begun."""
        with self._told():
            found = self._database.execute("SELECT name, value FROM head ORDER BY rowid").fetchall()
        return {name: json.loads(value) for name, value in found} or None

    def begin(self, head: Mapping[str, Any]) -> None:
        """Say what the job is about."""
        with self._told(), self._at_once():
            self._database.executemany(
                "INSERT INTO head VALUES (?, ?)", [(name, json.dumps(value)) for name, value in head.items()]
            )

    def known(self, photo: Photo) -> tuple[bool, str | None]:
        """Whether there is an entry for the photo as it is now, and the slug of its error."""
        with self._told():
            found = self._database.execute(
                "SELECT slug FROM photos WHERE path = ? AND size IS ? AND mtime_ns IS ?",
                (photo.key, photo.size, photo.mtime_ns),
            ).fetchone()
        return (False, None) if found is None else (True, found[0])

    def put(self, entries: Iterable[Entry]) -> None:
        """Keep entries; each takes the place of an earlier one for its photo. Killed now, none or all are kept."""
        rows = [
            (
                entry.photo.key,
                entry.photo.size,
                entry.photo.mtime_ns,
                entry.slug,
                entry.detail,
                json.dumps(entry.answer, ensure_ascii=False, separators=(",", ":")) if entry.answer else None,
            )
            for entry in entries
        ]
        with self._told(), self._at_once():
            self._database.executemany(_PUT, rows)

    def failures(self) -> Counter[str]:
        """How many photos have no answer, by slug."""
        with self._told():
            found = self._database.execute(
                "SELECT slug, count(*) FROM photos WHERE slug IS NOT NULL GROUP BY slug ORDER BY count(*) DESC, slug"
            )
            return Counter(dict(found.fetchall()))

    def __len__(self) -> int:
        """How many photos it knows."""
        with self._told():
            return int(self._database.execute("SELECT count(*) FROM photos").fetchone()[0])

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in the order of their paths."""
        with self._told():
            yield from map(_entry, self._database.execute("SELECT * FROM photos ORDER BY path"))

    def failed(self, slugs: Iterable[str]) -> Iterator[Entry]:
        """The entries with these errors; entries may be put meanwhile."""
        after, marks = b"", list(slugs)
        wanted = ", ".join("?" * len(marks))
        while True:
            with self._told():
                found = self._database.execute(
                    f"SELECT * FROM photos WHERE path > ? AND slug IN ({wanted}) ORDER BY path LIMIT 100",
                    (after, *marks),
                ).fetchall()
            if not found:
                return
            yield from map(_entry, found)
            after = found[-1][0]

    def _open(self, *, empty: bool = False) -> sqlite3.Connection:
        database = sqlite3.connect(self.file, timeout=0, isolation_level=None)
        try:
            # Alone, SQLite needs no memory that processes share, which file systems over networks don't have.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN IMMEDIATE")  # takes the lock
            marks = tuple(
                database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _TABLES:
                    database.execute(statement)
            elif marks != (_OURS, _LAYOUT):
                raise ConfigurationError(
                    f"{readable(self.file)} is no journal of this version. Remove it, or write to another --output."
                )
            if empty:
                database.execute("DELETE FROM head")
                database.execute("DELETE FROM photos")
            database.execute("COMMIT")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _at_once(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite has ended it by itself if, for instance, the disk is full
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = readable(self.file)
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                text = f"Another command is writing {readable(self._output)} now: it has {name} open."
            elif error.sqlite_errorcode & 0xFF in _DAMAGED:
                text = f"{name} can't be read ({error}). Give --restart to answer all photos anew."
            else:
                text = f"{name} can't be read or written: {error}."
            raise ConfigurationError(text) from error


def _entry(row: tuple[Any, ...]) -> Entry:
    path, size, mtime_ns, slug, detail, answer = row
    photo = Photo(os.fsdecode(path), size, mtime_ns)
    return Entry(photo=photo, slug=slug, detail=detail, answer=json.loads(answer) if answer else {})
