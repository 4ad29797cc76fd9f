"""Makes a bundle from published weights: the use case of `condconv models import`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from condconv_serve.domain import Label, TransformName, readable
from condconv_serve.domain.manifest import Accuracy, PreprocessingSpec, Provenance
from condconv_serve.errors import ImportFailed
from condconv_serve.files import sha256_of
from condconv_serve.nn import get_architecture
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.nn.families import to_manifest
from condconv_serve.store.importers.labels import read_labels_file, read_text
from condconv_serve.store.importers.sources import Imported, Upcycling, import_weights, importable
from condconv_serve.store.new_bundle import NewBundle, next_version, write_bundle, write_next_bundle
from condconv_serve.validation import describe_errors, first_message

_accuracy = TypeAdapter(tuple[Accuracy, ...])

Channels = tuple[float, float, float]
# What the networks were trained with, on the scale 0..255: EfficientNet with the mean and deviation of ImageNet's
# pixels, all others with round numbers, which timm has rounded differently.
_IMAGENET: tuple[Channels, Channels] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_TIMM: tuple[Channels, Channels] = ((127.5,) * 3, (127.5,) * 3)
_OFFICIAL: tuple[Channels, Channels] = ((127.0,) * 3, (128.0,) * 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What to import, from where, and what the bundle is to say of it.

    `archive` is the published file that the source was unpacked from, and `source_sha256` the checksum of that file, or
    of the source, if it is known already. `version` None is the next free one, `overrides`
    are parameters of the architecture, and `mean` and `std` None are those that networks of such names and kind were
    trained with.
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
    transform: TransformName = "official"
    mean: Channels | None = None
    std: Channels | None = None
    exact_decoding: bool = True
    use_ema: bool = True
    model_card: Path | None = None
    licence: str = "unknown"
    accuracy: Path | None = None
    method: str | None = None
    url: str | None = None


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
    labels = read_labels_file(request.labels) if request.labels else None
    architecture = importable(get_architecture(request.architecture, **request.overrides))
    card = read_text(request.model_card) if request.model_card else f"# {request.name}\n\nNo card was given.\n"
    accuracy = _read_accuracy(request.accuracy) if request.accuracy else ()
    imported = import_weights(
        request.source,
        architecture,
        num_classes=len(labels) if labels else request.overrides.get("num_classes"),
        use_ema=request.use_ema,
        upcycling=request.upcycling,
    )
    origin = request.archive or request.source
    new = NewBundle(
        name=request.name,
        version=request.version or next_version(store, request.name),
        architecture=to_manifest(imported.architecture),
        preprocessing=_preprocessing(request, architecture, imported),
        weights=imported.weights,
        labels=labels or [Label(i, f"class {i}") for i in range(imported.architecture.num_classes)],
        provenance=Provenance(
            source=readable(Path(os.path.abspath(origin)).name),
            method=request.method or _method(architecture, request.upcycling),
            url=request.url,
            source_sha256=request.source_sha256 or (sha256_of(origin) if origin.is_file() else None),
        ),
        licence=request.licence,
        model_card=card,
        accuracy=accuracy,
    )
    return write_bundle(store, new) if request.version else write_next_bundle(store, new)


def _preprocessing(request: ImportRequest, architecture: EfficientNetSpec, imported: Imported) -> PreprocessingSpec:
    mean, std = _normalisation(imported, static=request.upcycling is not None or not architecture.num_experts)
    try:
        return PreprocessingSpec(
            transform=request.transform,
            image_size=architecture.image_size,
            mean=request.mean or mean,
            std=request.std or std,
            exact_decoding=request.exact_decoding,
        )
    except ValidationError as error:
        described = describe_errors(error, most=1, write_place=lambda place: str(place[0]), show_values=True)
        raise ImportFailed(f"{described}.") from error


def _normalisation(imported: Imported, *, static: bool) -> tuple[Channels, Channels]:
    """Mean and standard deviation that the weights' network was trained with."""
    if static and imported.architecture.activation == "swish":
        return _IMAGENET
    return _TIMM if imported.naming == "timm" else _OFFICIAL


def _method(architecture: EfficientNetSpec, upcycling: Upcycling | None) -> str:
    if upcycling is None:
        return f"imported with the names of {architecture.name}"
    noise = f"differing by {upcycling.noise:g} of its deviation" if upcycling.noise else "all alike"
    return f"upcycled: each kernel of the static network became {architecture.num_experts} experts, {noise}"


def _read_accuracy(file: Path) -> tuple[Accuracy, ...]:
    try:
        return _accuracy.validate_json(read_text(file))
    except ValidationError as error:
        raise ImportFailed(f"{file.name} is no list of measurements: {first_message(error)}.") from error
