"""The thread that computes ablations, beside the ordinary traffic."""

import asyncio
import math
import threading
import time
from functools import partial

import numpy as np
import pytest

from condconv_serve.domain import RoutingOverrides
from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import AblationBusy, DeadlineExceeded, InferenceFailed, VersionNotFound
from condconv_serve.inference.ablation_queue import AblationQueue
from condconv_serve.telemetry.logs import current_request, request_logged_as
from tests.contract.fakes import ShadeAblation, model_info, served_model

ONE = RoutingOverrides(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2), bool))
ROW = np.zeros((4, 4, 3), np.uint8)


A, B = (served_model(model_info(name)) for name in "ab")


# A thread that comes after all others may wait long on a machine at work.
queue = partial(AblationQueue, prepare_thread=lambda: None, release_memory=lambda: None)


async def ablated(lane, *arguments, **options):
    async with lane.admit():
        return await lane.ablate(*arguments, **options)


async def until(event):
    assert await asyncio.to_thread(event.wait, 60)


async def test_answers():
    fake = ShadeAblation()
    with queue(lambda *place: fake) as lane:
        for _ in range(3):
            answer = await ablated(lane, A, ROW, ONE)
            assert answer.output["logits"].shape == (2, 6)
            assert answer.queue >= 0
            assert answer.inference > 0
    assert fake.calls == 3
    assert fake.closed.is_set()


async def test_too_many_waiting_are_refused_at_once():
    fake = ShadeAblation()
    fake.go.clear()
    with queue(lambda *place: fake, max_waiting=2) as lane:
        waiting = [asyncio.create_task(ablated(lane, A, ROW, ONE)) for _ in range(2)]
        await until(fake.started)
        with pytest.raises(AblationBusy, match="2 ablations are waiting") as caught:
            await ablated(lane, A, ROW, ONE)
        assert caught.value.retry_after > 0
        with pytest.raises(AblationBusy):
            await lane.check()
        fake.go.set()
        assert len(await asyncio.gather(*waiting)) == 2
        await lane.check()
    assert fake.calls == 2


async def test_a_deadline_ends_what_runs_and_what_waits():
    fake = ShadeAblation()
    fake.go.clear()
    with queue(lambda *place: fake) as lane:
        with pytest.raises(DeadlineExceeded):
            await ablated(lane, A, ROW, ONE, deadline=time.monotonic() + 0.1)
        fake.go.set()
        assert (await ablated(lane, A, ROW, ONE, deadline=math.inf)).output is not None


async def test_cancelling_makes_room():
    fake = ShadeAblation()
    fake.go.clear()
    with queue(lambda *place: fake, max_waiting=1) as lane:
        task = asyncio.create_task(ablated(lane, A, ROW, ONE))
        await until(fake.started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lane.check()
        fake.go.set()
        await ablated(lane, A, ROW, ONE)


async def test_models_take_turns_in_memory():
    made, released = {}, []

    def load(name, version):
        made.setdefault(name, []).append(ShadeAblation())
        return made[name][-1]

    with queue(load, max_loaded=1, release_memory=lambda: released.append(None)) as lane:
        await ablated(lane, A, ROW, ONE)
        await ablated(lane, A, ROW, ONE)
        assert len(made["a"]) == 1
        await ablated(lane, B, ROW, ONE)
        assert made["a"][0].closed.is_set()
        await ablated(lane, A, ROW, ONE)
        assert len(made["a"]) == 2
        assert len(released) == 3, "after each load"
        lane.forget("a", "1")
        await ablated(lane, B, ROW, ONE)
        assert made["a"][1].closed.is_set()
        assert len(released) == 5, "after what was forgotten, too"


async def test_errors():
    class Broken(ShadeAblation):
        def __call__(self, row, overrides, *, stopped):
            raise RuntimeError("secret")

    def load(name, version):
        if name == "b":
            raise VersionNotFound("gone")
        return Broken()

    with queue(load) as lane:
        with pytest.raises(InferenceFailed, match="could not compute this ablation"):
            await ablated(lane, A, ROW, ONE)
        with pytest.raises(VersionNotFound):
            await ablated(lane, B, ROW, ONE)
        await lane.check()


async def test_its_thread_logs_with_the_ids_of_the_request():
    seen = []

    def load(*place):
        seen.append(current_request())
        return ShadeAblation()

    facts = RequestFacts(request_id="mine", trace=TraceContext.following(None))
    with queue(load) as lane:
        with request_logged_as(facts):
            await ablated(lane, A, ROW, ONE)
        await ablated(lane, B, ROW, ONE)
    assert seen == [facts, None]


async def test_closing_ends_what_runs():
    fake = ShadeAblation()
    fake.go.clear()
    with queue(lambda *place: fake) as lane:
        tasks = [asyncio.create_task(ablated(lane, A, ROW, ONE)) for _ in range(2)]
        await until(fake.started)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, DeadlineExceeded | asyncio.CancelledError)


async def test_leaving_does_not_wait_for_a_load_that_hangs():
    begun, go = threading.Event(), threading.Event()

    def load(*place):
        begun.set()
        go.wait(60)
        return ShadeAblation()

    with queue(load, closing_seconds=0.01) as lane:
        task = asyncio.create_task(ablated(lane, A, ROW, ONE))
        await until(begun)
    assert not go.is_set()
    assert lane.busy, "whoever ends the process must know"
    go.set()
    with pytest.raises(DeadlineExceeded):
        await task
