"""Makes a bundle from published weights: the use case of `condconv models import`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from condconv_serve.domain import Interpolation, Label, TransformName, readable
from condconv_serve.domain.manifest import Accuracy, PreprocessingSpec, Provenance
from condconv_serve.errors import ImportFailed
from condconv_serve.files import sha256_of
from condconv_serve.nn import Architecture, family_of, get_architecture
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.nn.families import to_manifest
from condconv_serve.nn.published import Channels
from condconv_serve.store.importers.evaluation import (
    Origins,
    Wishes,
    choose_preprocessing,
    usual_efficientnet,
    usual_published,
)
from condconv_serve.store.importers.labels import (
    IMAGENET_CLASSES,
    check_labels,
    imagenet_labels,
    read_labels_file,
    read_text,
)
from condconv_serve.store.importers.sources import Imported, Source, Upcycling, check_importable, import_weights
from condconv_serve.store.new_bundle import NewBundle, next_version, write_bundle, write_next_bundle
from condconv_serve.validation import first_message

OPTION = "an option"
_accuracy = TypeAdapter(tuple[Accuracy, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What to import, from where, and what the bundle is to say of it.

    `archive` is the published file that the source was unpacked from, and `source_sha256` the checksum of that file, or
    of the source, if it is known already. `version` None is the next free one, and `overrides` are parameters of the
    architecture. `labels`, `transform`, `crop_pct` (share of the short side), `interpolation`, `mean` and `std` None
    are as the source says, else as networks of such names and kind took them. `given_by` says, for people, who gave
    those that are given.
    """

    source: Path
    archive: Path | None = None
    source_sha256: str | None = None
    architecture: str
    name: str
    version: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    upcycling: Upcycling | None = None
    labels: Path | None = None
    transform: TransformName | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    mean: Channels | None = None
    std: Channels | None = None
    exact_decoding: bool = True
    use_ema: bool = True
    model_card: Path | None = None
    licence: str = "unknown"
    accuracy: Path | None = None
    method: str | None = None
    url: str | None = None
    given_by: str = OPTION


def import_bundle(request: ImportRequest, *, store: Path) -> Path:
    """Import weights and write them as a bundle.

    Returns:
        The bundle's directory.

    Raises:
        ImportFailed: source, labels, card or measurements can't be read, the weights don't fit, or mean or deviation
            can't be.
        BundleError: the version exists already.
        ConfigurationError: unknown architecture, or an impossible override.
    """
    for name in ("licence", "method", "url"):
        given = getattr(request, name) or ""
        if readable(given) != given:
            raise ImportFailed(f"The {name} {readable(given)} is not UTF-8.")
    given = read_labels_file(request.labels) if request.labels else None
    architecture = get_architecture(request.architecture, **request.overrides)
    check_importable(architecture)
    card = read_text(request.model_card) if request.model_card else f"# {request.name}\n\nNo card was given.\n"
    accuracy = _read_accuracy(request.accuracy) if request.accuracy else ()
    imported = import_weights(
        request.source,
        architecture,
        given=request.overrides,
        use_ema=request.use_ema,
        upcycling=request.upcycling,
    )
    origins = Origins()
    _note_weights(imported.source, origins)
    _note_names(imported, origins)
    preprocessing = _preprocessing(request, imported, origins)
    labels = _labels(request, imported, given, origins)
    origin = request.archive or request.source
    new = NewBundle(
        name=request.name,
        version=request.version or next_version(store, request.name),
        architecture=to_manifest(imported.architecture.changed(image_size=preprocessing.image_size)),
        preprocessing=preprocessing,
        weights=imported.weights,
        labels=labels,
        provenance=Provenance(
            source=readable(Path(os.path.abspath(origin)).name),
            method=request.method or _method(architecture, request.upcycling),
            url=request.url,
            source_sha256=request.source_sha256 or (sha256_of(origin) if origin.is_file() else None),
            weights=imported.source.kind,
            origins=origins.of,
            assumed=tuple(origins.assumed),
        ),
        licence=request.licence,
        model_card=card,
        task=family_of(architecture).task,
        accuracy=accuracy,
    )
    return write_bundle(store, new) if request.version else write_next_bundle(store, new)


def _note_weights(source: Source, origins: Origins) -> None:
    match source.kind, source.has_other:
        case "averaged", True:
            where = "there are raw ones, too: --no-ema"
        case "raw", True:
            where = "there are averages, too: --ema"
        case "unmarked", _:
            where = "the only ones; perhaps averages"
        case _:
            where = "the only ones"
    origins.note("weights", where)


def _note_names(imported: Imported, origins: Origins) -> None:
    if imported.published is None:
        return
    if imported.conventions:
        origins.note("conventions", f"those of {imported.published.whose} networks")
    if imported.without_background:
        origins.note("classes", f"without {imported.published.whose} class 0, the background")


def _preprocessing(request: ImportRequest, imported: Imported, origins: Origins) -> PreprocessingSpec:
    architecture, source = imported.architecture, imported.source
    if isinstance(architecture, EfficientNetSpec):
        static = request.upcycling is not None or not architecture.num_experts
        usual = usual_efficientnet(
            source.naming,
            imagenet_pixels=static and architecture.activation == "swish",
            image_size=architecture.image_size,
            configured=source.config is not None,
        )
    else:
        ways = family_of(architecture).published
        usual = usual_published(imported.published or ways[0], image_size=architecture.image_size)
    wishes = Wishes(
        transform=request.transform,
        image_size=request.overrides.get("image_size"),
        crop_pct=request.crop_pct,
        interpolation=request.interpolation,
        mean=request.mean,
        std=request.std,
        exact_decoding=request.exact_decoding,
        given_by=request.given_by,
    )
    return choose_preprocessing(wishes, source.config, usual, origins)


def _labels(
    request: ImportRequest, imported: Imported, given: Sequence[Label] | None, origins: Origins
) -> Sequence[Label]:
    classes, config = imported.architecture.num_classes, imported.source.config
    labels: Sequence[Label]
    if given is not None and request.labels is not None:
        labels = given
        where = readable(request.labels.name) if request.given_by == OPTION else request.given_by
    elif config is not None and config.labels:
        labels, where = config.labels, config.origin
    elif config is not None and config.imagenet and classes == IMAGENET_CLASSES:
        labels, where = imagenet_labels(), f"{config.origin}: trained on ImageNet-1k"
    elif (published := imported.published) is not None and len(published.labels) == classes:
        origins.note("labels", f"usual with {published.whose} names", assumed=True)
        return [Label(index, label) for index, label in enumerate(published.labels)]
    else:
        origins.note("labels", "numbers", assumed=True)
        return [Label(index, f"class {index}") for index in range(classes)]
    check_labels(labels, classes, origin=where)
    origins.note("labels", where)
    return labels


def _method(architecture: Architecture, upcycling: Upcycling | None) -> str:
    if upcycling is None:
        return f"imported with the names of {architecture.name}"
    noise = f"differing by {upcycling.noise:g} of its deviation" if upcycling.noise else "all alike"
    return f"upcycled: each kernel of the static network became {architecture.num_experts} experts, {noise}"


def _read_accuracy(file: Path) -> tuple[Accuracy, ...]:
    try:
        return _accuracy.validate_json(read_text(file))
    except ValidationError as error:
        raise ImportFailed(f"{file.name} is no list of measurements: {first_message(error)}.") from error
