"""Reading a bundle: it is checked whole before it is used."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from condconv_serve.documents import parse_document
from condconv_serve.domain import Label, RoutingProfile
from condconv_serve.domain.manifest import OWN_NETWORK, SCHEMA_VERSION, FileSpec, Manifest
from condconv_serve.errors import BundleError
from condconv_serve.files import FileTooLarge, read_limited, sha256_of
from condconv_serve.store.profile import parse_profile
from condconv_serve.store.tensors import load_tensors
from condconv_serve.validation import describe_errors

MANIFEST, WEIGHTS, LABELS, MODEL_CARD = "manifest.json", "weights.safetensors", "labels.json", "MODEL_CARD.md"
NETWORK = "network.json"
_VARIANCE = "/moving_variance"
_MAX_TEXT_BYTES = 64 * 2**20
LABEL_LIST = TypeAdapter(list[Label])
"""What `labels.json` holds."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest is valid and whose files have the sizes and checksums that it names."""

    path: Path
    manifest: Manifest

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, in hexadecimal."""
        return self.manifest.files[WEIGHTS].sha256

    @property
    def model_card(self) -> str:
        """The model card, Markdown."""
        return (self.path / MODEL_CARD).read_text(encoding="utf-8", errors="replace")


def open_bundle(path: Path) -> Bundle:
    """Check a bundle's manifest and files.

    Raises:
        BundleError: says which file or field is wrong and how. It is `incomplete` if files are missing or shorter than
            they should be, as long as somebody copies them.
    """
    bundle = Bundle(path, read_manifest(path))
    manifest = bundle.manifest
    if missing := {WEIGHTS, LABELS, MODEL_CARD} - set(manifest.files):
        raise BundleError(f"{bundle_name(path)}: the manifest doesn't list {', '.join(sorted(missing))}.")
    if (NETWORK in manifest.files) != (manifest.architecture.name == OWN_NETWORK):
        raise BundleError(
            f"{bundle_name(path)}: {NETWORK} belongs to the architecture {OWN_NETWORK}, and to no other one."
        )
    if (path.parent.name, path.name) != (manifest.name, manifest.version):
        raise BundleError(
            f"{bundle_name(path)}: the manifest says {manifest.name}/{manifest.version}, "
            "which is another place in the store."
        )
    for name, spec in manifest.files.items():
        _check_size(path, name, spec)
    for name, spec in manifest.files.items():
        _check_content(path, name, spec)
    return bundle


def read_manifest(path: Path) -> Manifest:
    """Read and validate `manifest.json` alone.

    Raises:
        BundleError: it is missing, too new, or names the fields that are wrong.
    """
    raw = _read_text(path, MANIFEST)
    try:
        return parse_document(
            raw, Manifest, name=f"{bundle_name(path)}: {MANIFEST}", error=BundleError, newest=SCHEMA_VERSION
        )
    except BundleError as error:
        raise BundleError(str(error), incomplete=not _is_json(raw)) from error


def read_weights(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """Read all weights as float32, by variable path.

    Raises:
        BundleError: the file is no safetensors file, or holds a number that is not finite, or a negative variance.
    """
    try:
        tensors = load_tensors(bundle.path / WEIGHTS)
    except OSError as error:
        raise BundleError(f"{bundle_name(bundle.path)}: {WEIGHTS} is missing or can't be read.") from error
    except ValueError as error:
        raise BundleError(f"{bundle_name(bundle.path)}: {WEIGHTS} can't be read ({error}).") from error
    weights = {}
    for name, value in tensors.items():
        if not is_floating(value):
            raise BundleError(
                f"{bundle_name(bundle.path)}: {name} is {value.dtype}, but weights are floating-point numbers."
            )
        with np.errstate(over="ignore"):  # infinity is refused below
            weights[name] = value.astype(np.float32)
        if not np.isfinite(weights[name]).all():
            raise BundleError(f"{bundle_name(bundle.path)}: {name} holds numbers that are not finite.")
        if has_negative_variance(name, weights[name]):
            raise BundleError(
                f"{bundle_name(bundle.path)}: {name} holds variances below 0, down to {weights[name].min():g}."
            )
    return weights


def count_weights(bundle: Bundle) -> int:
    """The number of weights, without reading them.

    Raises:
        BundleError: the file is no safetensors file.
    """
    try:
        with safe_open(bundle.path / WEIGHTS, "numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise BundleError(f"{bundle_name(bundle.path)}: {WEIGHTS} can't be read ({error}).") from error


def has_negative_variance(name: str, value: NDArray[Any]) -> bool:
    """Whether a batch norm's variances can't be right. 0 can be: many networks have channels that never vary."""
    return name.endswith(_VARIANCE) and bool((value < 0).any())


def is_floating(value: NDArray[Any]) -> bool:
    """Whether an array holds floating-point numbers; NumPy itself doesn't count bfloat16 as such."""
    return value.dtype.name.startswith(("float", "bfloat"))


def read_labels(bundle: Bundle) -> tuple[Label, ...]:
    """Read the labels, one per class in the order of the logits.

    Raises:
        BundleError: the file is no list of labels, or they aren't numbered 0, 1, 2, ...
    """
    try:
        labels = LABEL_LIST.validate_json(_read_text(bundle.path, LABELS))
    except ValidationError as error:
        raise BundleError(f"{bundle_name(bundle.path)}: {LABELS} is not valid: {describe_errors(error)}.") from error
    if [label.index for label in labels] != list(range(bundle.manifest.num_classes)):
        raise BundleError(
            f"{bundle_name(bundle.path)}: {LABELS} must name the classes 0 to {bundle.manifest.num_classes - 1} in "
            "order."
        )
    return tuple(labels)


def read_network(bundle: Bundle) -> str:
    """Read the description of a network that the bundle brings along, JSON.

    Raises:
        BundleError: the bundle has none.
    """
    return _read_text(bundle.path, NETWORK)


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
        raise BundleError(f"{bundle_name(bundle.path)}: {name} is missing or can't be read.") from error
    except BundleError as error:
        raise BundleError(f"{bundle_name(bundle.path)}: {name}: {error}.") from error


def bundle_name(path: Path) -> str:
    """The bundle's name in messages: without the server's directories."""
    return f"{path.parent.name}/{path.name}"


def _check_size(path: Path, name: str, spec: FileSpec) -> None:
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise BundleError(
            f"{bundle_name(path)}: {name} is missing or no ordinary file.", incomplete=not os.path.lexists(file)
        )
    size = file.stat().st_size
    if size != spec.size:
        raise BundleError(
            f"{bundle_name(path)}: {name} has {size} bytes, but the manifest says {spec.size}.",
            incomplete=size < spec.size,
        )


def _check_content(path: Path, name: str, spec: FileSpec) -> None:
    try:
        digest = sha256_of(path / name)
    except OSError as error:
        raise BundleError(f"{bundle_name(path)}: {name} can't be read.") from error
    if digest != spec.sha256:
        raise BundleError(f"{bundle_name(path)}: {name} has SHA-256 {digest}, but the manifest says {spec.sha256}.")


def _read_text(path: Path, name: str) -> str:
    try:
        return read_limited(path / name, _MAX_TEXT_BYTES).decode()
    except FileTooLarge as error:
        raise BundleError(f"{bundle_name(path)}: {name} has more than {_MAX_TEXT_BYTES} bytes.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is missing or can't be read"
        cut = isinstance(error, FileNotFoundError) or getattr(error, "reason", "") == "unexpected end of data"
        raise BundleError(f"{bundle_name(path)}: {name} {reason}.", incomplete=cut) from error


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
