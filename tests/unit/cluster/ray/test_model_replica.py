"""A model replica without Ray: it loads, tells what it serves, computes rows, and ends."""

from __future__ import annotations

import asyncio
import pickle
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from condconv_serve.cluster.ray import model as module
from condconv_serve.cluster.ray.held import LINGER_SECONDS, HeldModels
from condconv_serve.cluster.ray.messages import Caller, RowsRequest
from condconv_serve.cluster.ray.model import ModelReplica
from condconv_serve.cluster.ray.scaling import ROWS, ByRows
from condconv_serve.cluster.ray.shared import SharedState
from condconv_serve.domain import LOGITS, MadeRow
from condconv_serve.domain.caching import CacheUse
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import CorruptImage, NotReady
from condconv_serve.inference.batching import Priority
from condconv_serve.settings import Settings
from tests.contract.fakes import ShadeEngine, load_shades
from tests.contract.until import until
from tests.e2e.tiny_models import write_fake
from tests.unit.cluster.ray.reports import report

pytestmark = pytest.mark.tensorflow  # a replica looks for the engines that are installed


@pytest.fixture
def store(tmp_path):
    write_fake(tmp_path, "fake", 1)
    return tmp_path


@pytest.fixture
async def replica(store, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    advertised = []

    async def advertise(versions):
        advertised.append(list(versions))

    shared = SharedState()
    found = ModelReplica(
        Settings(model_store=store, streams=1, store_poll_interval=0.1),
        name="r1",
        told=shared,
        advertise=advertise,
        load=load_shades,
    )
    await found.start()
    found.shared, found.advertised = shared, advertised
    yield found
    await found.stop()


def request(replica, *rows, model="fake", version="1", timeout=60.0):
    return RowsRequest(
        token="t",
        model=model,
        version=version,
        rows=rows,
        priority=Priority.NORMAL,
        timeout=timeout,
        deadline_by="caller",
        caller=Caller(request_id="mine", trace=TraceContext.following(None)),
    )


def size_of(replica):
    (versions,) = replica.service.registry.models().values()
    return next(iter(versions.values())).info.preprocessing.image_size


async def test_it_tells_what_it_serves_and_computes_it(replica):
    _, state = await replica.shared.watch(-1, wait=0)
    told = pickle.loads(pickle.dumps(state)).served.get("fake", "1")
    assert replica.advertised == [["fake/1"]]
    assert told.info.labels == replica.service.registry.get("fake").info.labels
    with pytest.raises(TypeError, match="computed in another process"):
        told.engine(np.zeros((1, 32, 32, 3), np.uint8))

    size = size_of(replica)
    row = np.full((size, size, 3), 9, np.uint8)
    reply = await replica.infer(request(replica, MadeRow(row, seconds=0.1), CorruptImage("damaged")))
    good, bad = pickle.loads(pickle.dumps(reply)).outcomes
    assert LOGITS in good.tensors
    assert good.timings.decode == 0.1
    assert isinstance(bad, CorruptImage)
    read = replica.service.metrics.registry.get_sample_value
    assert read("condconv_rows_total", {"model": "fake", "outcome": "answered", "deadline": ""}) == 1
    assert read("condconv_rows_total", {"model": "fake", "outcome": "corrupt_image", "deadline": ""}) == 1
    assert replica.rows() == 0
    replica.check_health()


async def test_what_it_lacks_is_refused_after_a_moment(replica, monkeypatch):
    monkeypatch.setattr(module, "WAIT_FOR_VERSION", 0.05)
    reply = await replica.infer(request(replica, version="7"))
    assert reply.refusal.slug == "version_not_found"
    assert reply.replica == "r1"


async def test_a_version_that_another_replica_has_first_is_waited_for(replica, store, monkeypatch):
    monkeypatch.setattr(module, "WAIT_FOR_VERSION", 60.0)
    size = size_of(replica)
    asked = asyncio.create_task(
        replica.infer(request(replica, MadeRow(np.zeros((size, size, 3), np.uint8)), version="2"))
    )
    write_fake(store, "fake", 2)
    await replica.service.follower.sync()
    assert (await asked).refusal is None
    await until(lambda: replica.advertised[-1] == ["fake/2"])


async def test_a_version_that_was_replaced_is_answered_for_a_while(replica, store, monkeypatch):
    registry, now = replica.service.registry, [0.0]
    held = HeldModels(registry, clock=lambda: now[0])
    held.look()
    old = registry.get("fake", "1")
    write_fake(store, "fake", 2)
    await replica.service.follower.sync()
    await until(lambda: "2" in registry.models()["fake"] and "1" not in registry.models()["fake"])

    size = size_of(replica)
    row = MadeRow(np.zeros((size, size, 3), np.uint8))
    assert (await replica.infer(request(replica, row, version="1"))).refusal is None
    held.look()
    assert held.find("fake", "1") is old
    assert held.find("fake", "2") is registry.get("fake", "2")
    now[0] = LINGER_SECONDS
    held.look()
    assert held.find("fake", "1") is None
    held.release()
    assert held.find("fake", "2") is None


async def test_an_equal_row_is_answered_by_the_cache_of_its_replica(store):
    async def advertise(versions):
        pass

    settings = Settings(model_store=store, streams=1, cache_bytes=2**20)
    keeping = ModelReplica(settings, name="r3", told=SharedState(), advertise=advertise, load=load_shades)
    await keeping.start()
    size = size_of(keeping)
    asked = replace(
        request(keeping, MadeRow(np.zeros((size, size, 3), np.uint8))), digests=(b"same",), cache=CacheUse(scope="me")
    )
    results = [(await keeping.infer(passed)).outcomes[0].timings.cache for passed in (asked, asked)]
    await keeping.stop()
    assert results == ["miss", "hit"]


async def test_a_deadline_that_has_passed_is_the_rows_error(replica):
    size = size_of(replica)
    reply = await replica.infer(request(replica, MadeRow(np.zeros((size, size, 3), np.uint8)), timeout=0.0))
    (row,) = reply.outcomes
    assert row.slug == "deadline_exceeded"


def fails(*_):
    raise ValueError("it is broken")


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_broken_engine_isnt_asked_and_isnt_healthy_until_it_works(store, monkeypatch, hangs):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    advertised, shared, hanging = [], SharedState(), threading.Event()

    async def advertise(versions):
        advertised.append(list(versions))

    settings = Settings(model_store=store, streams=1, stall_timeout=1.0 if hangs else 60.0)
    replica = ModelReplica(settings, name="r5", told=shared, advertise=advertise, load=load_shades)
    await replica.start()
    size = size_of(replica)
    asked = request(replica, MadeRow(np.zeros((size, size, 3), np.uint8)), timeout=None)
    with monkeypatch.context() as broken:
        broken.setattr("condconv_serve.inference.batching.health.COOL_DOWN_SECONDS", 600.0)
        broken.setattr(ShadeEngine, "compute", (lambda *_: hanging.wait(60)) if hangs else fails)
        for _ in range(3):
            (row,) = (await replica.infer(asked)).outcomes
            assert row.slug == ("engine_stalled" if hangs else "inference_failed")
        refused = (await replica.infer(asked)).refusal  # so that another replica is asked
        assert refused.slug == "not_ready"
        assert 0 < refused.retry_after <= 600
        await until(lambda: advertised[-1] == [])
        _, state = await shared.watch(-1, wait=0)
        assert state.replicas == 0
        assert 0 < state.trouble.retry_after <= 600

    monkeypatch.setattr("condconv_serve.inference.batching.health.COOL_DOWN_SECONDS", 0.0)
    await until(lambda: advertised[-1] == ["fake/1"])  # it may be tried again
    with pytest.raises(NotReady, match="3 times in a row"):
        replica.check_health()
    replica.service._streams._stall_timeout = 60.0
    assert (await replica.infer(asked)).outcomes[0].timings
    replica.check_health()
    hanging.set()
    await replica.stop()


async def test_what_was_refused_counts_soon_and_at_the_latest_when_it_ends(store, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)

    async def advertise(versions):
        pass

    def failures():
        return shared._figures.tally("fake", "1").failure.count

    shared = SharedState()
    settings = Settings(model_store=store, streams=1, max_queue_rows=1)
    replica = ModelReplica(settings, name="r6", told=shared, advertise=advertise, load=load_shades)
    await replica.start()
    await shared.publish(report("another", "1"))
    size = size_of(replica)
    asked = request(replica, *[MadeRow(np.zeros((size, size, 3), np.uint8))] * 2)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    assert (await replica.infer(asked)).refusal.slug == "queue_full"
    await until(failures)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 600)
    await asyncio.sleep(0.1)
    await replica.infer(asked)
    await replica.stop()
    assert failures() == 2


