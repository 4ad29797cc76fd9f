"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from condconv_serve.cli.common import (
    INTERRUPTED,
    Json,
    ModelOption,
    Store,
    ThemeOption,
    command_line,
    friendly,
    read_settings,
)
from condconv_serve.cli.output import add_row, note, print_json, print_table

app = typer.Typer(help="Measure how fast this machine runs a model.", no_args_is_help=True)


@app.command("engine", epilog="Example: [bold]condconv bench engine --precision float32 --precision bfloat16[/]")
@friendly
def bench_engine(
    model: ModelOption = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine to measure. You can give several. Default: the one that would serve."),
    ] = None,
    native: Annotated[
        list[str] | None,
        typer.Option(
            help="Whether native kernels compute in TensorFlow: on or off. You can give both. Default: as it would "
            "serve."
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Precision to measure. You can give several. Default: the one that would serve."),
    ] = None,
    streams: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=1024, help="Number of streams to measure. You can give several. Default: as many as would serve."
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Batch size to measure. You can give several. Default: 1, 2, 4 and 8."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="Seconds per measurement.")] = 2.0,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="How often each combination is measured. They take turns.")
    ] = 3,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the results (.png, .svg or .pdf).")
    ] = None,
    theme: ThemeOption = "auto",
    as_json: Json = False,
    model_store: Store = None,
) -> None:
    """Measure throughput and latency by engine, precision, streams and batch size."""
    from condconv_serve.offline import bench
    from condconv_serve.offline.bundles import find_bundle
    from condconv_serve.routing.picture import check_plot_path, look_of
    from condconv_serve.routing.provenance import Provenance
    from condconv_serve.store import Catalog, open_bundle

    if plot is not None:
        check_plot_path(plot)
    settings = read_settings(model_store=model_store)
    bundle = open_bundle(find_bundle(settings, Catalog(settings.model_store), model))
    note(f"measuring {bundle.manifest.name}/{bundle.manifest.version}")
    found = bench.bench_engine(
        settings,
        bundle,
        engines=engine or [],
        natives=native or [],
        precisions=precision or [],
        streams=streams or [],
        batch_sizes=batch_size or [1, 2, 4, 8],
        seconds=seconds,
        rounds=rounds,
        progress=note,
    )
    if found.rounds < rounds:
        note(f"interrupted: these are the figures of {found.rounds} of {rounds} rounds")
    if as_json:
        print_json([figure.to_json() for figure in found.figures])
    else:
        table = Table(box=None, header_style="bold")
        table.add_column("engine")
        table.add_column("precision")
        for column in ("streams", "batch", "images/s", "relative", "p50 ms", "p99 ms", "CPU ms/image"):
            table.add_column(column, justify="right")
        for figure in found.figures:
            case = figure.case
            add_row(
                table,
                case.computed_by,
                case.precision,
                case.streams,
                case.batch_size,
                f"{figure.rows_per_second:.1f}",
                f"{figure.speed:.2f}",
                f"{figure.latency_p50 * 1e3:.1f}",
                f"{figure.latency_p99 * 1e3:.1f}",
                f"{figure.cpu_per_row * 1e3:.1f}",
            )
        print_table(table)
    if plot is not None:
        look = look_of(plot, theme=theme, made_by=Provenance.of(bundle.manifest, command_line()))
        bench.plot_engine(found.figures, plot, look)
        note(f"wrote {plot}")
    raise typer.Exit(INTERRUPTED if found.rounds < rounds else 0)
