"""Commands that answer about images, without a server or with one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from condconv_serve.cli.answering import answer, answer_with_pictures, classifying, detecting, embedding, routed
from condconv_serve.cli.common import Images, ThemeOption, friendly
from condconv_serve.cli.output import say
from condconv_serve.cli.results import (
    Results,
    classes_entry,
    detections_entry,
    features_entry,
    routing_entry,
)
from condconv_serve.cli.routing_table import print_weights
from condconv_serve.cli.shared_options import SharedOptions, takes_shared_options
from condconv_serve.domain import Prediction, RoutedAnswer
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.detection import (
    DEFAULT_IOU_THRESHOLD,
    DEFAULT_MAX_DETECTIONS,
    DEFAULT_SCORE_THRESHOLD,
    MAX_DETECTIONS,
    Detect,
)

if TYPE_CHECKING:
    from condconv_serve.tasks.features import Embedding

app = typer.Typer()

Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="FILE", help="Write the figures (.csv or .npz). You can give several."),
]


@app.command(epilog="Example: [bold]condconv predict photo.jpg 'holiday/*.png' --top-k 3[/]")
@friendly
@takes_shared_options
def predict(
    images: Images,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Classes to show per image. Default: 5, or all if there are fewer."),
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Of these, leave out classes with a smaller probability.")
    ] = 0.0,
    routing: Annotated[bool, typer.Option("--routing", help="Show routing weights, too.")] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Classify images, here or with a server. Results appear as they come."""
    question = classifying(top_k=top_k, threshold=threshold, routing=routing)
    shared.exit_with_rows(images, question)
    entry = partial(classes_entry, routing=routing)
    show = partial(_print_classes, routing=routing)
    results = shared.results(entry, show)
    raise typer.Exit(answer(images, results, shared.where, question))


@app.command(
    epilog="Example: [bold]condconv routing photo.jpg --plot routing.png[/], or "
    "[bold]condconv routing photos/ --by class --plot classes.svg --report classes.html --data classes.csv[/]"
)
@friendly
@takes_shared_options
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
    data: Data = None,
    theme: ThemeOption = "auto",
    narrow: Annotated[
        bool, typer.Option("--narrow", help="In the picture, put everything below each other, as for phones.")
    ] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Show which experts images are routed to, here or with a server. Results appear as they come."""
    from condconv_serve.cli.routing_output import ClassResults, Kept, Wanted, print_routing

    shared.exit_with_rows(
        images, routed(), {"--by class": by == "class", "--plot": plot, "--report": report, "--data": data}
    )
    wanted = Wanted(plot=plot, report=report, data=tuple(data or ()), theme=theme, narrow=narrow)
    wanted.check(by)
    if shared.json_lines and by == "class":
        raise InvalidParameter("Lines of JSON are for images: use --json for classes.")
    results: Results[RoutedAnswer]
    if by == "class":
        results = ClassResults(wanted, as_json=shared.json_document)
    else:
        results = shared.results(routing_entry, print_routing)
        if plot is not None or data:
            results = Kept(results, wanted)
    raise typer.Exit(answer(images, results, shared.where, routed()))


@app.command(epilog="Example: [bold]condconv detect photos/ --plot pictures --score-threshold 0.3[/]")
@friendly
@takes_shared_options
def detect(
    images: Images,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="DIR", help="Draw the boxes over each photo, and write these pictures (.png)."),
    ] = None,
    score_threshold: Annotated[
        float, typer.Option("--score-threshold", min=0, max=1, help="Return only objects with a higher score.")
    ] = DEFAULT_SCORE_THRESHOLD,
    iou_threshold: Annotated[
        float,
        typer.Option(
            "--iou-threshold",
            min=0,
            max=1,
            help="Of two boxes of a class that overlap by more (intersection over union), leave out the one with the "
            "lower score.",
        ),
    ] = DEFAULT_IOU_THRESHOLD,
    max_detections: Annotated[
        int,
        typer.Option(
            "--max-detections", min=1, max=MAX_DETECTIONS, help="Most objects per image, the highest scores first."
        ),
    ] = DEFAULT_MAX_DETECTIONS,
    routing: Annotated[bool, typer.Option("--routing", help="Show routing weights, too.")] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Find objects in images with a detector, here or with a server. Results appear as they come.

    Boxes are in pixels of the upright photo.
    """
    from condconv_serve.cli.detection_output import print_objects

    task = Detect(score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections)
    question = detecting(task, routing=routing)
    shared.exit_with_rows(images, question, {"--plot": plot})
    entry = partial(detections_entry, routing=routing)
    results = shared.results(entry, partial(print_objects, routing=routing))
    if plot is not None:
        raise typer.Exit(answer_with_pictures(images, results, shared.where, question, plot))
    raise typer.Exit(answer(images, results, shared.where, question))


@app.command(epilog="Example: [bold]condconv features photos/ --data features.npz[/]")
@friendly
@takes_shared_options
def features(
    images: Images,
    data: Data = None,
    logits: Annotated[bool, typer.Option("--logits", help="Class scores before the softmax, too.")] = False,
    *,
    shared: SharedOptions,
) -> None:
    """Compute images' features, by which they can be compared, here or with a server.

    Features are what the model's last layer reads: a vector for each image.
    """
    from condconv_serve.cli.features_output import KeptFeatures, print_features
    from condconv_serve.routing.class_export import check_data_path

    question = embedding(logits=logits)
    shared.exit_with_rows(images, question, {"--data": data})
    for path in data or ():
        check_data_path(path)
    results: Results[Embedding] = shared.results(features_entry, print_features)
    if data:
        results = KeptFeatures(results, data)
    raise typer.Exit(answer(images, results, shared.where, question))


def _print_classes(name: str, prediction: Prediction, *, routing: bool) -> None:
    say((name, "bold"))
    for scored in prediction.classes:
        say(f"  {scored.probability:7.2%}  {scored.label}")
    if not prediction.classes:
        say("  no class reaches the threshold")
    if routing:
        print_weights(prediction.routing)
