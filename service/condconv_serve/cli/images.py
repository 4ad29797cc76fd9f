"""Commands that classify images, without a server or with one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from condconv_serve.cli.classifying import Where, classify
from condconv_serve.cli.common import ApiKey, Images, Json, MaybeServer, ModelOption, Store, ThemeOption, friendly
from condconv_serve.cli.output import say
from condconv_serve.cli.results import JsonLines, JsonResults, Results, TextResults
from condconv_serve.domain import Prediction
from condconv_serve.errors import InvalidParameter

app = typer.Typer()

Lines = Annotated[bool, typer.Option("--json-lines", help="Print a JSON object per image, each on a line of its own.")]


@app.command(epilog="Example: [bold]condconv predict photo.jpg 'holiday/*.png' --top-k 3[/]")
@friendly
def predict(
    images: Images,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Classes to show per image. Default: 5, or all if there are fewer."),
    ] = None,
    as_json: Json = False,
    as_lines: Lines = False,
    model: ModelOption = None,
    model_store: Store = None,
    server: MaybeServer = None,
    api_key: ApiKey = None,
) -> None:
    """Classify images, here or with a server. Results appear as they come."""
    results: Results = _as_json(as_json, as_lines, routing=False) or TextResults(_print_classes)
    where = Where(model=model, model_store=model_store, server=server, api_key=api_key)
    raise typer.Exit(classify(images, results, where, top_k=top_k))


@app.command(
    epilog="Example: [bold]condconv routing photo.jpg --plot routing.png[/], or "
    "[bold]condconv routing photos/ --by class --plot classes.svg --report classes.html --data classes.csv[/]"
)
@friendly
def routing(
    images: Images,
    by: Annotated[
        Literal["image", "class"],
        typer.Option(help="Show each image, or the mean of each class. An image's class is the name of its directory."),
    ] = "image",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture (.png, .svg or .pdf).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="With --by class: write a page (.html).")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="Write the figures (.csv or .npz). You can give several."),
    ] = None,
    theme: ThemeOption = "auto",
    narrow: Annotated[
        bool, typer.Option("--narrow", help="In the picture, put everything below each other, as for phones.")
    ] = False,
    as_json: Json = False,
    as_lines: Lines = False,
    model: ModelOption = None,
    model_store: Store = None,
    server: MaybeServer = None,
    api_key: ApiKey = None,
) -> None:
    """Show which experts images are routed to, here or with a server. Results appear as they come."""
    from condconv_serve.cli.routing_output import ClassResults, Kept, Wanted, print_routing

    wanted = Wanted(plot=plot, report=report, data=tuple(data or ()), theme=theme, narrow=narrow)
    wanted.check(by)
    if as_lines and by == "class":
        raise InvalidParameter("Lines of JSON are for images: use --json for classes.")
    results: Results
    if by == "class":
        results = ClassResults(wanted, as_json=as_json)
    else:
        results = _as_json(as_json, as_lines, routing=True) or TextResults(print_routing)
        if plot is not None or data:
            results = Kept(results, wanted)
    where = Where(model=model, model_store=model_store, server=server, api_key=api_key)
    raise typer.Exit(classify(images, results, where, top_k=1, routing=True))


def _as_json(as_json: bool, as_lines: bool, *, routing: bool) -> Results | None:
    if as_json and as_lines:
        raise typer.BadParameter("print one document or a line per image, not both.", param_hint="--json, --json-lines")
    if as_lines:
        return JsonLines(routing=routing)
    return JsonResults(routing=routing) if as_json else None


def _print_classes(name: str, prediction: Prediction) -> None:
    say((name, "bold"))
    for scored in prediction.classes:
        say(f"  {scored.probability:7.2%}  {scored.label}")
