"""One bundle: written whole or not at all, and checked whole before it is used."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from condconv_serve.documents import parse_document
from condconv_serve.domain import Label, RoutingProfile
from condconv_serve.errors import BundleError
from condconv_serve.files import flush, sha256_of, sync_directory
from condconv_serve.store.manifest import (
    OWN_NETWORK,
    SCHEMA_VERSION,
    Accuracy,
    ArchitectureSpec,
    FileSpec,
    Manifest,
    ModelName,
    PreprocessingSpec,
    Provenance,
    VersionName,
)
from condconv_serve.store.profile import parse_profile, profile_name, serialise_profile
from condconv_serve.store.scratch import scratch_directory
from condconv_serve.validation import describe_errors, first_message

MANIFEST, WEIGHTS, LABELS, MODEL_CARD = "manifest.json", "weights.safetensors", "labels.json", "MODEL_CARD.md"
NETWORK = "network.json"
_MAX_TEXT_BYTES = 64 * 2**20
_labels = TypeAdapter(list[Label])
_name, _version = TypeAdapter(ModelName), TypeAdapter(VersionName)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest is valid and whose files have the sizes and checksums that it names."""

    path: Path
    manifest: Manifest

    @property
    def model_card(self) -> str:
        """The model card, Markdown."""
        return (self.path / MODEL_CARD).read_text(encoding="utf-8", errors="replace")


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
    accuracy: tuple[Accuracy, ...] = ()
    network: str | None = None
    routing_profile: RoutingProfile | None = None


def open_bundle(path: Path) -> Bundle:
    """Check a bundle's manifest and files.

    Raises:
        BundleError: says which file or field is wrong and how.
    """
    bundle = Bundle(path, read_manifest(path))
    manifest = bundle.manifest
    if missing := {WEIGHTS, LABELS, MODEL_CARD} - set(manifest.files):
        raise BundleError(f"{_id(path)}: the manifest doesn't list {', '.join(sorted(missing))}.")
    if (NETWORK in manifest.files) != (manifest.architecture.name == OWN_NETWORK):
        raise BundleError(f"{_id(path)}: {NETWORK} belongs to the architecture {OWN_NETWORK}, and to no other one.")
    if (path.parent.name, path.name) != (manifest.name, manifest.version):
        raise BundleError(
            f"{_id(path)}: the manifest says {manifest.name}/{manifest.version}, which is another place in the store."
        )
    for name, spec in manifest.files.items():
        _check_file(path, name, spec)
    return bundle


def read_manifest(path: Path) -> Manifest:
    """Read and validate `manifest.json` alone.

    Raises:
        BundleError: it is missing, too new, or names the fields that are wrong.
    """
    raw = _read_text(path, MANIFEST)
    return parse_document(raw, Manifest, name=f"{_id(path)}: {MANIFEST}", error=BundleError, newest=SCHEMA_VERSION)


