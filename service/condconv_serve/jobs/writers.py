"""Makes a job's output of its rows: Parquet, a JSON object per line, or CSV; replaced whole, or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from condconv_serve.domain import readable
from condconv_serve.errors import ConfigurationError, InvalidParameter
from condconv_serve.files import replacing
from condconv_serve.jobs.journal import Entry
from condconv_serve.jobs.table import Kind, Table

_ROWS = 20_000
"""Rows of a row group of Parquet, which are in memory at once."""


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
        writer = csv.DictWriter(lines, [column.name for column in table.columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(table.flat, entries))


def _write_parquet(file: Path, table: Table, entries: Iterable[Entry]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    about = {"condconv": json.dumps(table.about, ensure_ascii=False)}
    schema = pa.schema([(column.name, _arrow_type(column.kind, table)) for column in table.columns], metadata=about)
    coming = iter(entries)
    with ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := [table.row(entry) for entry in islice(coming, _ROWS)]:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


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
