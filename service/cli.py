"""The command `condconv`: argv -> one call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, ParamSpec

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from service import __version__
from service.errors import ServiceError
from service.settings import Settings

Arguments = ParamSpec("Arguments")
out, err = Console(emoji=False), Console(stderr=True, emoji=False)

app = typer.Typer(
    name="condconv",
    help="Serve CondConv-EfficientNet image classifiers, and see which experts they use.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Look after the bundles in the model store.", no_args_is_help=True)
app.add_typer(models_app, name="models")
bench_app = typer.Typer(help="Measure what this machine makes of a model.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
keys_app = typer.Typer(help="Make API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


def main() -> NoReturn:
    """Run the command line; exits 0 for success, 1 for failure, 2 for wrong usage."""
    app()
    sys.exit(0)


def friendly(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn expected errors into a line on stderr and exit code 1."""

    @wraps(command)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ServiceError as error:
            _print_failure("error", error)
            raise typer.Exit(1) from error
        except OSError as error:  # a full disk, say
            _print_failure("error", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            raise typer.Exit(1) from error

    return wrapped


Store = Annotated[
    Path | None, typer.Option("--model-store", help="Directory with the bundles.", envvar="CONDCONV_MODEL_STORE")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model to use; the default one if absent.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, directories, or globs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, in the shape of the HTTP answer.")]


def _version(value: bool) -> None:
    if value:
        out.print(f"condconv-serve {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version)] = False,
) -> None:
    """Serve CondConv-EfficientNet image classifiers, and see which experts they use."""


@app.command(epilog="Example: [bold]condconv serve --port 9000 --model-store ./models[/]")
@friendly
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 if absent.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one; 8000 if absent.")
    ] = None,
    model_store: Store = None,
) -> None:
    """Serve all models of the store over HTTP.

    Every other setting is an environment variable CONDCONV_<NAME>; docs/operations.md lists them.
    """
    settings = _settings(host=host, port=port, model_store=model_store)
    _log(settings)
    from service.bootstrap import serve as run

    run(settings)


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

    answer = classify_files(_settings(model_store=model_store), expand(images), model=model, top_k=top_k, console=err)
    if as_json:
        _print_json(answer.to_json(routing=False))
    else:
        for result in answer.results:
            if result.prediction is None:
                _print_failure(result.filename, result.error)
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
    answer = classify_files(_settings(model_store=model_store), expand(images), model=model, top_k=1, console=err)
    predictions = [(r.filename or r.id, r.prediction) for r in answer.results if r.prediction is not None]
    if as_json:
        _print_json(answer.to_json(routing=True))
    for result in answer.results:
        if result.prediction is None:
            _print_failure(result.filename, result.error)
        elif not as_json:
            _print_routing(result.filename or result.id, result.prediction)
    if plot is not None and predictions:
        plot_routing([(f"{name}\n{p.classes[0].label}", p.routing) for name, p in predictions], plot)
        err.print(f"wrote {escape(str(plot))}", highlight=False, soft_wrap=True)
    raise typer.Exit(answer.exit_code)


@models_app.command("list")
@friendly
def list_models(model_store: Store = None) -> None:
    """List the bundles of the store."""
    from service.errors import BundleError
    from service.store import Catalog
    from service.store.bundle import read_manifest

    table = Table(box=None, header_style="bold")
    for column in ("model", "version", "architecture", "classes", "size", "licence"):
        table.add_column(column, overflow="fold")
    for path in Catalog(_settings(model_store=model_store).model_store):
        try:
            manifest = read_manifest(path)
        except BundleError as error:
            table.add_row(path.parent.name, path.name, f"[red]{escape(str(error))}[/]")
            continue
        size = sum(file.size for file in manifest.files.values())
        table.add_row(
            manifest.name,
            manifest.version,
            manifest.architecture.name,
            str(manifest.num_classes),
            f"{size / 1e6:.1f} MB",
            manifest.licence,
        )
    _print_table(table)


@models_app.command("show", epilog="Example: [bold]condconv models show efficientnet-lite0-condconv-4e[/]")
@friendly
def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME[/VERSION]")], as_json: Json = False, model_store: Store = None
) -> None:
    """Show a bundle's manifest and model card."""
    from service.store import Catalog, open_bundle

    model, _, version = name.partition("/")
    bundle = open_bundle(Catalog(_settings(model_store=model_store).model_store).find(model, version or None))
    if as_json:
        _print_json({**bundle.manifest.model_dump(mode="json"), "model_card": bundle.model_card})
        return
    out.print_json(bundle.manifest.model_dump_json(exclude_none=True))
    out.print(Markdown(bundle.model_card))


