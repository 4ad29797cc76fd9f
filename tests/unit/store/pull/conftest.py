"""The narrow network of the parity tests as something published: archives, catalogues, and the server that has them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condconv_serve.settings import Settings
from tests.parity.seeded import official_tensors, read_tiny
from tests.unit.store.pull.file_server import FileServer

NAME = "efficientnet-condconv-b0-4e-tiny"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither settings nor proxies from outside."""
    for name in [f"CONDCONV_{name.upper()}" for name in Settings.model_fields] + [*PROXIES, *map(str.upper, PROXIES)]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Any:
    with FileServer() as running:
        yield running


@pytest.fixture(scope="session")
def checkpoint_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a TF1 checkpoint, by the names that a published archive has them under."""
    import tensorflow as tf

    spec, stored = read_tiny()
    prefix = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    tensors = official_tensors(spec, stored) | {"global_step": np.asarray(437_600, np.int64)}
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )
    files = {f"{NAME}/{file.name}": file.read_bytes() for file in sorted(prefix.parent.iterdir())}
    return {f"{NAME}/checkpoint": b'model_checkpoint_path: "model.ckpt"\n', **files}


@pytest.fixture(scope="session")
def archive(checkpoint_files: dict[str, bytes]) -> bytes:
    """The `.tar.gz` of it."""
    return packed(checkpoint_files)


def packed(files: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    """An archive of files, and of further members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def tiny_entry(url: str, **changes: Any) -> dict[str, Any]:
    """The narrow network in a catalogue; None removes a field."""
    spec, _ = read_tiny()
    entry = {
        "name": NAME,
        "title": "A narrow CondConv network",
        "architecture": {"name": spec["architecture"], **spec["override"]},
        "source": {"kind": "url", "url": url},
        "licence": "Apache-2.0",
        "transform": "official",
        "accuracy": [{"dataset": "none", "images": 9, "transform": "official", "top1": 0.125, "note": "made up"}],
        **changes,
    }
    return {name: value for name, value in entry.items() if value is not None}


def write_catalogue(file: Path, *entries: dict[str, Any], **changes: Any) -> Path:
    file.write_text(json.dumps({"schema_version": 1, "checkpoints": entries, **changes}))
    return file
