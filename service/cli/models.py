"""Commands that look after the model store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from service.cli.common import (
    Json,
    Store,
    err,
    friendly,
    out,
    print_json,
    print_table,
    read_settings,
)
from service.cli.finetune import finetune_model
from service.cli.pull import list_catalogue, pull_model
from service.errors import ServiceError

app = typer.Typer(help="Look after the bundles in the model store.", no_args_is_help=True)


@app.command("list")
@friendly
def list_models(model_store: Store = None) -> None:
    """List the bundles of the store."""
    from service.errors import BundleError
    from service.store import Catalog
    from service.store.bundle import read_manifest

    table = Table(box=None, header_style="bold")
    for column in ("model", "version", "architecture", "classes", "size", "licence"):
        table.add_column(column, overflow="fold")
    for path in Catalog(read_settings(model_store=model_store).model_store):
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
    print_table(table)


@app.command("show", epilog="Example: [bold]condconv models show efficientnet-lite0-condconv-4e[/]")
@friendly
def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME[/VERSION]")], as_json: Json = False, model_store: Store = None
) -> None:
    """Show a bundle's manifest and model card."""
    from service.store import Catalog, open_bundle

    model, _, version = name.partition("/")
    bundle = open_bundle(Catalog(read_settings(model_store=model_store).model_store).find(model, version or None))
    if as_json:
        print_json({**bundle.manifest.model_dump(mode="json"), "model_card": bundle.model_card})
        return
    out.print_json(bundle.manifest.model_dump_json(exclude_none=True))
    out.print(Markdown(bundle.model_card))


@app.command("verify", epilog="Example: [bold]condconv models verify[/] checks every bundle of the store.")
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
    settings = read_settings(model_store=model_store)
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


@app.command(
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
        store=read_settings(model_store=model_store).model_store,
    )
    out.print(f"wrote {escape(str(path))}", highlight=False, soft_wrap=True)


app.command(
    "finetune", epilog="Example: [bold]condconv models finetune lite0-8e --data flowers/ --name flowers --epochs 5[/]"
)(finetune_model)
app.command(
    "pull",
    epilog="Example: [bold]condconv models pull efficientnet-condconv-b0-8e[/]. "
    "[bold]condconv models catalogue[/] lists what there is.",
)(pull_model)
app.command("catalogue", epilog="Example: [bold]condconv models catalogue --json[/]")(list_catalogue)