@models_app.command("verify", epilog="Example: [bold]condconv models verify[/] checks every bundle of the store.")
@friendly
def verify_models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[/VERSION]]...", help="Bundles to check; all if absent.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Also compare the answers in this precision with those in float32."),
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(help="Photos to compare with; four that ship with the service if absent.")
    ] = None,
    model_store: Store = None,
) -> None:
    """Check bundles: manifest, checksums, labels, and that the weights fit and compute."""
    from service.bootstrap import plan_engines
    from service.local import expand, verify_bundle
    from service.samples import SAMPLES
    from service.store import Catalog, open_bundle

    photos = expand(images) if images else list(SAMPLES)
    settings = _settings(model_store=model_store)
    catalog = Catalog(settings.model_store)
    if names:
        paths = [catalog.find(model, version or None) for model, _, version in (name.partition("/") for name in names)]
    else:
        paths = list(catalog)
    failed = 0
    for path in paths:
        try:
            verify_bundle(path, plan_engines(settings))
            agreement = None
            if precision is not None:
                from service.bench import compare_precisions

                agreement = compare_precisions(settings, open_bundle(path), precision=precision, images=photos)
        except ServiceError as error:
            failed += 1
            out.print(f"[bold red]bad[/]  {escape(str(error))}", highlight=False, soft_wrap=True)
        else:
            out.print(f"[bold green]good[/] {path.parent.name}/{path.name}", highlight=False, soft_wrap=True)
            if agreement is not None:
                out.print(
                    f"     {precision} against float32 on {agreement.rows} crops of {len(photos)} photos: same top-1 "
                    f"{agreement.top1:.1%}, probabilities differ by at most {agreement.largest_difference:.4f}, that "
                    f"of the top class by {agreement.mean_difference:.4f} on average",
                    highlight=False,
                    soft_wrap=True,
                )
    if not paths:
        err.print("There is no bundle to check.")
    raise typer.Exit(1 if failed or not paths else 0)


@models_app.command(
    "import",
    epilog="Example: [bold]condconv models import efficientnet-condconv-b0-8e.ckpt "
    "--architecture efficientnet-condconv-b0-8e --name b0-8e[/]",
)
@friendly
def import_model(
    source: Annotated[Path, typer.Argument(help="TensorFlow checkpoint (prefix or directory), or .safetensors.")],
    architecture: Annotated[str, typer.Option(help="Architecture of the weights.")],
    name: Annotated[str, typer.Option(help="Name of the new model.")],
    version: Annotated[str, typer.Option(help="Version of the new bundle.")] = "1",
    labels: Annotated[Path | None, typer.Option(help="labels.json: a list of index, label and synset.")] = None,
    transform: Annotated[Literal["official", "pillow"], typer.Option(help="How photos are cropped and resized.")] = (
        "official"
    ),
    ema: Annotated[bool, typer.Option("--ema/--no-ema", help="Prefer averaged weights.")] = True,
    card: Annotated[Path | None, typer.Option(help="Model card, Markdown.")] = None,
    licence: Annotated[str, typer.Option(help="SPDX licence expression of the weights.")] = "unknown",
    accuracy: Annotated[
        Path | None, typer.Option(help="JSON list of measurements (dataset, images, transform, top1, top5, note).")
    ] = None,
    method: Annotated[str | None, typer.Option(help="How the weights were made, in a sentence.")] = None,
    url: Annotated[str | None, typer.Option(help="Where the weights were published.")] = None,
    model_store: Store = None,
) -> None:
    """Make a bundle of foreign weights."""
    from service.tensorflow_log import import_tensorflow

    import_tensorflow()
    from service.store.importers.bundling import ImportRequest, import_bundle

    path = import_bundle(
        ImportRequest(
            source=source,
            architecture=architecture,
            name=name,
            version=version,
            labels=labels,
            transform=transform,
            use_ema=ema,
            model_card=card,
            licence=licence,
            accuracy=accuracy,
            method=method,
            url=url,
        ),
        store=_settings(model_store=model_store).model_store,
    )
    out.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)


