"""All fronts of an ingress replica, with model replicas in the same process instead of a Ray cluster."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import logging
import pickle
import sys
import threading
from collections import Counter, defaultdict
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from PIL import Image

from condconv_serve.cluster.ray import model as module
from condconv_serve.cluster.ray.fronts import Ingress
from condconv_serve.cluster.ray.messages import Caller, ReplicaLost
from condconv_serve.cluster.ray.model import ModelReplica
from condconv_serve.cluster.ray.shared import SharedState
from condconv_serve.cluster.ray.shared_client import SharedClient
from condconv_serve.errors import NotReady
from condconv_serve.fronts.keys import new_key
from condconv_serve.settings import Settings
from condconv_serve.telemetry.logs import configure_logging, current_request
from tests.contract.collector import Collector, attributes
from tests.contract.fakes import ShadeEngine, load_shades
from tests.contract.until import until
from tests.e2e.tiny_models import write_fake

pytestmark = pytest.mark.tensorflow  # a replica looks for the engines that are installed

SECRET, KEY = new_key("ci", scopes=("admin",), requests_per_minute=1000)
FREE, FREE_KEY = new_key("free")
LIMITED, LIMITED_KEY = new_key("limited", requests_per_minute=1)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"X-Request-Id": "mine", "traceparent": f"00-{TRACE}-{SPAN}-01"}


def picture(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def passed(value):
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(value))


class Cluster:
    """Two replicas that take turns. `deaths` of the next answers are lost on the way.

    While `assigns` is false requests wait for a replica.
    """

    def __init__(self, settings):
        self.state = SharedState()
        self.reachable = True
        self.deaths = 0
        self.assigns = True
        self.asked = []
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

    async def __call__(self, request, *, not_taken):
        if not self.assigns:
            try:
                await asyncio.Event().wait()
            finally:
                not_taken()
        self._turn += 1
        self.asked.append(request)
        reply = passed(await self.replicas[self._turn % 2].infer(passed(request)))
        if self.deaths:
            self.deaths -= 1
            raise ReplicaLost("killed")
        self.answered[reply.replica] += len(reply.outcomes)
        return reply

    async def one(self, method, *arguments):
        return passed(await self.replicas[0].ask(passed(Caller.current()), method, *passed(arguments)))

    async def each(self, method, *arguments):
        caller = passed(Caller.current())
        return [passed(await replica.ask(caller, method, *passed(arguments))) for replica in self.replicas]


@pytest.fixture
async def cluster(tmp_path, monkeypatch, request):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    store = tmp_path / "store"
    store.mkdir()
    write_fake(store, "fake", 1)
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [key.model_dump() for key in (KEY, FREE_KEY, LIMITED_KEY)]}))
    more = getattr(request, "param", {})
    settings = Settings(model_store=store, streams=1, decode_threads=1, api_keys_file=keys, **more)
    found = Cluster(settings)
    found.store = store
    ingress = Ingress(settings, send=found, ask=found, shared=found.client())
    app, found.ingress = ingress.app(), ingress
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
    await until(lambda: cluster.ingress.models.replicas == len(cluster.replicas), seconds=60)


async def until_true(found):
    async with asyncio.timeout(60):
        while True:
            if value := await found():
                return value
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
    for _ in range(3):
        answer = await cluster.http.post("/predict", content=picture(9), headers={"X-API-Key": FREE})
        assert answer.status_code == 200
    told = await cluster.http.get("/models/fake", headers={"X-API-Key": FREE})
    assert (told.status_code, told.json()["shadows"]) == (200, [])


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


async def test_an_image_that_no_replica_took_in_time_is_counted_here(cluster):
    await start(cluster)

    def late():
        counts = {"model": "fake", "outcome": "deadline_exceeded", "deadline": "caller"}
        registries = [replica.service.metrics.registry for replica in cluster.replicas]
        here, *there = (
            found.get_sample_value("condconv_rows_total", counts)
            for found in (cluster.ingress.metrics.registry, *registries)
        )
        return here, sum(there)

    assert late() == (0, 0)  # so that the first one is an increase
    cluster.assigns = False
    answer = await cluster.http.post("/predict", params={"timeout_ms": 50}, content=picture(9))
    assert (answer.status_code, answer.json()["slug"]) == (504, "deadline_exceeded")
    assert late() == (1, 0)


async def test_a_replica_whose_engine_is_broken_is_not_noticed_beside_another(cluster, monkeypatch):
    monkeypatch.setattr("condconv_serve.inference.batching.health.COOL_DOWN_SECONDS", 600.0)
    await start(cluster)
    for _ in range(3):
        cluster.replicas[0].service._batcher.health.failed("it hangs")
    answers = [await cluster.http.post("/predict", content=picture(9)) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert cluster.answered == {"a": 0, "b": 6}
    assert 'condconv_replica_retries_total{reason="not_ready"}' in (await cluster.http.get("/metrics")).text

    for _ in range(3):
        cluster.replicas[1].service._batcher.health.failed("it hangs")
    await until(lambda: cluster.ingress.models.engine_problem() is not None)
    refused = await cluster.http.post("/predict", content=picture(9))
    assert (refused.status_code, refused.json()["slug"]) == (503, "not_ready")
    assert 0 < int(refused.headers["Retry-After"]) <= 600
    assert (await cluster.http.get("/readyz")).status_code == 503
    assert (await cluster.http.get("/models/fake")).status_code == 200


@pytest.mark.parametrize("cluster", [{"max_queue_rows": 1}], indirect=True)
async def test_overload_is_refused_with_when_to_try_again(cluster, monkeypatch):
    await start(cluster)
    go_on, compute = threading.Event(), ShadeEngine.compute

    def late(*arguments):
        go_on.wait(60)
        return compute(*arguments)

    monkeypatch.setattr(ShadeEngine, "compute", late)
    image, waiting = picture(9), []

    def ask():
        waiting.append(asyncio.create_task(cluster.http.post("/predict", content=image)))

    for number in (1, 2):  # one for each replica
        ask()
        await until(lambda number=number: sum(replica.rows() for replica in cluster.replicas) == number)
    full = await cluster.http.post("/predict", content=image)  # the ingress has no room for more rows
    assert (full.status_code, full.json()["slug"], full.headers["Retry-After"]) == (429, "queue_full", "1")

    # Rows of another ingress fill the replicas' queues.
    others = [asyncio.create_task(replica.infer(cluster.asked[0])) for replica in cluster.replicas]
    await until(lambda: all(replica.rows() == 2 for replica in cluster.replicas))
    leaving = waiting.pop()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    full = await cluster.http.post("/predict", content=image)
    assert (full.status_code, full.json()["slug"]) == (429, "queue_full")
    assert int(full.headers["Retry-After"]) > 0
    assert 'condconv_replica_retries_total{reason="queue_full"} 1.0' in (await cluster.http.get("/metrics")).text
    go_on.set()
    assert (await waiting[0]).status_code == 200
    assert [reply.refusal for reply in await asyncio.gather(*others)] == [None, None]


async def test_ids_and_traces_of_requests_reach_the_replica(cluster, monkeypatch):
    await start(cluster)
    seen = []
    for replica in cluster.replicas:
        plane = replica.service.images.plane
        original = plane.infer_each

        async def noting(*arguments, original=original, **options):
            seen.append(current_request())
            return await original(*arguments, **options)

        monkeypatch.setattr(plane, "infer_each", noting)
    cluster.deaths = 1
    answer = await cluster.http.post("/predict", content=picture(9), headers=HEADERS)
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"] == "mine"
    assert [facts.request_id for facts in seen] == ["mine", "mine"]  # both tries
    assert {(facts.trace.trace_id, facts.trace.sampled) for facts in seen} == {(TRACE, True)}


@pytest.fixture
def logged(monkeypatch):
    """What the log writes as JSON."""
    root, service, written = logging.getLogger(), logging.getLogger("condconv_serve"), io.StringIO()
    levels = root.level, service.level
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("info", "json")
    yield written
    root.setLevel(levels[0])
    service.setLevel(levels[1])


def fails(*_):
    raise ValueError("it is broken")


async def test_lines_of_the_replica_have_the_ids_of_the_request(cluster, monkeypatch, logged):
    await start(cluster)
    for replica in cluster.replicas:
        plane = replica.service.images.plane
        monkeypatch.setattr(plane, "_counting", dataclasses.replace(plane._counting, observe=fails))
    answer = await cluster.http.post("/predict", content=picture(9), headers=HEADERS)
    assert answer.status_code == 200
    (line,) = (line for line in map(json.loads, logged.getvalue().splitlines()) if "statistics" in line["message"])
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE)


async def test_lines_of_an_ablation_have_the_ids_of_the_request(cluster, monkeypatch, logged):
    await start(cluster)
    monkeypatch.setattr(cluster.replicas[0].service.ablator, "_ready", fails)
    answer = await cluster.http.post("/routing/ablation", content=picture(9), headers=HEADERS)
    assert answer.json()["slug"] == "inference_failed", answer.text
    (line,) = (line for line in map(json.loads, logged.getvalue().splitlines()) if "ablation of" in line["message"])
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE)


@pytest.fixture
def collector(monkeypatch):
    """What all replicas export to."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with Collector() as found:
        monkeypatch.setenv("CONDCONV_OTLP_ENDPOINT", found.url)
        yield found


