"""An ingress replica's plane: rows are made here, sent, and sent again until one replica has answered them."""

from __future__ import annotations

import asyncio
import math
import pickle
import time
from collections import Counter

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.cluster.ray.messages import Caller, ReplicaLost, RowsReply
from condconv_serve.cluster.ray.mirror import ClusterState, Mirror
from condconv_serve.cluster.ray.plane import ReplicaPlane
from condconv_serve.cluster.ray.retries import LONGEST_CHANGE, NEWS_SECONDS, Retries
from condconv_serve.domain import LOGITS, MadeRow, RowAnswer, RowSource, Timings
from condconv_serve.domain.facts import Deadline, RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import (
    CorruptImage,
    DeadlineExceeded,
    Draining,
    InferenceFailed,
    InvalidParameter,
    ModelNotFound,
    ModelUnavailable,
    NotReady,
    QueueFull,
    VersionNotFound,
    WaitTooLong,
)
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.plane import made_source
from condconv_serve.serving.served import Served
from condconv_serve.store.default import Default
from condconv_serve.telemetry.logs import request_logged_as
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import served_model
from tests.contract.until import until

pytestmark = pytest.mark.usefixtures("_virtual_time")

MODEL = served_model()
ROW = np.full((32, 32, 3), 7, np.uint8)
TIMINGS = Timings(decode=0.0, queue=0.01, inference=0.02, total=0.03)


def answer(row):
    return RowAnswer(tensors={LOGITS: row.row.mean(axis=(0, 1)).astype(np.float32)}, timings=TIMINGS, batch_size=1)


class Replicas:
    """What stands in `first` happens to the first tries; then everything is answered, or with `take` false left."""

    def __init__(self, *first, slow=0.0, take=True):
        self.asked = []
        self.cancelled = 0
        self._first = list(first)
        self._slow = slow
        self._take = take

    async def __call__(self, request, *, not_taken):
        self.asked.append(request)
        try:
            await asyncio.sleep(self._slow)
        except asyncio.CancelledError:
            self.cancelled += 1
            if not self._take:
                not_taken()
            raise
        if self._first:
            happens = self._first.pop(0)
            if isinstance(happens, ReplicaLost):
                raise happens
            return RowsReply(replica="first", refusal=happens)
        found = tuple(answer(row) if isinstance(row, MadeRow) else row for row in request.rows)
        return RowsReply(replica="last", outcomes=found)


def plane_of(send, *, replicas=2, max_rows=8, metrics=None):
    models = Mirror()
    served = Served(default=Default(name="fake", reason="a test's"), models={"fake": {"1": MODEL}})
    models.update(ClusterState(served=served, replicas=replicas))
    return ReplicaPlane(models, send, max_rows=max_rows, metrics=metrics or Metrics(CollectorRegistry()))


def counted(metrics):
    """How many rows had which outcome, and how many were let in."""
    ended, accepted = Counter(), 0
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "condconv_rows_total":
                ended[sample.labels["outcome"], sample.labels["deadline"]] += int(sample.value)
            elif sample.name == "condconv_rows_accepted_total":
                accepted += int(sample.value)
    assert accepted == ended.total()
    return dict(ended)


async def test_rows_are_answered_in_order_with_the_whole_time():
    async def slow():
        await asyncio.sleep(0.05)
        return MadeRow(ROW, seconds=0.04)

    replicas = Replicas()
    plane = plane_of(replicas)
    with plane.lease() as model:
        first, second = await plane.infer_each(model, [RowSource(slow), made_source(MadeRow(ROW + 1))])
    assert first.tensors[LOGITS].tolist() == [7, 7, 7]
    assert second.tensors[LOGITS].tolist() == [8, 8, 8]
    assert first.timings.total >= 0.05
    assert first.timings.inference == TIMINGS.inference


