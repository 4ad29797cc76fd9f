"""A Ray cluster of two nodes, with the service in front of it, and traffic."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster

from condconv_serve.cluster.ray.app import Arguments, build
from condconv_serve.fronts.keys import new_key
from tests.free_ports import free_ports

ROOT = Path(__file__).parents[2]
NAME = "efficientnet-lite0-condconv-4e"
PHOTOS = {path.stem: path.read_bytes() for path in sorted((ROOT / "service/condconv_serve/samples").glob("*.jpg"))}
_MEMORY = 150 * 2**20
_REPLICA = "ServeReplica:condconv:"


class House:
    """The cluster. Its head has the ingress and one engine, its second node another engine."""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="ray-house-")
        self.store = Path(self._directory.name) / "store"
        self.store.mkdir()
        shutil.copytree(ROOT / "model_store" / NAME, self.store / NAME)
        shutil.copy(ROOT / "model_store/default.json", self.store)
        node = {"object_store_memory": _MEMORY, "include_dashboard": False}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 4, "resources": {"head": 100, "engine": 1}, **node}
        )
        self.second_node = self.add_node()
        ray.init(address=self._cluster.address, namespace="serve", log_to_driver=bool(os.environ.get("RAY_LOGS")))
        port, self.grpc_port = free_ports(2)
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
        self.admin_key, admin = new_key("admin", scopes=("admin",))
        self.limited_key, limited = new_key("limited", requests_per_minute=3)
        self._keys = (admin, limited)
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60, headers={"X-API-Key": self.admin_key}
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()
        self._directory.cleanup()

    def write_keys(self) -> Path:
        """A file with the API keys."""
        file = Path(self._directory.name) / "keys.json"
        file.write_text(json.dumps({"keys": [key.model_dump() for key in self._keys]}))
        return file

    def reset_statistics(self) -> None:
        """Set the routing statistics back to zero."""
        self.client.post("/routing/reset").raise_for_status()

    def exported(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by its labels, in the exporters of all nodes, of series with a label."""
        found = {}
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            text = httpx.get(
                f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10
            ).text
            for line in text.splitlines():
                if line.startswith(f"{name}{{") and label in line:
                    labels, _, value = line.removeprefix(name).rpartition(" ")
                    found[labels] = float(value)
        return found

    def add_node(self) -> Any:
        """Add a node with an engine."""
        return self._cluster.add_node(num_cpus=4, object_store_memory=_MEMORY, resources={"engine": 1})

    def kill_node(self, node: Any) -> None:
        """End all processes of a node, as if its plug were pulled."""
        self._cluster.remove_node(node, allow_graceful=False)

    def deploy(self, **arguments: Any) -> None:
        """Start the application, or change it, which replaces all replicas."""
        settings = {"model_store": self.store, "store_poll_interval": 1, **arguments.pop("settings", {})}
        application = build(
            Arguments(
                settings=settings,
                num_cpus=1,
                model_options={"resources": {"engine": 1}},
                ingress_options={"resources": {"head": 1}},
                **arguments,
            )
        )
        serve.run(application, name="condconv", route_prefix="/")
        self.until(lambda: self.client.get("/readyz").status_code == 200)

    def processes(self, deployment: str = "model") -> dict[int, str]:
        """The node of each living replica, by the id of its process."""
        from ray._private.state import actors

        return {
            actor["Pid"]: actor["Address"]["NodeID"]
            for actor in actors().values()
            if actor["State"] == "ALIVE" and actor["ActorClassName"].startswith(_REPLICA + deployment)
        }

    def running(self) -> int:
        """How many model replicas run."""
        states = serve.status().applications["condconv"].deployments["model"].replica_states
        return int(states.get("RUNNING", 0))

    def kill(self, process: int) -> None:
        """Kill a replica's process."""
        assert process in self.processes()
        os.kill(process, signal.SIGKILL)

    def predict(self, photo: str = "chelsea", **kwargs: Any) -> httpx.Response:
        """Ask for one photo's classes."""
        return self.client.post("/predict", content=PHOTOS[photo], **kwargs)

    def add_version(self, version: int) -> None:
        """Put a copy of the model into the store as another version."""
        copy = self.store / f"new-{version}"
        shutil.copytree(self.store / NAME / "1", copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "version": str(version)}))
        copy.rename(self.store / NAME / str(version))

    @contextmanager
    def traffic(self, threads: int = 4, *, pause: float = 0.0) -> Iterator[Traffic]:
        """Ask all the time, until the block ends; each thread pauses for so many seconds after each answer."""
        traffic = Traffic(self, threads, pause)
        try:
            yield traffic
        finally:
            traffic.stop()

    @staticmethod
    def until(found: Callable[[], Any], *, seconds: float = 60.0, every: float = 0.25) -> Any:
        """Wait until `found()` is true, and return it."""
        end = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < end, "it didn't happen in time"
            time.sleep(every)
        return value


class Traffic:
    """Threads that ask one after the other.

    Attributes:
        answers: how often each photo got each class, by version.
        failures: what else came back.
        last_version: that of the last answer.
    """

    def __init__(self, house: House, threads: int, pause: float) -> None:
        self.answers: Counter[tuple[str, str, int]] = Counter()
        self.failures: list[str] = []
        self.last_version = ""
        self._house = house
        self._pause = pause
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def total(self) -> int:
        """How many answers there were."""
        with self._lock:
            return self.answers.total()

    def until_more(self, answers: int, *, seconds: float = 60.0) -> None:
        """Wait for so many more answers."""
        before = self.total()
        House.until(lambda: self.total() >= before + answers, seconds=seconds)

    def stop(self) -> None:
        """Let each thread finish its question."""
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        names = list(PHOTOS)
        known = self._house.client
        with httpx.Client(base_url=known.base_url, timeout=60, headers=known.headers) as client:
            while not self._end.wait(self._pause):
                number += 1
                photo = names[number % len(names)]
                try:
                    response = client.post("/predict", content=PHOTOS[photo])
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if response.status_code != 200:
                    self.failures.append(f"{response.status_code} {response.text[:300]}")
                    continue
                answer = response.json()
                best = answer["predictions"][0]["classes"][0]["index"]
                self.last_version = answer["model"]["version"]
                with self._lock:
                    self.answers[photo, answer["model"]["version"], best] += 1