def read_weights(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """Read all weights as float32, by variable path.

    Raises:
        BundleError: the file is no safetensors file, or holds a number that is not finite.
    """
    try:
        tensors = load_file(bundle.path / WEIGHTS)
    except OSError as error:
        raise BundleError(f"{_id(bundle.path)}: {WEIGHTS} is missing or can't be read.") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{_id(bundle.path)}: {WEIGHTS} can't be read ({error}).") from error
    weights = {}
    for name, value in tensors.items():
        if not is_floating(value):
            raise BundleError(f"{_id(bundle.path)}: {name} is {value.dtype}, but weights are floating-point numbers.")
        with np.errstate(over="ignore"):  # infinity is refused below
            weights[name] = value.astype(np.float32)
        if not np.isfinite(weights[name]).all():
            raise BundleError(f"{_id(bundle.path)}: {name} holds numbers that are not finite.")
    return weights


def is_floating(value: NDArray[Any]) -> bool:
    """Whether an array holds floating-point numbers; NumPy itself doesn't count bfloat16 as such."""
    return value.dtype.name.startswith(("float", "bfloat"))


def read_labels(bundle: Bundle) -> tuple[Label, ...]:
    """Read the labels, one per class in the order of the logits.

    Raises:
        BundleError: the file is no list of labels, or they aren't numbered 0, 1, 2, ...
    """
    try:
        labels = _labels.validate_json(_read_text(bundle.path, LABELS))
    except ValidationError as error:
        raise BundleError(f"{_id(bundle.path)}: {LABELS} is not valid: {describe_errors(error)}.") from error
    if [label.index for label in labels] != list(range(bundle.manifest.num_classes)):
        raise BundleError(
            f"{_id(bundle.path)}: {LABELS} must name the classes 0 to {bundle.manifest.num_classes - 1} in order."
        )
    return tuple(labels)


def read_network(bundle: Bundle) -> str:
    """Read the description of a network that the bundle brings along, JSON.

    Raises:
        BundleError: the bundle has none.
    """
    return _read_text(bundle.path, NETWORK)


def check_free(store: Path, name: str, version: str) -> Path:
    """Say early that a bundle could not be written.

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
    target = store / name / version
    if target.exists():
        raise BundleError(f"{_id(target)} exists already; choose another version.")
    return target


def read_profile(bundle: Bundle) -> RoutingProfile | None:
    """Read the reference routing profile; None if the bundle has none.

    Raises:
        BundleError: the file is damaged, or its parts don't fit together.
    """
    name = bundle.manifest.routing_profile
    if name is None:
        return None
    try:
        return parse_profile((bundle.path / name).read_bytes())
    except OSError as error:
        raise BundleError(f"{_id(bundle.path)}: {name} is missing or can't be read.") from error
    except BundleError as error:
        raise BundleError(f"{_id(bundle.path)}: {name}: {error}.") from error


def write_bundle(store: Path, new: NewBundle) -> Path:
    """Write a bundle beside its place, check it, then move it there: a reader never sees half of one.

    Returns:
        The bundle's directory, `<store>/<name>/<version>`.

    Raises:
        BundleError: the version exists already, or what is to be written isn't a valid bundle.
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
            try:
                os.rename(path, target)
                sync_directory(target.parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise BundleError(f"{_id(target)} exists already; choose another version.") from error
    except BaseException:
        for directory in created:
            with contextlib.suppress(OSError):  # somebody else has put something there
                directory.rmdir()
        raise
    return target


def write_next_bundle(store: Path, new: NewBundle) -> Path:
    """Write a bundle as `next_version`, whatever its own version is and whoever else does so at the same time.

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


def _manifest(new: NewBundle) -> Manifest:
    """The manifest, without the files."""
    try:
        return Manifest(
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
    save_file({name: np.asarray(value, order="C") for name, value in new.weights.items()}, path / WEIGHTS)
    labels = _labels.dump_python(list(new.labels), mode="json", exclude_none=True)
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


def dump_manifest(manifest: Manifest) -> bytes:
    """The content of `manifest.json`."""
    return (manifest.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


def _describe(file: Path) -> FileSpec:
    return FileSpec(size=file.stat().st_size, sha256=sha256_of(file))


def _check_file(path: Path, name: str, spec: FileSpec) -> None:
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{_id(path)}: {name} is missing or no ordinary file.")
    size = file.stat().st_size
    if size != spec.size:
        raise BundleError(f"{_id(path)}: {name} has {size} bytes, but the manifest says {spec.size}.")
    try:
        digest = sha256_of(file)
    except OSError as error:
        raise BundleError(f"{_id(path)}: {name} can't be read.") from error
    if digest != spec.sha256:
        raise BundleError(f"{_id(path)}: {name} has SHA-256 {digest}, but the manifest says {spec.sha256}.")


def _read_text(path: Path, name: str) -> str:
    file = path / name
    try:
        if not file.is_file():  # reading a pipe would never end
            raise FileNotFoundError(name)
        if file.stat().st_size > _MAX_TEXT_BYTES:
            raise BundleError(f"{_id(path)}: {name} has more than {_MAX_TEXT_BYTES} bytes.")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is missing or can't be read"
        raise BundleError(f"{_id(path)}: {name} {reason}.") from error


def _id(path: Path) -> str:
    """The bundle's name in messages: without the server's directories."""
    return f"{path.parent.name}/{path.name}"
