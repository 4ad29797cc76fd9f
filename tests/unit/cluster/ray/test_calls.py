"""Calls to model replicas over a handle that does what Ray Serve's does."""

from __future__ import annotations

import asyncio

import pytest

from condconv_serve.cluster.ray.calls import Calls
from condconv_serve.cluster.ray.control import ReplicaVersions
from condconv_serve.cluster.ray.messages import Caller, ReplicaLost, RowsReply, RowsRequest
from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import NotReady, StoreUnavailable
from condconv_serve.inference.batching import Priority
from condconv_serve.telemetry.logs import request_logged_as

REQUEST = RowsRequest(
    token="t", model="fake", version="2", rows=(), priority=Priority.NORMAL, timeout=None, deadline_by="service"
)


class Died(Exception):
    """One of Ray's."""


class Response:
    def __init__(self, outcome):
        self.cancelled = False
        self.assigned = True
        self._outcome = outcome

    def __await__(self):
        return self._result().__await__()

    async def _result(self):
        if self._outcome is None:
            await asyncio.Event().wait()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def cancel(self):
        self.cancelled = True

    async def results_async(self, *, return_exceptions):
        assert return_exceptions
        return await self


class Handle:
    def __init__(self, outcome):
        self.asked = []
        self.response = Response(outcome)

    def options(self, **options):
        self.asked.append(options)
        return self

    def remote(self, *arguments):
        self.asked.append(arguments)
        return self.response

    def broadcast(self, *arguments):
        return self.remote(*arguments)


def calls_of(outcome):
    handle = Handle(outcome)
    return Calls(handle, lost=(Died,), unassigned=lambda call: call.cancelled and not call.assigned), handle


def taken_back():
    raise AssertionError("a replica has the rows")


async def test_rows_go_to_a_replica_that_has_the_version():
    calls, handle = calls_of(RowsReply(replica="a"))
    assert (await calls(REQUEST, not_taken=taken_back)).replica == "a"
    assert handle.asked == [{"method_name": "infer", "multiplexed_model_id": "fake/2"}, (REQUEST,)]


@pytest.mark.parametrize("error", [Died("killed"), asyncio.CancelledError()])
async def test_a_call_that_ray_ends_is_lost(error):
    calls, handle = calls_of(error)
    with pytest.raises(ReplicaLost):
        await calls(REQUEST, not_taken=taken_back)
    assert not handle.response.cancelled


async def test_who_gives_up_takes_the_call_back():
    calls, handle = calls_of(None)
    asking = asyncio.create_task(calls.one("status"))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert handle.response.cancelled

    calls, handle = calls_of(None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await calls(REQUEST, not_taken=taken_back)
    assert handle.response.cancelled


async def test_rows_are_told_to_be_back_if_ray_had_no_replica_for_them():
    calls, handle = calls_of(None)
    handle.response.assigned, back = False, []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await calls(REQUEST, not_taken=lambda: back.append(handle.response.cancelled))
    assert back == [True]


async def test_replicas_hear_which_request_asks():
    calls, handle = calls_of([])
    facts = RequestFacts(request_id="mine", trace=TraceContext.following(None))
    with request_logged_as(facts):
        await calls.one("status")
        await calls.each("load", "fake", "1")
    mine = Caller(request_id="mine", trace=facts.trace)
    assert handle.asked == [{"method_name": "ask"}, (mine, "status"), ("ask", mine, "load", "fake", "1")]


async def test_a_defect_is_raised():
    calls, _ = calls_of(KeyError("a defect"))
    with pytest.raises(KeyError):
        await calls.one("status")
    calls, _ = calls_of([{}, KeyError("a defect")])
    with pytest.raises(KeyError):
        await calls.each("status")


async def test_replicas_that_die_are_left_out():
    refused = StoreUnavailable("gone")
    calls, _ = calls_of([{}, Died("killed"), asyncio.CancelledError(), refused])
    assert await calls.each("status") == [{}, refused]


async def test_without_replicas_nothing_is_known_and_nothing_can_be_changed():
    calls, _ = calls_of(Died("no replica is running"))
    assert await calls.each("status") == []
    with pytest.raises(NotReady) as caught:
        await ReplicaVersions(calls).load("fake", "1")
    assert caught.value.retry_after > 0
    with pytest.raises(NotReady):
        await ReplicaVersions(calls).roll_back("fake", "stable")
