"""Every family over HTTP: all reference networks in one store, served by one server, against the reference outputs.

The Open Inference Protocol takes rows of pixels, so the networks get the very pixels that the references got: made
ones as floats, which only the transform `official` leaves as they are, and photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from condconv_serve.store.importers.bundling import ImportRequest, import_bundle
from tests.e2e.server import PATIENCE, Server, wait_for
from tests.golden import needs_families
from tests.parity.families import FULL_SIZE, TINY, FamilyGolden, pixels_of
from tests.parity.golden_models import write_checkpoint
from tests.parity.seeded import official_tensors, read_tiny, waves

pytestmark = pytest.mark.full_parity

LOGITS, ROUTING = 1e-3, 1e-3
"""Relative to the largest logit, and absolute."""
LOADED_WITHIN = 900.0
"""Seconds; eight to ten networks are loaded, and all cores may be busy with others."""


@dataclass(frozen=True)
class Served:
    """A network as it is served: rows for it, `[4, S, S, 3]` in 0..255, and what it must answer."""

    name: str
    rows: NDArray[Any]
    expected: Mapping[str, NDArray[Any]]

    def check(self, answered: Mapping[str, NDArray[Any]], which: slice) -> None:
        expected = self.expected
        assert ("routing" in answered) == ("routing" in expected), self.name
        logits = expected["logits"][which]
        assert answered["logits"].shape == logits.shape, self.name
        assert np.abs(answered["logits"] - logits).max() < LOGITS * np.abs(expected["logits"]).max(), self.name
        if "routing" in expected:
            np.testing.assert_allclose(answered["routing"], expected["routing"][which], atol=ROUTING, err_msg=self.name)


def import_golden(golden: FamilyGolden, directory: Path, store: Path, **changes: Any) -> str:
    """Import one of them, named as its file; returns the name."""
    source = golden.write(directory)
    name = str(golden).replace("_", "-")
    overrides = {**golden.overrides, "image_size": golden.spec["image_size"]}
    request = ImportRequest(source=source, architecture=golden.architecture, name=name, overrides=overrides, **changes)
    import_bundle(request, store=store)
    source.unlink()
    return name


def write_small(directory: Path, store: Path) -> list[Served]:
    """Narrow networks of every family."""
    served = [
        Served(import_golden(golden, directory, store, transform="official"), waves(), golden.stored) for golden in TINY
    ]
    spec, stored = read_tiny()
    request = ImportRequest(
        source=write_checkpoint(official_tensors(spec, stored), directory / "tiny" / "model.ckpt"),
        architecture=spec["architecture"],
        name="efficientnet",
        overrides={**spec["override"], "image_size": spec["image_size"]},
        mean=tuple(spec["mean"]),
        std=tuple(spec["std"]),
    )
    import_bundle(request, store=store)
    return [*served, Served("efficientnet", waves(), stored)]


def write_published_sizes(directory: Path, store: Path) -> list[Served]:
    return [
        Served(
            import_golden(golden, directory, store),
            pixels_of(golden.spec["image_size"]).astype(np.uint8),
            golden.stored,
        )
        for golden in FULL_SIZE
    ]


@pytest.fixture(
    scope="module",
    params=[write_small, pytest.param(write_published_sizes, marks=needs_families)],
    ids=lambda w: w.__name__,
)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, list[Served]]]:
    directory = tmp_path_factory.mktemp("families")
    store = directory / "store"
    networks = request.param(directory, store)
    with Server(
        real=True, until_ready=False, model_store=store, precision="float32", request_timeout=PATIENCE
    ) as server:
        wait_for(lambda: server.process_ended() or server.is_ready(), LOADED_WITHIN)
        yield server.client, networks


def ask(client: httpx.Client, network: Served, which: slice) -> dict[str, NDArray[Any]]:
    """Logits and, if there is, routing of some rows in one request."""
    rows = network.rows[which]
    names = ["logits", *(["routing"] if "routing" in network.expected else [])]
    datatype = "UINT8" if rows.dtype == np.uint8 else "FP32"
    given = {"name": "pixels", "shape": list(rows.shape), "datatype": datatype, "data": rows.ravel().tolist()}
    response = client.post(
        f"/v2/models/{network.name}/infer", json={"inputs": [given], "outputs": [{"name": name} for name in names]}
    )
    assert response.status_code == 200, (network.name, response.text)
    return {output["name"]: np.reshape(output["data"], output["shape"]) for output in response.json()["outputs"]}


def test_a_batch(served: tuple[httpx.Client, list[Served]]) -> None:
    client, networks = served
    for network in networks:
        network.check(ask(client, network, slice(0, 4)), slice(0, 4))


def test_rows_one_by_one(served: tuple[httpx.Client, list[Served]]) -> None:
    client, networks = served
    for network in networks:
        for number in range(len(network.rows)):
            one = slice(number, number + 1)
            network.check(ask(client, network, one), one)
