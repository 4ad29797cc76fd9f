"""Commands that look after the model store."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from condconv_serve.cli.common import INTERRUPTED, MODEL_FORM, Json, ModelName, Store, friendly, read_settings
from condconv_serve.cli.origins import print_origins
from condconv_serve.cli.output import err, note, print_failure, print_json, print_markdown, say
from condconv_serve.cli.tables import Cell, print_listing
from condconv_serve.errors import ServiceError

FEW_IMAGES = 200
app = typer.Typer(help="Look after the bundles in the model store.", no_args_is_help=True)


@app.command("list")
@friendly
def list_models(model_store: Store = None) -> None:
    """List the bundles of the store, and its default model."""
    from condconv_serve.errors import BundleError
    from condconv_serve.store import Catalog
    from condconv_serve.store.bundle import read_manifest
    from condconv_serve.store.default import find_default

    store = read_settings(model_store=model_store).model_store
    catalog = Catalog(store)
    rows: list[tuple[Cell, ...]] = []
    for path in catalog:
        try:
            manifest = read_manifest(path)
        except BundleError as error:
            rows.append((path.parent.name, path.name, (error, "red")))
            continue
        size = sum(file.size for file in manifest.files.values())
        rows.append(
            (
                manifest.name,
                manifest.version,
                manifest.architecture.name,
                manifest.num_classes,
                f"{size / 1e6:.1f} MB",
                manifest.licence,
            )
        )
    print_listing(("model", "version", "architecture", "classes", "size", "licence"), rows)
    if catalog.models():
        found = find_default(store, catalog.models())
        note(f"Default model: {found.name}." if found.name else found.reason)


@app.command("architectures")
@friendly
def list_architectures(as_json: Json = False) -> None:
    """List the networks that can be built and imported, with their parameters and multiply-adds."""
    from condconv_serve.offline.architectures import describe_architectures
    from condconv_serve.runtime.tensorflow_import import import_tensorflow

    import_tensorflow()
    found = describe_architectures()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows: list[tuple[Cell, ...]] = [
        (
            one.name,
            one.experts or "-",
            one.image_size,
            f"{one.parameters / 1e6:.1f}M",
            f"{one.multiply_adds / 1e6:.0f}M",
        )
        for one in found
    ]
    print_listing(("architecture", "experts", "pixels", "parameters", "multiply-adds"), rows)


@app.command("show", epilog="Example: [bold]condconv models show efficientnet-lite0-condconv-4e[/]")
@friendly
def show_model(name: ModelName, as_json: Json = False, model_store: Store = None) -> None:
    """Show a bundle's manifest and model card."""
    from condconv_serve.store import Catalog, open_bundle

    bundle = open_bundle(Catalog(read_settings(model_store=model_store).model_store).find_named(name))
    if as_json:
        print_json({**bundle.manifest.model_dump(mode="json"), "model_card": bundle.model_card})
        return
    print_json(bundle.manifest.model_dump(mode="json", exclude_none=True))
    print_markdown(bundle.model_card)


@app.command("verify", epilog="Example: [bold]condconv models verify[/] checks every bundle of the store.")
@friendly
def verify_models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar=f"[{MODEL_FORM}]...", help="Bundles to check; a version may be an alias. Default: all."),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Also compare the answers in this precision with the answers in float32."),
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(help="Photos to compare with. Default: four that ship with the service.")
    ] = None,
    model_store: Store = None,
) -> None:
    """Check bundles: manifest, checksums, labels, and whether the weights fit and compute an answer."""
    from condconv_serve.engine_planning import plan_engines
    from condconv_serve.inputs.files import expand
    from condconv_serve.offline.verify import verify_bundle
    from condconv_serve.samples import SAMPLES
    from condconv_serve.store import Catalog, open_bundle

    photos = expand(images, note=note) if images else list(SAMPLES)
    settings = read_settings(model_store=model_store)
    catalog = Catalog(settings.model_store)
    paths = [catalog.find_named(name) for name in names] if names else list(catalog)
    failed, plan = 0, plan_engines(settings)
    for path in paths:
        try:
            bundle = open_bundle(path)
            verify_bundle(bundle, plan)
            agreement = None
            if precision is not None:
                from condconv_serve.offline.bench import compare_precisions

                agreement = compare_precisions(settings, bundle, precision=precision, images=photos)
        except ServiceError as error:
            failed += 1
            say(("bad", "bold red"), "  ", error)
        else:
            say(("good", "bold green"), f" {path.parent.name}/{path.name}")
            if agreement is not None:
                say(
                    f"     {precision} against float32 on {agreement.rows} crops of {len(photos)} photos: same top-1 "
                    f"{agreement.top1:.1%}, probabilities differ by at most {agreement.largest_difference:.4f}, that "
                    f"of the top class by {agreement.mean_difference:.4f} on average"
                )
    if not paths:
        say("There is no bundle to check.", console=err)
    raise typer.Exit(1 if failed or not paths else 0)