@bench_app.command("engine", epilog="Example: [bold]condconv bench engine --precision float32 --precision bfloat16[/]")
@friendly
def bench_engine(
    model: ModelOption = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine to measure, repeatable; the one that would serve if absent."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Precision to measure, repeatable; the one that would serve if absent."),
    ] = None,
    streams: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Streams to measure, repeatable; as many as would serve if absent."),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Batch size to measure, repeatable; 1, 2, 4 and 8 if absent."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="Seconds per measurement.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each combination is measured, in turns.")] = 3,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the figures (.png, .svg or .pdf).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model_store: Store = None,
) -> None:
    """Measure throughput and latency by engine, precision, streams and batch size."""
    from service import bench
    from service.bootstrap import find_default
    from service.routing.plot import check_plot_path
    from service.store import Catalog, open_bundle

    if plot is not None:
        check_plot_path(plot)
    settings = _settings(model_store=model_store)
    catalog = Catalog(settings.model_store)
    figures = bench.bench_engine(
        settings,
        open_bundle(catalog.find(model or find_default(settings, catalog))),
        engines=engine or [],
        precisions=precision or [],
        streams=streams or [],
        batch_sizes=batch_size or [1, 2, 4, 8],
        seconds=seconds,
        rounds=rounds,
        progress=lambda text: err.print(text, highlight=False),
    )
    if as_json:
        _print_json([figure.to_json() for figure in figures])
    else:
        table = Table(box=None, header_style="bold")
        table.add_column("engine")
        table.add_column("precision")
        for column in ("streams", "batch", "images/s", "relative", "p50 ms", "p99 ms"):
            table.add_column(column, justify="right")
        for figure in figures:
            case = figure.case
            table.add_row(
                case.engine,
                case.precision,
                str(case.streams),
                str(case.batch_size),
                f"{figure.rows_per_second:.1f}",
                f"{figure.speed:.2f}",
                f"{figure.latency_p50 * 1e3:.1f}",
                f"{figure.latency_p99 * 1e3:.1f}",
            )
        _print_table(table)
    if plot is not None:
        bench.plot_engine(figures, plot)
        err.print(f"wrote {escape(str(plot))}", highlight=False, soft_wrap=True)


@keys_app.command("new", epilog="Example: [bold]condconv keys new --name ci --requests-per-minute 600[/]")
@friendly
def make_key(
    name: Annotated[str, typer.Option(help="Who uses it; letters, digits, and . _ - between them. Logs show it.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it is for, repeatable: predict or admin, which implies predict; predict if absent."),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Most requests in any 60 seconds; no limit if absent.")
    ] = None,
) -> None:
    """Make an API key: the secret, shown this once, and the entry to store for the server."""
    from service.keys import new_key

    secret, key = new_key(name, scopes=scope or ["predict"], requests_per_minute=requests_per_minute)
    err.print("The secret, which can't be shown again; give it to whoever is to use the service:", soft_wrap=True)
    sys.stdout.write(f"{secret}\n")
    sys.stdout.flush()
    err.print('The entry to add to "keys" in the keys file:', soft_wrap=True)
    _print_json(key.model_dump(exclude_none=True))


def _settings(**given: Any) -> Settings:
    """Settings from the environment, with what the command line gives on top."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for item in error.errors():
            name = "_".join(str(part) for part in item["loc"][:1]).upper()
            problem = f"CONDCONV_{name}: {item['msg']}, not {item['input']!r}"
            err.print(f"[bold red]error:[/] {escape(problem)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def _log(settings: Settings) -> None:
    from service.telemetry import configure_logging

    configure_logging(settings.log_level, settings.log_format)


def _print_failure(what: str | None, why: object) -> None:
    err.print(f"[bold red]{escape(str(what))}:[/] {escape(str(why))}", highlight=False, soft_wrap=True)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _print_table(table: Table) -> None:
    """Print a table; into a file or a pipe in full, since there is no width to fit it into."""
    console = out if out.is_terminal else Console(width=1000, emoji=False)
    console.print(table)


def _print_routing(name: str, prediction: Any) -> None:
    best = prediction.classes[0]
    name, label = escape(name), escape(best.label)
    experts = range(prediction.routing.weights.shape[1])
    table = Table("block", *(f"expert {i}" for i in experts), title=f"{name}: {label} ({best.probability:.1%})")
    for block, weights in zip(prediction.routing.blocks, prediction.routing.weights, strict=True):
        table.add_row(block, *(f"[on rgb({int(40 + 180 * w)},60,60)] {w:.3f} [/]" for w in weights))
    if prediction.routing.blocks:
        _print_table(table)
    else:
        out.print(f"{name}: {label}; a static network has no routing.", highlight=False, soft_wrap=True)
