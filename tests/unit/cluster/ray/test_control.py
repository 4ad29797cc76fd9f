"""What admins and ablations ask of replicas, and one request id in an answer."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from condconv_serve.cluster.ray.control import ReplicaAblator, ReplicaVersions
from condconv_serve.cluster.ray.messages import ReplicaLost
from condconv_serve.cluster.ray.request_ids import OneRequestId
from condconv_serve.errors import AblationBusy, NotReady, TooLittleMemory
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias
from tests.contract.fakes import served_model

SERVING = VersionStatus("1", "serving")


class Replicas:
    def __init__(self, *answers):
        self.asked = []
        self._answers = list(answers)

    async def one(self, method, *arguments):
        self.asked.append((method, *arguments))
        answer = self._answers[0]
        if isinstance(answer, ReplicaLost):
            raise answer
        return answer

    async def each(self, method, *arguments):
        self.asked.append((method, *arguments))
        return self._answers


async def test_a_version_is_loaded_on_all_replicas():
    replicas = Replicas(SERVING, SERVING)
    assert await ReplicaVersions(replicas).load("fake", "1") == SERVING
    assert replicas.asked == [("load", "fake", "1")]
    with pytest.raises(TooLittleMemory) as caught:
        await ReplicaVersions(Replicas(SERVING, TooLittleMemory("one lacks it", needs=7, retry_after=30.0))).load(
            "fake", "1"
        )
    assert caught.value.needs == 7
    with pytest.raises(NotReady):
        await ReplicaVersions(Replicas()).unload("fake", "1")


async def test_an_alias_is_changed_by_one_replica_and_then_seen_by_all():
    alias = Alias(versions={"2": 1})
    replicas = Replicas(alias)
    assert await ReplicaVersions(replicas).set_alias("fake", "stable", {"2": 1}, mirror={"3": 10}) == alias
    assert replicas.asked == [("change_alias", "fake", "stable", "set", {"2": 1}, {"3": 10}), ("look_again",)]
    with pytest.raises(NotReady, match="Ask again"):
        await ReplicaVersions(Replicas(ReplicaLost("killed"))).roll_back("fake", "stable")


async def test_the_state_of_a_version_is_that_which_says_most():
    versions = ReplicaVersions(
        Replicas(
            {"fake": [SERVING, VersionStatus("2", "loading")]},
            {"fake": [VersionStatus("1", "retiring"), VersionStatus("2", "serving")]},
        )
    )
    assert versions.status() == {}
    versions.start()
    assert await asyncio.to_thread(versions.status) == {"fake": [SERVING, VersionStatus("2", "loading")]}


async def test_replicas_that_tell_no_state_in_time_are_told_of(monkeypatch):
    class Silent(Replicas):
        async def each(self, method, *arguments):
            await asyncio.sleep(10)

    monkeypatch.setattr("condconv_serve.cluster.ray.control.STATUS_SECONDS", 0.05)
    versions = ReplicaVersions(Silent())
    versions.start()
    with pytest.raises(NotReady, match="in time"):
        await asyncio.to_thread(versions.status)


async def test_an_ablation_is_refused_by_the_replica():
    row = np.zeros((32, 32, 3), np.uint8)
    ablator = ReplicaAblator(Replicas(AblationBusy("4 wait", retry_after=2.0)))
    async with ablator.admit():
        with pytest.raises(AblationBusy):
            await ablator.ablate(served_model(), row, None)


@pytest.mark.parametrize(("given", "expected"), [("same", []), ("bad id", ["own"])])
async def test_our_request_id_is_left_to_the_proxy_if_it_is_the_same(given, expected):
    async def answer(request):
        own = request.headers["x-request-id"] if given == "same" else "own"
        return PlainTextResponse("", headers={"X-Request-Id": own})

    transport = httpx.ASGITransport(OneRequestId(Starlette(routes=[Route("/", answer)])))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/", headers={"X-Request-ID": given})
    assert response.headers.get_list("x-request-id") == expected