@app.command(
    "import",
    epilog="Example: [bold]condconv models import efficientnet-condconv-b0-8e.tar.gz "
    "--architecture efficientnet-condconv-b0-8e --name b0-8e[/]",
)
@friendly
def import_model(
    source: Annotated[
        Path,
        typer.Argument(
            help="TensorFlow checkpoint (prefix, .index, directory, .tar, .tar.gz or .tgz), .safetensors, PyTorch file "
            "(.pth, .pt, .bin, Lightning's .ckpt), directory of the Hugging Face Hub, .keras, .h5 or .npz."
        ),
    ],
    architecture: Annotated[str, typer.Option(help="Architecture of the weights.")],
    name: Annotated[str, typer.Option(help="Name of the new model.")],
    version: Annotated[
        str | None, typer.Option(help="Version of the new bundle. Default: the next free number.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Names of the classes, in order. A .json file: a list of names, or of index, label and synset. Any "
            "other file: one name per line. Default: as the source says, else numbers."
        ),
    ] = None,
    transform: Annotated[
        Literal["official", "pillow", "central", "stretch", "letterbox"] | None,
        typer.Option(
            help="How photos are cropped and resized. Default: as networks with such names of weights were evaluated."
        ),
    ] = None,
    crop: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="The centre that is cut out, as a share of the short side; stretch and letterbox take the whole "
            "photo. Default: as the source says, else as networks with such names of weights were evaluated.",
        ),
    ] = None,
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos", "asymmetric"] | None,
        typer.Option(
            help="Pillow's filter; or asymmetric, TensorFlow 1's bilinear, for stretch and letterbox. Default: as "
            "for the crop."
        ),
    ] = None,
    exact_decoding: Annotated[
        bool,
        typer.Option(
            "--exact-decoding/--fast-decoding",
            help="Exact: the network sees exactly the pixels of the reference evaluation. Fast: large JPEGs are "
            "decoded at a fraction of their size, and pixels are rounded.",
        ),
    ] = True,
    ema: Annotated[bool, typer.Option("--ema/--no-ema", help="Prefer averaged weights, or take the raw ones.")] = True,
    upcycle: Annotated[
        bool,
        typer.Option(
            "--upcycle",
            help="Turn a static network into a CondConv network. Each expert starts as a copy of the static kernel.",
        ),
    ] = False,
    experts: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Experts per CondConv layer. Default: as in the architecture."),
    ] = None,
    upcycle_noise: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="How much upcycled experts differ, as a share of the kernel's standard deviation. 0 "
            "makes plain copies.",
        ),
    ] = 0.0,
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Another parameter of the architecture to change. You can give several.",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Mean of the pixels, 0 to 255. Default: as the source says, else as such networks were trained.",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Standard deviation of the pixels, 0 to 255. Default: as for the mean.",
        ),
    ] = None,
    card: Annotated[Path | None, typer.Option(help="Model card, Markdown.")] = None,
    licence: Annotated[str, typer.Option(help="SPDX licence expression of the weights.")] = "unknown",
    accuracy: Annotated[
        Path | None,
        typer.Option(
            help="JSON list of measurements (dataset, images, transform, top1 and top5 or ap and ap50, note)."
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="How the weights were made, in a sentence.")] = None,
    url: Annotated[str | None, typer.Option(help="Where the weights were published.")] = None,
    model_store: Store = None,
) -> None:
    """Make a bundle from a file of weights.

    What the source says of itself is read. What was chosen is printed, and what had to be assumed.
    """
    if upcycle_noise and not upcycle:
        raise typer.BadParameter("only upcycled experts can differ: add --upcycle.", param_hint="--upcycle-noise")
    overrides = parse_overrides(override or []) | ({} if experts is None else {"num_experts": experts})
    means, deviations = parse_channels(mean, "--mean"), parse_channels(std, "--std")
    from condconv_serve.runtime.tensorflow_import import import_tensorflow

    import_tensorflow()
    from condconv_serve.store.importers import Upcycling
    from condconv_serve.store.importers.bundling import ImportRequest, import_bundle

    path = import_bundle(
        ImportRequest(
            source=source,
            architecture=architecture,
            name=name,
            version=version,
            overrides=overrides,
            upcycling=Upcycling(noise=upcycle_noise) if upcycle else None,
            labels=labels,
            transform=transform,
            crop_pct=crop,
            interpolation=interpolation,
            mean=means,
            std=deviations,
            exact_decoding=exact_decoding,
            use_ema=ema,
            model_card=card,
            licence=licence,
            accuracy=accuracy,
            method=method,
            url=url,
        ),
        store=read_settings(model_store=model_store).model_store,
    )
    say(f"wrote {path}")
    print_origins(path)


