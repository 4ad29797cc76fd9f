"""Makes a job's output of its rows: Parquet, a JSON object per line, or CSV; replaced whole, or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from condconv_serve.domain import readable
from condconv_serve.errors import ConfigurationError, InvalidParameter
from condconv_serve.files import replacing
from condconv_serve.jobs.journal import Entry
from condconv_serve.jobs.table import Kind, Table

_ROWS_AT_ONCE = 100
"""Rows that are in memory as Python's objects, which take many times their size in a file."""
_MOST_ROWS, _MOST_BYTES = 20_000, 32 * 2**20
"""Of a row group of Parquet, which is in memory at once; it has no more rows, and hardly more bytes."""


def check_output(output: Path) -> None:
    """Check before anything is computed that an output can be written.

    Raises:
        InvalidParameter: an unknown kind of file, a folder, or its own folder isn't there.
        ConfigurationError: Parquet needs a package that isn't installed.
    """
    name = readable(output)
    if output.suffix.lower() not in _WRITERS:
        raise InvalidParameter(f"--output is a file that ends with {', '.join(_WRITERS)}; not {name}.")
    if output.is_dir():
        raise InvalidParameter(f"{name} is a folder. Name a file for the output.")
    if not output.parent.is_dir():
        raise InvalidParameter(f"There is no folder {readable(output.parent)} for the output. Make it first.")
    if output.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                "Parquet needs PyArrow: pip install 'condconv-serve[parquet]'. Or write .jsonl or .csv."
            ) from error


def write(output: Path, table: Table, entries: Iterable[Entry]) -> None:
    """Write an output of all entries, in their order.

    Raises:
        OSError: the disk is full or not writable; the output is as it was.
    """
    with replacing(output, alone=True) as scratch:
        _WRITERS[output.suffix.lower()](scratch, table, entries)


def _write_lines(file: Path, table: Table, entries: Iterable[Entry]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for entry in entries:
            lines.write(json.dumps(table.row(entry), ensure_ascii=False) + "\n")


def _write_csv(file: Path, table: Table, entries: Iterable[Entry]) -> None:
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(_Lines(lines), [column.name for column in table.columns])
        writer.writeheader()
        writer.writerows(map(table.flat, entries))


class _Lines:
    r"""Ends lines by `\n`. If `csv` did so, it would not quote cells with `\r`, which readers take for an end, too."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


def _write_parquet(file: Path, table: Table, entries: Iterable[Entry]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    about = {"condconv": json.dumps(table.about, ensure_ascii=False)}
    schema = pa.schema([(column.name, _arrow_type(column.kind, table)) for column in table.columns], metadata=about)
    coming = iter(entries)
    # PyArrow itself opens no file whose name isn't UTF-8.
    with file.open("wb") as handle, ParquetWriter(handle, schema, compression="zstd") as writer:
        group: list[Any] = []
        while rows := [table.row(entry) for entry in islice(coming, _ROWS_AT_ONCE)]:
            group.append(pa.RecordBatch.from_pylist(rows, schema=schema))
            if len(group) * _ROWS_AT_ONCE >= _MOST_ROWS or sum(some.nbytes for some in group) >= _MOST_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group.clear()
        if group:
            writer.write_table(pa.Table.from_batches(group))


def _arrow_type(kind: Kind, table: Table) -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    named: Mapping[str, Any] = {"index": pa.int32(), "label": text, "synset": text}
    match kind:
        case Kind.TEXT:
            return text
        case Kind.WHOLE:
            return pa.int64()
        case Kind.NUMBER:
            return number
        case Kind.CLASSES:
            return pa.list_(pa.struct({**named, "probability": number}))
        case Kind.OBJECTS:
            box = dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), number)
            return pa.list_(pa.struct({**named, "score": number, **box}))
        case Kind.WEIGHTS:
            return pa.struct({block: pa.list_(pa.float32()) for block in table.layout.blocks})
        case Kind.VECTOR:
            return pa.list_(pa.float32())


_WRITERS: dict[str, Callable[[Path, Table, Iterable[Entry]], None]] = {
    ".parquet": _write_parquet,
    ".jsonl": _write_lines,
    ".csv": _write_csv,
}