async def test_a_row_that_cant_be_made_is_sent_as_its_error_so_that_the_replica_counts_it():
    replicas = Replicas()
    plane = plane_of(replicas)
    good, bad = await plane.infer_each(MODEL, [made_source(MadeRow(ROW)), made_source(CorruptImage("It is damaged."))])
    assert isinstance(good, RowAnswer)
    assert isinstance(bad, CorruptImage)
    assert isinstance(replicas.asked[0].rows[1], CorruptImage)


async def test_a_defect_spoils_its_own_row_only(caplog):
    async def broken():
        raise ZeroDivisionError

    bad, good = await plane_of(Replicas()).infer_each(MODEL, [RowSource(broken), made_source(MadeRow(ROW))])
    assert bad.slug == "internal_error"
    assert isinstance(good, RowAnswer)


async def test_whole_rows_give_whole_outputs():
    tensors = await plane_of(Replicas()).infer(MODEL, np.stack([ROW, ROW + 2]))
    assert tensors[LOGITS].tolist() == [[7, 7, 7], [9, 9, 9]]
    with pytest.raises(InvalidParameter, match="uint8"):
        await plane_of(Replicas()).infer(MODEL, np.zeros((1, 31, 32, 3), np.uint8))


async def test_who_asks_and_how_long_goes_with_the_rows():
    replicas = Replicas()
    facts = RequestFacts(request_id="mine", trace=TraceContext.following(None))
    deadline = Deadline(time.monotonic() + 5, by="caller")
    with request_logged_as(facts):
        await plane_of(replicas).infer_each(
            MODEL, [made_source(MadeRow(ROW))], priority=Priority.HIGH, deadline=deadline
        )
    (asked,) = replicas.asked
    assert (asked.model, asked.version, asked.priority) == ("fake", "1", Priority.HIGH)
    assert (asked.caller, asked.deadline_by) == (Caller(request_id="mine", trace=facts.trace), "caller")
    assert 4 < asked.timeout <= 5
    assert pickle.loads(pickle.dumps(asked)).rows[0].row.tolist() == ROW.tolist()


async def test_rows_of_a_lost_replica_are_sent_to_another_as_the_same_request():
    metrics = Metrics(CollectorRegistry())
    replicas = Replicas(ReplicaLost("killed"), ReplicaLost("killed"))
    (found,) = await plane_of(replicas, metrics=metrics).infer_each(MODEL, [made_source(MadeRow(ROW))])
    assert isinstance(found, RowAnswer)
    assert len({request.token for request in replicas.asked}) == 1
    assert metrics.registry.get_sample_value("condconv_replica_retries_total", {"reason": "replica_lost"}) == 2
    assert counted(metrics) == {}  # the replica has counted it


