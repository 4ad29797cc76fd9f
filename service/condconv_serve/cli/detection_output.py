"""What `condconv detect` prints."""

from __future__ import annotations

from rich.table import Table

from condconv_serve.cli.output import add_row, print_table, say
from condconv_serve.cli.routing_table import print_weights
from condconv_serve.cli.tables import fits
from condconv_serve.domain import Box, Detection


def print_objects(name: str, detection: Detection, *, routing: bool) -> None:
    """Print an image's objects, with their boxes in pixels, and its routing weights if wanted."""
    count = len(detection.objects)
    number = f"{count or 'no'} object{'s' * (count > 1)}"
    say((name, "bold"), f"  {detection.width} x {detection.height} pixels, {number}")
    if detection.objects:
        _print_table(detection)
    if routing:
        print_weights(detection.routing)


def _print_table(detection: Detection) -> None:
    rows = [
        (f"  {found.label}", f"{found.score:.1%}", *(f"{edge:.1f}" for edge in _edges(found.box)))
        for found in detection.objects
    ]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("  label", overflow="fold")
    for column in ("score", "xmin", "ymin", "xmax", "ymax"):
        table.add_column(column, justify="right")
    for row in rows:
        add_row(table, *row)
    if fits(table):
        print_table(table)
        return
    for label, score, xmin, ymin, xmax, ymax in rows:
        say(f"{label}  {score}  {xmin}, {ymin} to {xmax}, {ymax}")


def _edges(box: Box) -> tuple[float, float, float, float]:
    return box.xmin, box.ymin, box.xmax, box.ymax
