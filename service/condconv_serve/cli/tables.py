"""Tables that stay readable on narrow terminals."""

from __future__ import annotations

from collections.abc import Sequence

from rich.measure import Measurement
from rich.table import Table

from condconv_serve.cli.output import add_row, on_terminal, out, print_table, printable, say

Cell = object | tuple[object, str]
"""Text, or a pair of text and style."""
_ENOUGH = 10_000
"""Characters that a line never has."""


def print_listing(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table of long names.

    On a terminal that is too narrow for it each row becomes a paragraph: the first cell, and below it the others with
    the names of their columns. What a program reads is always a table with a line per row.

    Args:
        columns: their names.
        rows: cells for these columns; in a row with fewer cells the last one is a remark.
    """
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        add_row(table, *row)
    if fits(table):
        print_table(table)
        return
    for row in rows:
        _print_paragraph(columns, row)


def fits(table: Table) -> bool:
    """Whether a table can be printed without cutting cells: always, if a program reads it."""
    return not on_terminal() or Measurement.get(out, out.options.update(max_width=_ENOUGH), table).maximum <= out.width


def _print_paragraph(columns: Sequence[str], row: Sequence[Cell]) -> None:
    title, *rest = row
    say((_text(title), "bold"))
    parts = [
        f"{column} {_text(cell)}" if len(row) == len(columns) or cell is not rest[-1] else _text(cell)
        for column, cell in zip(columns[1:], rest, strict=False)
    ]
    line = ""
    for part in parts:
        if line and len(line) + 2 + len(part) > out.width:
            say(line)
            line = ""
        line = f"{line}, {part}" if line else f"  {part}"
    say(line)


def _text(cell: Cell) -> str:
    return printable(cell[0] if isinstance(cell, tuple) else cell)
