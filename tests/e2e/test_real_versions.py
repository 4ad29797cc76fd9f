"""What only real networks show of versions that come and go: that they fit, take over, and give their memory back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import pictures
from tests.e2e.live import MODEL, Load, rewrite, served, state
from tests.e2e.server import BUNDLE, Server, assert_problem, wait_for
from tests.e2e.server import MODEL as REAL
from tests.e2e.tiny_models import write_tiny

pytestmark = pytest.mark.one_process("an engine process loads networks as the only process does, and that takes long")
SWAPS = int(os.environ.get("SWAPS", "2"))
"""With 50 or more, memory must not grow."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    write_tiny(store, MODEL, 1)
    shutil.copytree(BUNDLE, store / REAL / "1")
    return store


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Server]:
    with Server(real=True, model_store=store, default_model=MODEL, max_batch_size=2) as running:
        yield running


def resident_bytes(server: Server) -> int:
    for line in Path(f"/proc/{server.process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_memory_of_an_unloaded_version_comes_back(server: Server) -> None:
    """The project's own model is loaded and unloaded beside another one, and again.

    What allocators keep back for a while varies by as much as a whole model, so single readings say little. Weights
    that stay would add up.
    """
    client = server.client
    weights = (BUNDLE / "weights.safetensors").stat().st_size

    def unload() -> int:
        assert client.post(f"/models/{REAL}/versions/1/unload").is_success
        wait_for(lambda: state(client, "1", REAL)["state"] == "available")
        return resident_bytes(server)

    def load() -> int:
        assert client.post(f"/models/{REAL}/versions/1/load").is_success
        return resident_bytes(server)

    unload()  # the first loads have filled caches that stay
    loaded, unloaded = [], []
    for _ in range(6):
        loaded.append(load())
        unloaded.append(unload())
    print(
        f"\nresident MB, loaded: {[size // 10**6 for size in loaded]}, unloaded: {[size // 10**6 for size in unloaded]}"
    )
    assert max(loaded) - min(unloaded) > 0.8 * weights, "in memory experts are half floats, as in the file"
    assert min(unloaded[3:]) < min(unloaded[:3]) + 1.5 * weights, "three times the weights, if they stayed"


def test_swaps_under_load(server: Server, store: Path) -> None:
    """New versions take over one after the other: no request fails, and each is answered by one version alone."""
    (first,) = served(server.client)
    memory = []
    photo = pictures.jpeg(pictures.photo("coffee", (60, 40)))
    with Load(server.url, photo, clients=2, pause=0.1).flowing() as load:  # loading takes seconds
        for version in range(int(first) + 1, int(first) + 1 + SWAPS):
            write_tiny(store, MODEL, version)
            wait_for(lambda version=version: served(server.client) == [str(version)])  # type: ignore[misc]
            wait_for(lambda version=version: load.answers[str(version)] > 0)  # type: ignore[misc]
            shutil.rmtree(store / MODEL / str(version - 1))
            memory.append(resident_bytes(server))
    if SWAPS >= 50:
        assert memory[-1] < memory[len(memory) // 4] * 1.1, memory


def test_a_version_that_fits_no_network_leaves_the_old_one_serving(server: Server, store: Path, tmp_path: Path) -> None:
    client = server.client
    (good,) = served(client)
    for number, (architecture, says) in enumerate(
        (
            ("efficientnet-b0", "the weights don't fit the architecture"),
            ("resnet", "Unknown architecture 'resnet'"),
        ),
        start=int(good) + 1,
    ):
        version = str(number)
        path = write_tiny(tmp_path, MODEL, number)
        rewrite(path, architecture={"name": architecture})
        shutil.move(path, store / MODEL / version)
        wait_for(lambda version=version: state(client, version).get("state") == "failed")  # type: ignore[misc]
        assert says in state(client, version)["reason"]
        assert_problem(client.post(f"/models/{MODEL}/versions/{version}/load"), 422, "invalid_bundle", says)
        assert served(client) == [good]
        shutil.move(store / MODEL / version, tmp_path / f"removed {version}")
    assert server.is_ready()
