import asyncio
import threading

import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.errors import EngineStalled
from condconv_serve.inference.streams import StreamPool
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.virtual_time import let_pass


async def test_each_stream_has_its_number_and_they_run_side_by_side():
    both = threading.Barrier(2)

    def compute(stream):
        both.wait(20)
        return stream

    with StreamPool(2, stall_timeout=30, metrics=Metrics(CollectorRegistry())) as pool:
        assert sorted(await asyncio.gather(pool.run(compute), pool.run(compute))) == [0, 1]


@pytest.mark.parametrize("error", [KeyError, TimeoutError])
async def test_errors_are_passed_on_and_the_stream_lives(error):
    def fail(stream):
        raise error("x")

    before = set(threading.enumerate())
    with StreamPool(1, stall_timeout=30, metrics=Metrics(CollectorRegistry())) as pool:
        with pytest.raises(error, match="x"):
            await pool.run(fail)
        assert await pool.run(lambda stream: stream) == 0
        assert len(set(threading.enumerate()) - before) == 1


async def test_hanging_stream_is_reported_and_replaced(monkeypatch, caplog):
    metrics = Metrics(CollectorRegistry())
    begun, leave, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(stream):
        begun.set()
        leave.wait(60)
        ended.set()

    with StreamPool(1, stall_timeout=60.5, metrics=metrics) as pool:
        hanging = asyncio.create_task(pool.run(hang))
        assert await asyncio.to_thread(begun.wait, 20)
        let_pass(60.5, monkeypatch)
        with pytest.raises(EngineStalled):
            await hanging
        assert "stream 0 gave no answer in 60.5 s and was replaced" in caplog.text
        assert metrics.registry.get_sample_value("condconv_stream_stalls_total") == 1
        assert await pool.run(lambda stream: stream) == 0
    leave.set()
    assert ended.wait(20)


async def test_a_stream_that_was_replaced_ends_with_its_batch():
    before, leave = set(threading.enumerate()), threading.Event()
    with StreamPool(1, stall_timeout=0.01, metrics=Metrics(CollectorRegistry())) as pool:
        for _ in range(5):
            with pytest.raises(EngineStalled):
                await pool.run(lambda stream: leave.wait(20))
        assert len(set(threading.enumerate()) - before) == 6
        leave.set()
        async with asyncio.timeout(20):
            while len(set(threading.enumerate()) - before) > 1:  # noqa: ASYNC110 - other threads end
                await asyncio.sleep(0.01)