async def test_spans_of_the_replicas_are_in_the_trace_of_the_request(collector, cluster):
    await start(cluster)
    unsampled = await cluster.http.post(
        "/predict", content=picture(9), headers={"traceparent": f"00-{TRACE}-{SPAN}-00"}
    )
    cluster.deaths = 1
    answer = await cluster.http.post("/predict", content=picture(9), headers=HEADERS)
    assert (unsampled.status_code, answer.status_code) == (200, 200)
    await until(lambda: len(collector.all_spans()) >= 8, seconds=60)
    by_name = defaultdict(list)
    for span in collector.all_spans():
        assert span.trace_id.hex() == TRACE
        by_name[span.name].append(span)
    assert {name: len(spans) for name, spans in by_name.items()} == {
        "POST /predict": 1,
        "decode": 1,
        "replica": 2,  # both tries
        "queue": 2,
        "inference": 2,
    }
    (whole,), (decode,), tries = by_name["POST /predict"], by_name["decode"], by_name["replica"]
    assert whole.parent_span_id.hex() == SPAN
    assert {span.parent_span_id for span in (decode, *tries)} == {whole.span_id}
    for stage in ("queue", "inference"):
        assert {span.parent_span_id for span in by_name[stage]} == {span.span_id for span in tries}
    assert whole.start_time_unix_nano <= decode.end_time_unix_nano <= min(span.start_time_unix_nano for span in tries)
    assert max(span.end_time_unix_nano for span in tries) <= whole.end_time_unix_nano
    told = [attributes(span) for span in tries]
    assert {one["condconv.replica"] for one in told} == {"a", "b"}
    for one in told:
        assert (one["condconv.request_id"], one["condconv.model"], one["condconv.rows"]) == ("mine", "fake/1", 1)
        assert one["condconv.outcome"] == "answered"


