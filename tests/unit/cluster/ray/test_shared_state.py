"""What replicas share: what they serve together, and how often keys were used."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from condconv_serve.cluster.engine_stub import EngineStub
from condconv_serve.cluster.ray.shared import SILENT_SECONDS, SharedState, merged
from condconv_serve.cluster.ray.shared_client import SharedClient
from condconv_serve.errors import ModelUnavailable, VersionNotFound
from condconv_serve.fronts.keys import new_key
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.runtime.official_jpeg import crop_jpeg
from condconv_serve.serving.unserved import Trouble, Unserved, version_loading
from tests.contract.until import until
from tests.unit.cluster.ray.reports import report

TROUBLE = Trouble("The engine has failed 3 times in a row: it hangs.", 7.0)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([("1",), ("1",)], {"1"}),
        ([("1", "2"), ("1",)], {"1"}),  # one is ahead
        ([("2",), ("1", "2")], {"2"}),  # one is behind
        ([("2",), ("1",)], {"1", "2"}),  # nothing in common: any replica that has it answers
        ([("1",), ()], {"1"}),  # one is still loading
    ],
)
def test_versions_count_that_all_replicas_serve(reports, expected):
    state = merged([report(f"r{number}", *versions) for number, versions in enumerate(reports)])
    assert set(state.served.models["fake"]) == expected
    assert state.replicas == sum(bool(versions) for versions in reports)
    assert state.trouble is None


def test_an_alias_moves_when_all_replicas_have_its_version():
    ahead, behind = report("a", "1", "2", alias="2"), report("b", "1", alias="1")
    assert merged([ahead, behind]).served.get("fake", "stable").version == "1"
    both = report("b", "1", "2", alias="1")
    assert merged([ahead, both]).served.get("fake", "stable").version == "2"


def test_a_replica_in_trouble_is_not_asked_and_all_in_trouble_are_told():
    well, ill = report("a", "1"), report("b", "1", trouble=TROUBLE, problems=("a file is odd",))
    state = merged([ill, well])
    assert (state.replicas, state.trouble, state.problems) == (1, None, ("a file is odd",))
    assert merged([ill]).trouble == TROUBLE
    assert merged([]).trouble.reason == "No model replica is ready."
    assert merged([]).served.default.name is None


def test_a_version_that_some_replicas_are_still_loading_is_no_unknown_one():
    ahead, behind = report("a", "1", "2"), report("b", "1")
    loading = {"fake": Unserved(versions={"2": version_loading("fake", "2")})}
    knowing = replace(behind, served=replace(behind.served, unserved=loading))
    for reports in ([ahead, behind], [ahead, knowing], [knowing, ahead]):
        served = merged(reports).served
        assert served.get("fake").version == "1"
        with pytest.raises(ModelUnavailable, match="still loading"):
            served.get("fake", "2")
    with pytest.raises(VersionNotFound):  # it goes
        merged([report("a", "2"), report("b", "1", "2")]).served.get("fake", "1")


def test_models_are_known_while_no_replica_can_compute():
    state = merged([report("a", "1", trouble=TROUBLE)])
    assert state.served.get("fake", "1").version == "1"
    assert (state.replicas, state.trouble) == (0, TROUBLE)


async def test_a_state_that_has_come_back_says_nothing_before_a_replica_does():
    now = [0.0]
    before, back = SharedState(), SharedState(clock=lambda: now[0])
    await before.publish(report("a", "1"))
    seen, _ = await before.watch(-1, wait=0)
    assert await back.watch(-1, wait=0.01) is None
    assert not await back.heard("a", 1)
    waiting = asyncio.create_task(back.watch(seen, wait=60))
    await asyncio.sleep(0)
    await back.publish(report("a", "1"))
    again, state = await waiting
    assert again != seen
    assert state.replicas == 1

    silent = SharedState(clock=lambda: now[0])
    now[0] = SILENT_SECONDS + 1
    assert (await silent.watch(-1, wait=0))[1].trouble is not None


async def test_changes_are_told_at_once_and_silence_is_noticed():
    now = [0.0]
    state = SharedState(clock=lambda: now[0])
    now[0] = SILENT_SECONDS
    seen, nothing = await state.watch(-1, wait=0.01)
    assert not nothing.served.models
    assert await state.watch(seen, wait=0.01) is None
    waiting = asyncio.create_task(state.watch(seen, wait=10))
    await asyncio.sleep(0)
    await state.publish(report("a", "1"))
    seen, found = await waiting
    assert set(found.served.models["fake"]) == {"1"}

    assert await state.heard("a", 1)
    assert not await state.heard("a", 2)
    assert not await state.heard("b", 1)
    now[0] += SILENT_SECONDS + 1
    assert (await state.watch(seen, wait=0.01))[1].replicas == 0
    assert not await state.heard("a", 1)

    await state.publish(report("a", "1", number=2))
    seen, _ = await state.watch(-1, wait=0.01)
    await state.leave("a")
    await state.leave("nobody")
    assert (await state.watch(seen, wait=0.01))[1].replicas == 0


async def test_a_key_is_counted_wherever_it_is_used():
    state, (_, key) = SharedState(), new_key("ci", requests_per_minute=2)
    assert [await state.use_key(pickle.loads(pickle.dumps(key))) for _ in range(2)] == [None, None]
    refused = pickle.loads(pickle.dumps(await state.use_key(key)))
    assert refused.slug == "rate_limited"
    assert 0 < refused.retry_after <= 60


async def test_requests_to_remember_dont_pile_up_while_that_hangs(monkeypatch):
    monkeypatch.setattr("condconv_serve.cluster.ray.shared_client.MAX_REMEMBERING", 3)
    go_on, kept = asyncio.Event(), []

    async def call(method, request, owner):
        await go_on.wait()
        kept.append(request.request_id)

    client = SharedClient(call)
    for number in range(5):
        client.remember(
            RecentRequest(request_id=str(number), model="fake", version="1", at=1.0, results=()), owner=None
        )
    go_on.set()
    await until(lambda: len(kept) == 3)
    client.remember(RecentRequest(request_id="later", model="fake", version="1", at=2.0, results=()), owner=None)
    await until(lambda: kept == ["0", "1", "2", "later"])


def test_who_only_hears_of_a_model_needs_no_tensorflow(tmp_path):
    """One that decodes JPEGs as TensorFlow does brings the function for that along."""
    told = report("a", "1")
    model = replace(told.served.get("fake", "1"), engine=EngineStub(), crop_jpeg=crop_jpeg)
    told = replace(told, served=replace(told.served, models={"fake": {"1": model}}))
    (tmp_path / "told").write_bytes(pickle.dumps(told))
    program = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program, tmp_path / "told"], check=True)