@pytest.mark.parametrize(
    ("refusal", "replicas", "tries"),
    [
        (QueueFull("full", retry_after=3.0), 1, 1),
        (QueueFull("full", retry_after=3.0), 2, 2),
        (WaitTooLong("late", retry_after=3.0), 5, 2),
        (Draining("ends", retry_after=1.0), 2, 5),
        (InferenceFailed("guilty"), 2, 1),
    ],
)
async def test_refusals_reach_the_sender_after_tries_that_make_sense(monkeypatch, refusal, replicas, tries):
    monkeypatch.setattr("condconv_serve.cluster.ray.retries.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("condconv_serve.cluster.ray.retries.NEWS_SECONDS", 0.0)
    send = Replicas(*[refusal] * 10)
    with pytest.raises(type(refusal)) as caught:
        await plane_of(send, replicas=replicas).infer_each(MODEL, [made_source(MadeRow(ROW))])
    assert caught.value is refusal
    assert caught.value.retry_after == refusal.retry_after
    assert len(send.asked) == tries


async def test_a_replica_that_ends_or_lacks_the_version_is_not_noticed():
    replicas = Replicas(Draining("ends"), VersionNotFound("not yet"), ModelNotFound("not yet"))
    (found,) = await plane_of(replicas).infer_each(MODEL, [made_source(MadeRow(ROW))])
    assert isinstance(found, RowAnswer)


async def test_the_deadline_ends_all_tries(monkeypatch):
    lost = Replicas(*[ReplicaLost("killed")] * 100)
    started = time.monotonic()
    rows = [made_source(MadeRow(ROW))] * 2
    found = await plane_of(lost).infer_each(MODEL, rows, deadline=started + 0.2)
    assert [row.slug for row in found] == ["deadline_exceeded"] * 2
    assert 0.15 < time.monotonic() - started < 1

    monkeypatch.setattr("condconv_serve.cluster.ray.plane.GRACE_SECONDS", 0.05)
    slow = Replicas(slow=10)
    (late,) = await plane_of(slow).infer_each(MODEL, rows[:1], deadline=time.monotonic() + 0.05)
    assert isinstance(late, DeadlineExceeded)
    assert slow.cancelled == 1


async def test_what_the_replica_says_of_late_rows_is_waited_for():
    class Late:
        async def __call__(self, request, *, not_taken):
            await asyncio.sleep(request.timeout + 0.02)
            late = DeadlineExceeded("The replica says so.")
            return RowsReply(replica="a", outcomes=(late, answer(request.rows[1])))

    rows = [made_source(MadeRow(ROW))] * 2
    first, second = await plane_of(Late()).infer_each(MODEL, rows, deadline=time.monotonic() + 0.05)
    assert str(first) == "The replica says so."
    assert isinstance(second, RowAnswer)


DAMAGED = made_source(CorruptImage("It is damaged."))


@pytest.mark.parametrize("by", ["caller", "service"])
async def test_rows_that_miss_their_deadline_while_no_replica_has_them_are_counted_here(by):
    metrics = Metrics(CollectorRegistry())
    plane = plane_of(Replicas(*[ReplicaLost("killed")] * 100), metrics=metrics)
    rows = [made_source(MadeRow(ROW)), DAMAGED, made_source(MadeRow(ROW))]
    found = await plane.infer_each(MODEL, rows, deadline=Deadline(time.monotonic() + 0.1, by=by))
    assert [row.slug for row in found] == ["deadline_exceeded", "corrupt_image", "deadline_exceeded"]
    assert counted(metrics) == {("deadline_exceeded", by): 2, ("corrupt_image", ""): 1}
    assert metrics.registry.get_sample_value("condconv_stage_seconds_count", {"stage": "total"}) == 2


@pytest.mark.parametrize("taken", [False, True])
async def test_a_late_row_counts_here_if_it_was_given_to_no_replica_and_else_there(monkeypatch, taken):
    monkeypatch.setattr("condconv_serve.cluster.ray.plane.GRACE_SECONDS", 0.0)
    metrics = Metrics(CollectorRegistry())
    plane = plane_of(Replicas(slow=600, take=taken), metrics=metrics)
    (found,) = await plane.infer_each(MODEL, [made_source(MadeRow(ROW))], deadline=time.monotonic() + 0.05)
    assert isinstance(found, DeadlineExceeded)
    assert counted(metrics) == ({} if taken else {("deadline_exceeded", "service"): 1})


async def test_rows_whose_replicas_are_lost_for_too_long_are_counted_here(monkeypatch):
    monkeypatch.setattr("condconv_serve.cluster.ray.retries.LONGEST_LOSS", 0.0)
    metrics = Metrics(CollectorRegistry())
    with pytest.raises(NotReady):
        await plane_of(Replicas(ReplicaLost("killed")), metrics=metrics).infer_each(
            MODEL, [made_source(MadeRow(ROW)), DAMAGED]
        )
    assert counted(metrics) == {("not_ready", ""): 1, ("corrupt_image", ""): 1}


async def test_rows_that_are_refused_were_not_let_in(monkeypatch):
    monkeypatch.setattr("condconv_serve.cluster.ray.retries.LONGEST_CHANGE", 0.0)
    metrics = Metrics(CollectorRegistry())
    for refusal, raised in ((QueueFull("full"), QueueFull), (VersionNotFound("loading"), ModelUnavailable)):
        with pytest.raises(raised):
            await plane_of(Replicas(refusal), replicas=1, metrics=metrics).infer_each(
                MODEL, [made_source(MadeRow(ROW))]
            )
    with pytest.raises(QueueFull):
        await plane_of(Replicas(), replicas=1, max_rows=1, metrics=metrics).infer_each(
            MODEL, [made_source(MadeRow(ROW))] * 2
        )
    assert counted(metrics) == {}


async def test_a_refusal_after_a_loss_is_no_end_here():
    metrics = Metrics(CollectorRegistry())
    plane = plane_of(Replicas(ReplicaLost("killed"), InferenceFailed("guilty")), metrics=metrics)
    with pytest.raises(InferenceFailed):
        await plane.infer_each(MODEL, [made_source(MadeRow(ROW))])
    assert counted(metrics) == {}


@pytest.mark.parametrize("where", ["decoding", "waiting", "taken"])
async def test_rows_of_who_leaves_count_where_they_are(where):
    async def forever():
        begun.set()
        await asyncio.Event().wait()

    async def made():
        begun.set()
        return MadeRow(ROW)

    begun, metrics = asyncio.Event(), Metrics(CollectorRegistry())
    replicas = Replicas(slow=600, take=where == "taken")
    source = RowSource(forever if where == "decoding" else made)
    asking = asyncio.create_task(plane_of(replicas, metrics=metrics).infer_each(MODEL, [source] * 2))
    await begun.wait()
    if where != "decoding":
        await until(lambda: replicas.asked)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert counted(metrics) == ({} if where == "taken" else {("cancelled", ""): 2})


async def test_who_leaves_takes_the_rows_along():
    slow = Replicas(slow=10)
    plane = plane_of(slow, max_rows=1, replicas=1)
    asking = asyncio.create_task(plane.infer_each(MODEL, [made_source(MadeRow(ROW))]))
    await asyncio.sleep(0.01)
    with pytest.raises(QueueFull):
        await plane.check()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert slow.cancelled == 1
    await plane.check()


async def test_there_is_room_for_the_rows_of_each_replica():
    plane = plane_of(Replicas(), max_rows=2, replicas=2)
    assert len(await plane.infer_each(MODEL, [made_source(MadeRow(ROW))] * 4)) == 4
    with pytest.raises(QueueFull) as full:
        await plane.infer_each(MODEL, [made_source(MadeRow(ROW))] * 5)
    assert full.value.retry_after == 1.0
    with pytest.raises(ModelNotFound):
        await plane.check("nobody")


def test_a_version_may_be_missing_for_a_while_only():
    now = [0.0]
    retries = Retries(math.inf, replicas=2, clock=lambda: now[0])
    assert retries.after_refusal(VersionNotFound("not yet")) < 0.1
    now[0] = LONGEST_CHANGE + 1
    with pytest.raises(ModelUnavailable, match="just changing"):
        retries.after_refusal(VersionNotFound("never"))


def test_a_broken_replica_may_be_asked_again_until_all_have_heard_of_it():
    now = [0.0]
    retries, broken = Retries(math.inf, replicas=1, clock=lambda: now[0]), NotReady("It hangs.", retry_after=9.0)
    for _ in range(10):
        assert retries.after_refusal(broken) > 0
    now[0] = NEWS_SECONDS
    with pytest.raises(NotReady) as caught:
        retries.after_refusal(broken)
    assert caught.value is broken


def test_replicas_may_die_for_a_minute_without_a_deadline():
    now = [0.0]
    retries = Retries(math.inf, replicas=2, clock=lambda: now[0])
    pauses = [retries.after_loss() for _ in range(8)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 1.0
    now[0] = 61.0
    with pytest.raises(NotReady):
        retries.after_loss()