async def test_one_that_ends_is_asked_no_more(store):
    async def advertise(versions):
        pass

    shared = SharedState()
    ending = ModelReplica(
        Settings(model_store=store, streams=1), name="r2", told=shared, advertise=advertise, load=load_shades
    )
    await ending.start()
    seen, state = await shared.watch(-1, wait=0)
    assert state.replicas == 1
    await ending.stop()
    _, state = await shared.watch(seen, wait=0)
    assert state.replicas == 0


async def test_one_starts_though_nobody_can_be_told_and_tells_it_later(store, monkeypatch):
    class Gone(SharedState):
        there = False

        async def publish(self, report):
            if not self.there:
                raise NotReady("gone")
            await super().publish(report)

    async def advertise(versions):
        pass

    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    shared = Gone()
    replica = ModelReplica(
        Settings(model_store=store, streams=1), name="r4", told=shared, advertise=advertise, load=load_shades
    )
    await replica.start()
    assert await shared.watch(-1, wait=0) is None
    shared.there = True
    _, state = await shared.watch(-1, wait=60)
    assert state.replicas == 1
    await replica.stop()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [({}, 3), ({"a": 0.0}, 1), ({"a": 16.0}, 2), ({"a": 16.1}, 3), ({"a": 8.0, "b": 8.0}, 2), ({"a": 0, "b": 5}, 1)],
)
def test_replicas_follow_the_rows(rows, expected):
    context = SimpleNamespace(aggregated_metrics={ROWS: rows}, target_num_replicas=3)
    assert ByRows(target_rows=8)(context) == (expected, {})
