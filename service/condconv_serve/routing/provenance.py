"""What made a picture or a table: the model, its checksum, when, and with which command."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from condconv_serve import __version__
from condconv_serve.domain import Manifest

MAX_COMMAND = 2000
"""Characters; a shell may have put in thousands of files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where figures come from.

    Attributes:
        model: its name.
        version: its version.
        weights_sha256: the checksum of its weights, as in the manifest; empty if it has none.
        made: when, ISO 8601 in UTC.
        software: name and version of this program.
        command: what was asked: a command line, or a route.
    """

    model: str
    version: str
    weights_sha256: str
    made: str
    software: str
    command: str

    @classmethod
    def of(cls, manifest: Manifest, command: str) -> Provenance:
        """Say what makes something from a model right now."""
        weights = manifest.files.get("weights.safetensors")
        return cls.now(manifest.name, manifest.version, weights.sha256 if weights else "", command)

    @classmethod
    def now(cls, model: str, version: str, weights_sha256: str, command: str) -> Provenance:
        """Say what makes something right now; the arguments are the attributes."""
        if len(command) > MAX_COMMAND:
            command = f"{command[: MAX_COMMAND - 1]}…"
        return cls(
            model=model,
            version=version,
            weights_sha256=weights_sha256,
            made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            software=f"condconv-serve {__version__}",
            command=command,
        )

    def to_json(self) -> dict[str, str]:
        """All of it by name."""
        return asdict(self)

    def line(self) -> str:
        """In short, for people."""
        return (
            f"{self.model}/{self.version}, weights {self.weights_sha256[:12]}, {self.made[:10]}, {self.software}: "
            f"{self.command}"
        )
