"""Makes a bundle of foreign weights: the use case behind `condconv models import`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.domain import Label, TransformName
from service.errors import ImportFailed
from service.nn import get_architecture
from service.store.bundle import NewBundle, write_bundle
from service.store.importers.sources import import_weights
from service.store.manifest import Accuracy, PreprocessingSpec, Provenance

_labels = TypeAdapter(list[Label])
_accuracy = TypeAdapter(tuple[Accuracy, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What to import, from where, and what the bundle is to say of it."""

    source: Path
    architecture: str
    name: str
    version: str
    labels: Path | None = None
    transform: TransformName = "official"
    use_ema: bool = True
    model_card: Path | None = None
    licence: str = "unknown"
    accuracy: Path | None = None
    method: str | None = None
    url: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the architecture that differ from the registered ones."""
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    archive: Path | None = None
    """The published file that the source was unpacked from."""


def import_bundle(request: ImportRequest, *, store: Path) -> Path:
    """Import weights and write them as a bundle.

    Returns:
        The bundle's directory.

    Raises:
        ImportFailed: source, labels, card or measurements can't be read, or the weights don't fit.
        BundleError: the version exists already.
        ConfigurationError: unknown architecture.
    """
    labels = _read_labels(request.labels) if request.labels else None
    overrides = {"num_classes": len(labels)} if labels else {}
    architecture = get_architecture(request.architecture, **{**request.overrides, **overrides})
    origin = request.archive or request.source
    weights = import_weights(request.source, architecture, use_ema=request.use_ema)
    return write_bundle(
        store,
        NewBundle(
            name=request.name,
            version=request.version,
            architecture=architecture.to_manifest(),
            preprocessing=PreprocessingSpec(
                transform=request.transform,
                image_size=architecture.image_size,
                mean=request.mean,
                std=request.std,
            ),
            weights=weights,
            labels=labels or [Label(i, f"class {i}") for i in range(architecture.num_classes)],
            provenance=Provenance(
                source=origin.name,
                method=request.method or f"imported with the names of {architecture.name}",
                url=request.url,
                source_sha256=_sha256(origin) if origin.is_file() else None,
            ),
            licence=request.licence,
            model_card=_read(request.model_card) if request.model_card else f"# {request.name}\n\nNo card was given.\n",
            accuracy=_read_accuracy(request.accuracy) if request.accuracy else (),
        ),
    )


def _read_labels(file: Path) -> list[Label]:
    try:
        labels = _labels.validate_json(_read(file))
    except ValidationError as error:
        raise ImportFailed(
            f"{file.name} is no list of labels (index, label, synset): {error.errors()[0]['msg']}."
        ) from (error)
    if not labels or [label.index for label in labels] != list(range(len(labels))):
        raise ImportFailed(f"{file.name} must name the classes 0, 1, 2, ... in order.")
    return labels


def _read_accuracy(file: Path) -> tuple[Accuracy, ...]:
    try:
        return _accuracy.validate_json(_read(file))
    except ValidationError as error:
        raise ImportFailed(f"{file.name} is no list of measurements: {error.errors()[0]['msg']}.") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImportFailed(f"{file.name} can't be read: {error}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
