"""Commands that classify images without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.cli.common import (
    Images,
    Json,
    ModelOption,
    Store,
    err,
    friendly,
    out,
    print_failure,
    print_json,
    print_table,
    read_settings,
)

app = typer.Typer()


@app.command(epilog="Example: [bold]condconv predict photo.jpg 'holiday/*.png' --top-k 3[/]")
@friendly
def predict(
    images: Images,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes to show per image.")] = 5,
    as_json: Json = False,
    model: ModelOption = None,
    model_store: Store = None,
) -> None:
    """Classify images without a server."""
    from service.local import classify_files, expand

    answer = classify_files(
        read_settings(model_store=model_store), expand(images), model=model, top_k=top_k, console=err
    )
    if as_json:
        print_json(answer.to_json(routing=False))
    else:
        for result in answer.results:
            if result.prediction is None:
                print_failure(result.filename, result.error)
                continue
            out.print(f"[bold]{escape(str(result.filename))}[/]", highlight=False, soft_wrap=True)
            for scored in result.prediction.classes:
                out.print(f"  {scored.probability:7.2%}  {escape(scored.label)}", highlight=False)
    raise typer.Exit(answer.exit_code)


@app.command(epilog="Example: [bold]condconv routing photo.jpg --plot routing.png[/]")
@friendly
def routing(
    images: Images,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a heat map (.png, .svg or .pdf).")
    ] = None,
    as_json: Json = False,
    model: ModelOption = None,
    model_store: Store = None,
) -> None:
    """Show which experts images are routed to, without a server."""
    from service.local import classify_files, expand
    from service.routing.plot import check_plot_path, plot_routing

    if plot is not None:
        check_plot_path(plot)
    answer = classify_files(read_settings(model_store=model_store), expand(images), model=model, top_k=1, console=err)
    predictions = [(r.filename or r.id, r.prediction) for r in answer.results if r.prediction is not None]
    if as_json:
        print_json(answer.to_json(routing=True))
    for result in answer.results:
        if result.prediction is None:
            print_failure(result.filename, result.error)
        elif not as_json:
            _print_routing(result.filename or result.id, result.prediction)
    if plot is not None and predictions:
        plot_routing([(f"{name}\n{p.classes[0].label}", p.routing) for name, p in predictions], plot)
        err.print(f"wrote {escape(str(plot))}", highlight=False, soft_wrap=True)
    raise typer.Exit(answer.exit_code)


def _print_routing(name: str, prediction: Any) -> None:
    best = prediction.classes[0]
    name, label = escape(name), escape(best.label)
    experts = range(prediction.routing.weights.shape[1])
    table = Table("block", *(f"expert {i}" for i in experts), title=f"{name}: {label} ({best.probability:.1%})")
    for block, weights in prediction.routing.by_block().items():
        table.add_row(block, *(f"[on rgb({int(40 + 180 * w)},60,60)] {w:.3f} [/]" for w in weights))
    if prediction.routing.blocks:
        print_table(table)
    else:
        out.print(f"{name}: {label}; a static network has no routing.", highlight=False, soft_wrap=True)