async def test_the_span_of_a_replica_says_that_it_refused(collector, cluster, monkeypatch):
    monkeypatch.setattr("condconv_serve.inference.batching.health.COOL_DOWN_SECONDS", 600.0)
    await start(cluster)
    for _ in range(3):
        cluster.replicas[0].service._batcher.health.failed("it hangs")
    for _ in range(2):  # the replicas take turns
        answer = await cluster.http.post("/predict", content=picture(9), headers=HEADERS)
        assert answer.status_code == 200
    await until(lambda: len([span for span in collector.all_spans() if span.name == "POST /predict"]) == 2, seconds=60)

    def outcomes():
        return {
            (told["condconv.replica"], told["condconv.outcome"], span.status.code)
            for span in collector.all_spans()
            if span.name == "replica" and (told := attributes(span))
        }

    await until(lambda: outcomes() == {("a", "not_ready", 2), ("b", "answered", 0)}, seconds=60)


@pytest.mark.parametrize("cluster", [{"served_versions": 2}], indirect=True)
async def test_copies_of_requests_are_compared_on_all_replicas(cluster, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    write_fake(cluster.store, "fake", 2)
    await start(cluster)
    pointed = await cluster.http.put("/models/fake/aliases/stable", json={"versions": {"1": 1}, "mirror": {"2": 100}})
    assert pointed.status_code == 200, pointed.text
    await until(lambda: cluster.ingress.models.aliases("fake"), seconds=60)
    for shade in range(0, 60, 10):
        answer = await cluster.http.post("/predict", params={"version": "stable"}, content=picture(shade))
        assert answer.json()["model"]["version"] == "1", answer.text

    async def compared():
        (found,) = (await cluster.http.get("/models/fake")).json()["shadows"] or [{"images": 0}]
        return found if found["images"] == 6 else None

    found = await until_true(compared)
    assert len(cluster.answered) == 2
    assert (found["version"], found["shadow"], found["agreement"]) == ("1", "2", 1)
    live = await cluster.http.get("/routing", params={"model": "fake", "version": "2", "window": "all"})
    assert live.json()["images"] == 6
    await cluster.replicas[0].stop()
    assert await compared()
