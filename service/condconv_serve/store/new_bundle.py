"""Writing a bundle: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from condconv_serve.domain import Label, RoutingProfile
from condconv_serve.domain.manifest import (
    Accuracy,
    ArchitectureSpec,
    FileSpec,
    Manifest,
    ModelName,
    PreprocessingSpec,
    Provenance,
    TaskName,
    VersionName,
)
from condconv_serve.errors import BundleError
from condconv_serve.files import flush, sha256_of, sync_directory
from condconv_serve.store.bundle import (
    LABEL_LIST,
    LABELS,
    MANIFEST,
    MODEL_CARD,
    NETWORK,
    WEIGHTS,
    bundle_name,
    open_bundle,
    read_labels,
)
from condconv_serve.store.catalog import Catalog
from condconv_serve.store.default import keep_default
from condconv_serve.store.profile import profile_name, serialise_profile
from condconv_serve.store.scratch import scratch_directory
from condconv_serve.store.tensors import save_tensors
from condconv_serve.validation import describe_errors, first_message

_name, _version = TypeAdapter(ModelName), TypeAdapter(VersionName)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBundle:
    """What goes into a bundle. `weights` by variable path; their dtypes are kept.

    `network` describes the network (`condconv_serve.nn.network_to_json`) if `architecture` is `{"name": "keras"}`.
    """

    name: str
    version: str
    architecture: Mapping[str, Any]
    preprocessing: PreprocessingSpec
    weights: Mapping[str, NDArray[Any]]
    labels: Sequence[Label]
    provenance: Provenance
    licence: str
    model_card: str
    task: TaskName = "classification"
    accuracy: tuple[Accuracy, ...] = ()
    network: str | None = None
    routing_profile: RoutingProfile | None = None


def check_free(store: Path, name: str, version: str) -> Path:
    """Check early that a bundle can be written.

    Returns:
        The directory that it would have.

    Raises:
        BundleError: it exists already, or the name or version is not allowed.
    """
    for what, value, allowed in (("name", name, _name), ("version", version, _version)):
        try:
            allowed.validate_python(value)
        except ValidationError as error:
            raise BundleError(f"{what}: {first_message(error)}, not {value!r}.") from error
    if name.endswith(".json"):
        raise BundleError(f"name: the model store keeps files of its own under names such as {name!r}.")
    target = store / name / version
    if target.exists():
        raise BundleError(f"{bundle_name(target)} exists already; choose another version.")
    return target


def write_bundle(store: Path, new: NewBundle) -> Path:
    """Write a bundle beside its place, check it, then move it there: a reader never sees half of one.

    The first model of a store becomes its default one.

    Returns:
        The bundle's directory, `<store>/<name>/<version>`.

    Raises:
        BundleError: the version exists already, what is to be written isn't a valid bundle, or the model's directory
            lies on another file system.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    manifest = _manifest(new)  # first, so that a bad name never becomes a directory
    target = check_free(store, new.name, new.version)
    created = [directory for directory in target.parents if not directory.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_directory(store) as scratch:
            path = scratch / new.name / new.version  # the folders have the names that the manifest must match
            path.mkdir(parents=True)
            _write_files(path, new, manifest)
            read_labels(open_bundle(path))
            before = Catalog(store).models()
            try:
                os.rename(path, target)
                sync_directory(target.parent)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    raise BundleError(
                        f"{new.name} leads to another file system than the model store's, and a bundle can't be moved "
                        "there in one step. Put the whole store there instead."
                    ) from error
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise BundleError(f"{bundle_name(target)} exists already; choose another version.") from error
            keep_default(store, new.name, before=before)
    except BaseException:
        for directory in created:
            with contextlib.suppress(OSError):  # somebody else has put something there
                directory.rmdir()
        raise
    return target


def write_next_bundle(store: Path, new: NewBundle) -> Path:
    """Write a bundle as `next_version`. Its own version doesn't count, and others may do the same at the same time.

    Raises:
        BundleError, OSError: as for `write_bundle`.
    """
    while True:
        new = replace(new, version=next_version(store, new.name))
        try:
            return write_bundle(store, new)
        except BundleError:
            if not (store / new.name / new.version).exists():
                raise


def next_version(store: Path, name: str) -> str:
    """Return the number after the largest version of a model, complete or not; "1" if there is none."""
    directory = store / name
    versions = [int(path.name) for path in directory.iterdir() if path.name.isdecimal()] if directory.is_dir() else []
    return str(max(versions, default=0) + 1)


def dump_manifest(manifest: Manifest) -> bytes:
    """The content of `manifest.json`."""
    return (manifest.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


def _manifest(new: NewBundle) -> Manifest:
    """The manifest, without the files."""
    try:
        return Manifest(
            task=new.task,
            name=new.name,
            version=new.version,
            architecture=ArchitectureSpec.model_validate(dict(new.architecture)),
            num_classes=len(new.labels),
            preprocessing=new.preprocessing,
            files={},
            provenance=new.provenance,
            licence=new.licence,
            accuracy=new.accuracy,
        )
    except ValidationError as error:
        raise BundleError(f"{new.name}/{new.version} can't be written: {describe_errors(error)}.") from error


def _write_files(path: Path, new: NewBundle, manifest: Manifest) -> None:
    save_tensors(new.weights, path / WEIGHTS)
    labels = LABEL_LIST.dump_python(list(new.labels), mode="json", exclude_none=True)
    (path / LABELS).write_text(
        "[\n" + ",\n".join(json.dumps(label, ensure_ascii=False) for label in labels) + "\n]\n", encoding="utf-8"
    )
    (path / MODEL_CARD).write_text(new.model_card, encoding="utf-8")
    if new.network is not None:
        (path / NETWORK).write_text(new.network, encoding="utf-8")
    if new.routing_profile is not None:
        content = serialise_profile(new.routing_profile)
        (path / profile_name(content)).write_bytes(content)
    manifest = manifest.model_copy(update={"files": {file.name: _describe(file) for file in sorted(path.iterdir())}})
    (path / MANIFEST).write_bytes(dump_manifest(manifest))
    for file in path.iterdir():
        flush(file)
    sync_directory(path)


def _describe(file: Path) -> FileSpec:
    return FileSpec(size=file.stat().st_size, sha256=sha256_of(file))
