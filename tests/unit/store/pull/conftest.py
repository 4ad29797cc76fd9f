"""The narrow network of the parity tests as something published: archives, catalogues, and the server that has them.

Most tests pull it with only the first block of each stage, which takes half as long.
"""

from __future__ import annotations

import io
import json
import re
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condconv_serve.settings import Settings
from condconv_serve.store.pull.download import Limits
from tests.parity.seeded import official_tensors, read_tiny
from tests.unit.store.pull.file_server import FileServer

NAME = "efficientnet-condconv-b0-4e-tiny"
SHALLOW = {"depth_coefficient": 0.25}
FIRST_BLOCKS = (0, 1, 3, 5, 8, 11, 15)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither settings nor proxies from outside."""
    defaults = Limits.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "connect_timeout", 60.0)  # a busy machine may take seconds
    for name in [f"CONDCONV_{name.upper()}" for name in Settings.model_fields] + [*PROXIES, *map(str.upper, PROXIES)]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONDCONV_CONNECT_TIMEOUT", "60")


@pytest.fixture
def nobody() -> Iterator[str]:
    """A host and port where nobody listens, nor can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def server() -> Any:
    with FileServer() as running:
        yield running


@pytest.fixture(scope="session")
def checkpoint_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a TF1 checkpoint, by the names that a published archive has them under."""
    return as_checkpoint(shallow_tensors(), tmp_path_factory.mktemp("checkpoint"))


def as_checkpoint(tensors: dict[str, np.ndarray], directory: Path) -> dict[str, bytes]:
    """Write a TF1 checkpoint; returns its files by their names in an archive."""
    import tensorflow as tf

    prefix = directory / "model.ckpt"
    tensors = tensors | {"global_step": np.asarray(437_600, np.int64)}
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


def shallow_tensors() -> dict[str, np.ndarray]:
    """The tensors of the narrow network with one block in each stage."""
    blocks = {f"/blocks_{old}/": f"/blocks_{new}/" for new, old in enumerate(FIRST_BLOCKS)}
    found = {}
    for name, tensor in official_tensors(*read_tiny()).items():
        block = re.search(r"/blocks_\d+/", name)
        if block is None:
            found[name] = tensor
        elif block[0] in blocks:
            found[name.replace(block[0], blocks[block[0]])] = tensor
    return found


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
    """The narrow and shallow network in a catalogue; None removes a field."""
    spec, _ = read_tiny()
    entry = {
        "name": NAME,
        "title": "A narrow CondConv network",
        "architecture": {"name": spec["architecture"], **spec["override"], **SHALLOW},
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
