"""Routing weights of an image as a table."""

from __future__ import annotations

from rich.table import Table

from condconv_serve.cli.output import add_row, print_table, say
from condconv_serve.cli.tables import fits
from condconv_serve.domain import RoutingTrace


def print_weights(routing: RoutingTrace) -> None:
    """Print a line per block; without colours, where a table is too wide."""
    if not routing.layout:
        say("  A static network has no routing.")
        return
    table = Table("block", *(f"expert {i}" for i in range(routing.weights.shape[1])))
    for block, weights in routing.by_block().items():
        add_row(table, block, *((f" {w:.3f} ", f"on rgb({int(40 + 180 * w)},60,60)") for w in weights))
    if fits(table):
        print_table(table)
        return
    for block, weights in routing.by_block().items():  # numbers that are cut would be wrong ones
        say(f"  {block:9}", *(f" {w:.3f}" for w in weights))
