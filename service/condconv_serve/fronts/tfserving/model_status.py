"""How versions are doing, in TensorFlow Serving's states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from condconv_serve.errors import ModelNotFound, VersionNotFound
from condconv_serve.fronts.tfserving.model_spec import SHOWN, ModelSpec
from condconv_serve.serving.versions import State, VersionStatus
from condconv_serve.store.aliases import Alias

STATES: Mapping[State, tuple[str, str]] = {
    "available": ("START", "OK"),
    "loading": ("LOADING", "OK"),
    "serving": ("AVAILABLE", "OK"),
    "stale": ("AVAILABLE", "OK"),
    "retiring": ("UNLOADING", "OK"),
    "incomplete": ("START", "UNAVAILABLE"),
    "failed": ("END", "FAILED_PRECONDITION"),
}
"""TensorFlow Serving's state and error code for each of ours."""


def wanted_statuses(
    statuses: Mapping[str, Sequence[VersionStatus]], aliases: Mapping[str, Alias], spec: ModelSpec
) -> list[VersionStatus]:
    """The states that a request asks for, the newest version first.

    Args:
        statuses: of all versions of all models.
        aliases: of the model.
        spec: the model, and perhaps a version or an alias; without these, all versions are meant.

    Raises:
        ModelNotFound, VersionNotFound: there is no such model or version.
    """
    known = statuses.get(spec.name, ())
    if not known:
        raise ModelNotFound(f"Could not find any versions of model {spec.name[:SHOWN]}")
    alias = aliases.get(spec.version or "")
    versions = set(alias.versions) if alias else {spec.version}
    found = [status for status in reversed(known) if spec.version is None or status.version in versions]
    if not found:
        raise VersionNotFound(f"Could not find version {spec.version} of model {spec.name}")
    return found


def status_entry(status: VersionStatus) -> dict[str, Any]:
    """One version's state, as the JSON of `ModelVersionStatus`."""
    state, code = STATES[status.state]
    message = "" if code == "OK" else status.reason or ""
    return {
        "version": status.version,
        "state": state,
        "status": {"error_code": code, "error_message": message},
    }
