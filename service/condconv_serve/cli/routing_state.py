"""The command that adds up the routing statistics of replicas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from condconv_serve.cli.common import Json, friendly
from condconv_serve.cli.output import add_row, err, print_json, print_table, say
from condconv_serve.errors import InvalidParameter
from condconv_serve.files import write_whole

if TYPE_CHECKING:
    from condconv_serve.routing.state import RoutingState

app = typer.Typer()


@app.command(
    "routing-state",
    epilog="Example: [bold]curl -H 'X-API-Key: ...' replica-1:8000/routing/state > 1.npz[/] (and 2.npz), then "
    "[bold]condconv routing-state 1.npz 2.npz[/]",
)
@friendly
def routing_state(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files from GET /routing/state, one per replica.")
    ],
    into: Annotated[
        Path | None, typer.Option("--into", metavar="FILE", help="Write the sum as a state (.npz).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add up the live routing statistics of several replicas, exactly."""
    states = [_read(file) for file in files]
    total = states[0]
    for file, state in zip(files[1:], states[1:], strict=True):
        try:
            total.merge(state)
        except InvalidParameter as error:
            raise InvalidParameter(f"{file}: {error}") from error
    if into is not None:
        write_whole(into, total.pack())
        say(f"wrote {into}", console=err)
    if as_json:
        from condconv_serve.routing.views import state_view

        print_json(state_view(total))
        return
    tally = total.windows["all"]
    table = Table("block", "entropy", "load by expert", "mean weight by expert")
    for number, (block, experts) in enumerate(zip(total.layout.blocks, total.layout.experts, strict=True)):
        load = " ".join(f"{share:4.0%}" for share in tally.load[number, :experts])
        mean = " ".join(f"{weight:.2f}" for weight in tally.mean[number, :experts])
        add_row(table, block, f"{tally.entropy_mean[number]:.3f}", load, mean)
    print_table(table)
    say(f"{total.model}/{total.version}: {tally.count} images of {len(tally.classes)} classes in {len(files)} states")


def _read(file: Path) -> RoutingState:
    from condconv_serve.routing.state import RoutingState

    try:
        return RoutingState.unpack(file.read_bytes())
    except InvalidParameter as error:
        raise InvalidParameter(f"{file}: {error}") from error
