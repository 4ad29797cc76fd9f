"""All fronts of an ingress replica, with model replicas in the same process instead of a Ray cluster."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
from collections import Counter
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from PIL import Image

from condconv_serve.cluster.ray import model as module
from condconv_serve.cluster.ray.fronts import Ingress
from condconv_serve.cluster.ray.messages import ReplicaLost
from condconv_serve.cluster.ray.model import ModelReplica
from condconv_serve.cluster.ray.shared import SharedState
from condconv_serve.cluster.ray.shared_client import SharedClient
from condconv_serve.errors import NotReady
from condconv_serve.fronts.keys import new_key
from condconv_serve.settings import Settings
from tests.contract.fakes import load_shades
from tests.contract.until import until
from tests.e2e.tiny_models import write_fake

pytestmark = pytest.mark.tensorflow  # a replica looks for the engines that are installed

SECRET, KEY = new_key("ci", scopes=("admin",), requests_per_minute=1000)
LIMITED, LIMITED_KEY = new_key("limited", requests_per_minute=1)


def picture(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def passed(value):
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(value))


class Cluster:
    """Two replicas that take turns. `deaths` of the next answers are lost on the way."""

    def __init__(self, settings):
        self.state = SharedState()
        self.reachable = True
        self.deaths = 0
        self.answered = Counter()
        self.replicas = [
            ModelReplica(settings, name=name, told=self.client(), advertise=self._advertise, load=load_shades)
            for name in ("a", "b")
        ]
        self._turn = 0

    def client(self):
        return SharedClient(self._call)

    async def _call(self, method, /, *arguments, **options):
        if not self.reachable:
            raise NotReady("What the replicas share can't be reached now.", retry_after=1.0)
        return passed(await getattr(self.state, method)(*passed(arguments), **options))

    async def _advertise(self, versions):
        pass

    async def __call__(self, request):
        self._turn += 1
        reply = passed(await self.replicas[self._turn % 2].infer(passed(request)))
        if self.deaths:
            self.deaths -= 1
            raise ReplicaLost("killed")
        self.answered[reply.replica] += len(reply.outcomes)
        return reply

    async def one(self, method, *arguments):
        return passed(await getattr(self.replicas[0], method)(*passed(arguments)))

    async def each(self, method, *arguments):
        return [passed(await getattr(replica, method)(*passed(arguments))) for replica in self.replicas]


@pytest.fixture
async def cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    store = tmp_path / "store"
    store.mkdir()
    write_fake(store, "fake", 1)
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [KEY.model_dump(), LIMITED_KEY.model_dump()]}))
    settings = Settings(model_store=store, streams=1, decode_threads=1, api_keys_file=keys)
    found = Cluster(settings)
    found.store = store
    ingress = Ingress(settings, send=found, ask=found, shared=found.client())
    app = ingress.app()
    async with (
        running(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://house", headers={"X-API-Key": SECRET}
        ) as client,
    ):
        found.http = client
        yield found
        for replica in found.replicas:
            await replica.stop()


@asynccontextmanager
async def running(app):
    """Run an application's lifespan."""
    to, back = asyncio.Queue(), asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, to.get, back.put))
    await to.put({"type": "lifespan.startup"})
    assert (await back.get())["type"] == "lifespan.startup.complete"
    yield
    await to.put({"type": "lifespan.shutdown"})
    assert (await back.get())["type"] == "lifespan.shutdown.complete"
    await life


async def start(cluster):
    for replica in cluster.replicas:
        await replica.start()

    async def ready():
        return (await cluster.http.get("/readyz")).status_code == 200

    await until_true(ready)


async def until_true(found):
    async with asyncio.timeout(10):
        while True:
            if await found():
                return
            await asyncio.sleep(0.01)


async def test_it_isnt_ready_before_a_replica_is(cluster):
    waiting = await cluster.http.post("/predict", content=picture(9))
    assert waiting.status_code == 503
    assert int(waiting.headers["Retry-After"]) > 0
    await start(cluster)
    answer = await cluster.http.post("/predict", content=picture(9))
    assert answer.status_code == 200, answer.text


async def test_figures_are_those_of_all_replicas_and_count_an_answer_once(cluster):
    await start(cluster)
    cluster.deaths = 1
    for shade in range(0, 200, 20):
        answer = await cluster.http.post("/routing", content=picture(shade), headers={"X-Request-Id": f"r{shade}"})
        assert answer.status_code == 200, answer.text
    assert cluster.answered.total() == 10
    assert len(cluster.answered) == 2
    assert 'condconv_replica_retries_total{reason="replica_lost"} 1.0' in (await cluster.http.get("/metrics")).text
    live = (await cluster.http.get("/routing", params={"window": "all"})).json()
    assert live["images"] == 10

    async def kept():
        return (await cluster.http.get("/routing/r20")).status_code == 200

    await until_true(kept)
    (statistics,) = (await cluster.http.get("/v2/models/fake/stats")).json()["model_stats"]
    assert int(statistics["inference_stats"]["success"]["count"]) == 11  # both replicas computed the lost one
    state = await cluster.http.get("/routing/state")
    assert state.status_code == 200
    assert np.load(io.BytesIO(state.content))["all/count"] == 10


async def test_statistics_of_the_state_are_forgotten_on_request(cluster):
    await start(cluster)
    await cluster.http.post("/predict", content=picture(9))
    assert (await cluster.http.post("/routing/reset")).json()["reset"] == [{"name": "fake", "version": "1"}]
    assert (await cluster.http.get("/routing")).json()["images"] == 0


async def test_limits_of_keys_hold_and_answers_go_on_without_what_is_shared(cluster):
    await start(cluster)
    limited = [await cluster.http.post("/predict", content=picture(9), headers={"X-API-Key": LIMITED}) for _ in "ab"]
    assert [answer.status_code for answer in limited] == [200, 429]
    cluster.reachable = False
    refused = await cluster.http.post("/predict", content=picture(9))
    assert refused.status_code == 503  # this key has a limit, too
    assert refused.headers["Retry-After"] == "1"


async def test_an_alias_is_written_by_one_replica_and_followed_by_all(cluster):
    await start(cluster)
    write_fake(cluster.store, "fake", 2)
    changed = await cluster.http.put("/models/fake/aliases/stable", json={"versions": {"2": 1}})
    assert changed.status_code == 200, changed.text

    async def pointed():
        answer = await cluster.http.post("/predict", params={"version": "stable"}, content=picture(9))
        return answer.status_code == 200 and answer.json()["model"]["version"] == "2"

    await until_true(pointed)
    await until(lambda: all("2" in replica.service.registry.models()["fake"] for replica in cluster.replicas))
    shown = await cluster.http.get("/models/fake")
    assert '"state":"serving"' in shown.text
    missing = await cluster.http.post("/models/fake/versions/9/load")
    assert missing.status_code == 404


async def test_an_image_that_cant_be_read_is_refused_here_and_counted_there(cluster):
    await start(cluster)
    answer = await cluster.http.post("/predict", content=b"no image")
    assert answer.json()["slug"] == "unsupported_image"
    counts = [
        replica.service.metrics.registry.get_sample_value(
            "condconv_rows_total", {"model": "fake", "outcome": "unsupported_image", "deadline": ""}
        )
        for replica in cluster.replicas
    ]
    assert sum(count or 0 for count in counts) == 1
