"""Commands that classify images without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from condconv_serve.cli.common import Images, Json, ModelOption, Store, friendly, read_settings
from condconv_serve.cli.output import add_row, err, print_failure, print_json, print_table, say
from condconv_serve.errors import InvalidParameter

app = typer.Typer()


@app.command(epilog="Example: [bold]condconv predict photo.jpg 'holiday/*.png' --top-k 3[/]")
@friendly
def predict(
    images: Images,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Classes to show per image. Default: 5, or all if there are fewer."),
    ] = None,
    as_json: Json = False,
    model: ModelOption = None,
    model_store: Store = None,
) -> None:
    """Classify images without a server."""
    from condconv_serve.offline.classify import classify_files
    from condconv_serve.offline.files import expand

    answer = classify_files(
        read_settings(model_store=model_store), expand(images), model=model, top_k=top_k, console=err
    )
    if as_json:
        print_json(answer.to_json(routing=False))
    else:
        by = answer.model.computed_by
        say(f"computed by {by.engine} in {by.precision} on {by.device}: {by.reason}", console=err)
        for result in answer.results:
            if result.prediction is None:
                print_failure(result.filename, result.error)
                continue
            say((result.filename, "bold"))
            for scored in result.prediction.classes:
                say(f"  {scored.probability:7.2%}  {scored.label}")
    raise typer.Exit(answer.exit_code)


@app.command(
    epilog="Example: [bold]condconv routing photo.jpg --plot routing.png[/], or "
    "[bold]condconv routing photos/ --by class --plot classes.png --report classes.html[/]"
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
    as_json: Json = False,
    model: ModelOption = None,
    model_store: Store = None,
) -> None:
    """Show which experts images are routed to, without a server."""
    from condconv_serve.offline.classify import classify_files
    from condconv_serve.offline.files import expand
    from condconv_serve.routing.plot import check_plot_path, plot_routing
    from condconv_serve.routing.report import check_report_path

    if plot is not None:
        check_plot_path(plot)
    if report is not None:
        check_report_path(report)
        if by != "class":
            raise InvalidParameter("A report compares classes: add --by class.")
    answer = classify_files(read_settings(model_store=model_store), expand(images), model=model, top_k=1, console=err)
    predictions = [(r.filename or r.id, r.prediction) for r in answer.results if r.prediction is not None]
    if by == "class":
        for result in answer.results:
            if result.prediction is None:
                print_failure(result.filename, result.error)
        if predictions:
            _show_classes(answer, predictions, plot=plot, report=report, as_json=as_json)
        raise typer.Exit(answer.exit_code)
    if as_json:
        print_json(answer.to_json(routing=True))
    for result in answer.results:
        if result.prediction is None:
            print_failure(result.filename, result.error)
        elif not as_json:
            _print_routing(result.filename or result.id, result.prediction)
    if plot is not None and predictions:
        plot_routing([(f"{name}\n{p.classes[0].label}", p.routing) for name, p in predictions], plot)
        say(f"wrote {plot}", console=err)
    raise typer.Exit(answer.exit_code)


def _show_classes(
    answer: Any, predictions: list[tuple[str, Any]], *, plot: Path | None, report: Path | None, as_json: bool
) -> None:
    from condconv_serve.routing.by_class import by_class
    from condconv_serve.routing.plot_classes import plot_by_class
    from condconv_serve.routing.report import write_report

    found = by_class([(Path(name).absolute().parent.name, prediction.routing) for name, prediction in predictions])
    name = f"{answer.model.name}/{answer.model.version}"
    if as_json:
        print_json(found.to_json(model={"name": answer.model.name, "version": answer.model.version}))
    else:
        say((name, "italic"))
        table = Table("block", "between classes", "within a class", "share between", "entropy")
        columns = (found.between, found.within, found.explained, found.overall.entropy_mean)
        for block, between, within, share, entropy in zip(found.layout.blocks, *columns, strict=True):
            add_row(table, block, f"{between:.3f}", f"{within:.3f}", f"{share:.0%}", f"{entropy:.3f}")
        print_table(table)
        say(f"{len(predictions)} images of {len(found.names)} classes")
    if plot is not None:
        plot_by_class(found, plot)
        say(f"wrote {plot}", console=err)
    if report is not None:
        write_report(found, report, model=name, failures=len(answer.results) - len(predictions))
        say(f"wrote {report}", console=err)


def _print_routing(name: str, prediction: Any) -> None:
    best = prediction.classes[0]
    if not prediction.routing.layout:
        say(f"{name}: {best.label}; a static network has no routing.")
        return
    say((f"{name}: {best.label} ({best.probability:.1%})", "italic"))
    table = Table("block", *(f"expert {i}" for i in range(prediction.routing.weights.shape[1])))
    for block, weights in prediction.routing.by_block().items():
        add_row(table, block, *((f" {w:.3f} ", f"on rgb({int(40 + 180 * w)},60,60)") for w in weights))
    print_table(table)