@app.command(
    "profile", epilog="Example: [bold]condconv models profile efficientnet-lite0-condconv-4e --images photos/[/]"
)
@friendly
def profile_model(
    name: ModelName,
    images: Annotated[
        list[str],
        typer.Option(
            help="Photos like those that the service will see: files, directories or globs. You can give several."
        ),
    ],
    min_class_images: Annotated[
        int, typer.Option(min=1, help="Number of images that a class needs for a profile of its own.")
    ] = 5,
    model_store: Store = None,
) -> None:
    """Add a reference routing profile to a bundle. Drift is measured against it."""
    from condconv_serve.inputs.files import expand
    from condconv_serve.offline.profile import profile_files
    from condconv_serve.store import Catalog, add_profile

    settings = read_settings(model_store=model_store)
    path = Catalog(settings.model_store).find_named(name)
    files = expand(images, note=note)
    try:
        made = profile_files(settings, path, files, min_class_images=min_class_images, console=err)
    except KeyboardInterrupt:
        note("interrupted: the bundle is as it was")
        raise typer.Exit(INTERRUPTED) from None
    for file, error in made.failures:
        print_failure(file, error)
    bundle = add_profile(path, made.profile)
    say(
        f"{path}: profile of {made.profile.images} images, {len(made.profile.classes)} classes with a profile of their "
        f"own, in {bundle.manifest.routing_profile}"
    )
    if made.profile.images < FEW_IMAGES:
        say(f"With fewer than {FEW_IMAGES} images only strong drift can be told from chance.", console=err)
    raise typer.Exit(1 if made.failures else 0)


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """Split `NAME=VALUE`: a number (whole ones stay whole), true, false, a list in JSON, or a word.

    Raises:
        typer.BadParameter: a text is something else.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        value = value.strip()
        if not name.strip() or not value:
            raise typer.BadParameter(f"{text!r} is not of the form NAME=VALUE.", param_hint="--override")
        overrides[name.strip()] = _parse_value(value)
    return overrides


def _parse_value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise typer.BadParameter(f"{text!r} is no list in JSON.", param_hint="--override") from None
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def parse_channels(text: str | None, option: str) -> tuple[float, float, float] | None:
    """Parse three numbers, or one that stands for all three.

    Raises:
        typer.BadParameter: the text is something else.
    """
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
        red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be one number or three.", param_hint=option) from None
    return red, green, blue
