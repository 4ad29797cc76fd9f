"""What is sent again, after which pause, and until when."""

import time

import httpx
import pytest

from condconv_serve import errors
from condconv_serve.client.answers import Reply, content_of
from condconv_serve.client.calls import Call
from condconv_serve.client.exchange import RETRYABLE, Pause, RequestPolicy, Send, exchange, until_ready
from condconv_serve.errors import (
    DeadlineExceeded,
    InvalidParameter,
    NotReady,
    QueueFull,
    RateLimited,
    RemoteFailed,
    ServiceError,
)
from condconv_serve.fronts.native.problems import STATUS
from tests.unit.client.answers_of_ours import entry, for_each_image, images_of, predictions, problem
from tests.unit.client.both import KINDS, answered_by

OK = httpx.Response(200, content=b"yes")


class Told:
    """Does what an exchange says, in no time at all: each reply takes `takes` seconds of a clock that is made up."""

    def __init__(self, *replies, takes=0.0, overslept=0.0, random=0.0, **policy):
        self.now = 1000.0
        self.replies = list(replies)
        self.takes, self.overslept = takes, overslept
        self.sent: list[Send] = []
        self.pauses: list[float] = []
        self.policy = RequestPolicy(server="http://server", clock=lambda: self.now, random=lambda: random, **policy)

    def ask(self, **call):
        call = Call(**{"method": "GET", "path": "/", "read": content_of, **call})
        return self.do(exchange(call, self.policy))

    def do(self, work):
        try:
            step = next(work)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(round(step.seconds, 3))
                    self.now += step.seconds + self.overslept
                    step = work.send(None)
                    continue
                self.sent.append(step)
                self.now += self.takes
                reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                if isinstance(reply, Exception):
                    step = work.throw(reply)
                else:
                    made = Reply(server="s", status=reply.status_code, headers=reply.headers, content=reply.content)
                    step = work.send(made)
        except StopIteration as done:
            return done.value


FULL = problem("queue_full", 429)
LOST = httpx.ReadError("Connection reset by peer")
REFUSED = httpx.ConnectError("Connection refused")


@pytest.mark.parametrize(
    "trouble",
    [
        REFUSED,
        LOST,
        httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
        httpx.ConnectTimeout("timed out"),
        httpx.Response(502, html="<h1>Bad gateway</h1>"),
        httpx.Response(503, html=""),
        httpx.Response(504, html="<h1>504 Gateway Time-out</h1>"),
        httpx.Response(429, html=""),
        FULL,
        problem("draining", 503),
    ],
)
def test_what_may_pass_is_tried_again(trouble):
    told = Told(trouble, trouble, OK, random=1.0)
    assert told.ask() == b"yes"
    assert told.pauses == [0.2, 0.4]
    once = Told(trouble)
    with pytest.raises(ServiceError):
        once.ask(repeatable=False)
    assert len(once.sent) == 1, "what changes the server is sent once"


def test_which_errors_may_pass():
    """All others are said once: they would come again, or they cost the server as much as an answer."""
    slugs = {kind.slug for kind in (*RETRYABLE, RemoteFailed)}  # the last one as what a proxy would say
    for slug, status in STATUS.items():
        told = Told(problem(slug, status), OK)
        if slug in slugs:
            assert told.ask() == b"yes"
        else:
            with pytest.raises(ServiceError):
                told.ask()
            assert len(told.sent) == 1, slug
    assert {QueueFull, RateLimited, NotReady, errors.Draining} < set(RETRYABLE)


def test_pauses_grow_up_to_a_limit():
    told = Told(REFUSED, random=1.0, retries=8, seconds=1000.0)
    with pytest.raises(RemoteFailed, match="can't be reached: Connection refused"):
        told.ask()
    assert told.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert len(told.sent) == 9


def test_pauses_differ_between_clients():
    shortest, longest = Told(REFUSED, OK), Told(REFUSED, OK, random=1.0)
    shortest.ask(), longest.ask()
    assert (shortest.pauses, longest.pauses) == ([0.1], [0.2])


@pytest.mark.parametrize(
    "busy",
    [
        problem("rate_limited", 429, retry_after=7.5),
        httpx.Response(429, html="", headers={"Retry-After": "7"}),
        httpx.Response(503, html="", headers={"Retry-After": " 7 "}),
    ],
)
def test_servers_say_when_to_come_back(busy):
    told = Told(busy, OK)
    assert told.ask() == b"yes"
    assert told.pauses[0] in (7.5, 7.0)
    told = Told(busy, OK, random=1.0)
    told.ask()
    assert told.pauses[0] in (8.25, 7.7), "never sooner, and not all at once"


def test_a_server_that_says_to_come_back_at_once_is_not_flooded():
    """Batch jobs repeat a request as often as it takes."""
    told = Told(*[httpx.Response(503, html="", headers={"Retry-After": "0"})] * 3, OK, random=1.0)
    assert told.ask() == b"yes"
    assert told.pauses == [0.2, 0.4, 0.8]


def test_a_pause_beyond_the_deadline_is_not_waited_for():
    told = Told(problem("rate_limited", 429, retry_after=30))
    with pytest.raises(RateLimited) as raised:
        told.ask(seconds=20.0)
    assert (told.pauses, raised.value.retry_after) == ([], 30)


def test_the_deadline_holds_for_all_tries_together():
    told = Told(FULL, takes=3.0, retries=100, random=1.0)
    with pytest.raises(QueueFull):
        told.ask(seconds=10.0)
    assert told.now - 1000 <= 10
    assert [round(step.seconds, 1) for step in told.sent] == [10.0, 6.8, 3.4]


def test_no_answer_in_time():
    told = Told(httpx.ReadTimeout("timed out"), takes=5.0)
    with pytest.raises(DeadlineExceeded, match=r"^The server at http://server gave no answer within 5 seconds\.$"):
        told.ask(seconds=5.0)
    assert len(told.sent) == 1


def test_a_pause_that_took_all_the_time_is_followed_by_no_try():
    told = Told(FULL, OK, overslept=20.0)
    with pytest.raises(QueueFull):
        told.ask(seconds=10.0)
    assert len(told.sent) == 1
    told = Told(problem("not_ready", 503), httpx.Response(200, json={"status": "ok"}), overslept=20.0)
    with pytest.raises(NotReady):
        told.do(until_ready(told.policy, seconds=10.0))
    assert len(told.sent) == 1


def test_no_retries():
    told = Told(FULL, retries=0)
    with pytest.raises(QueueFull):
        told.ask()
    assert len(told.sent) == 1


def test_the_server_knows_how_long_you_wait():
    told = Told(FULL, OK, takes=1.0)
    told.ask(timed=True, seconds=5.0)
    assert [step.timeout_ms for step in told.sent] == [5000, 3900]
    told = Told(OK)
    told.ask(timed=True, seconds=60.0)
    told.ask(seconds=5.0)
    assert [step.timeout_ms for step in told.sent] == [None, None], "not more than servers take, and not to all routes"


def test_a_server_that_waits_less_long():
    refused = problem("invalid_parameter", 422, "timeout_ms may be at most 10000, not 20000.")
    told = Told(refused, FULL, OK, takes=0.01)
    assert told.ask(timed=True, seconds=20.0) == b"yes"
    told.ask(timed=True, seconds=20.0)
    told.ask(timed=True, seconds=8.0)
    assert [step.timeout_ms for step in told.sent] == [20000, None, None, None, 8000]
    wrong = Told(problem("invalid_parameter", 422, "top_k must be from 1 to 10."))
    with pytest.raises(InvalidParameter, match="top_k"):
        wrong.ask(timed=True, seconds=20.0)
    assert len(wrong.sent) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_both_clients_wait_and_try_again(kind):
    answers = [problem("queue_full", 429, retry_after=0.03), httpx.ReadError("reset"), predictions(entry(1))]
    seen = []

    def answer(request):
        seen.append(request.content)
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    with answered_by(kind, answer) as client:
        assert client.predict(b"\1").label == "class 1"
    assert seen == [b"\1"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_never_sent_twice(kind):
    seen = []

    def answer(request):
        seen.append(request.method)
        raise httpx.ReadError("reset")

    with answered_by(kind, answer) as client:
        for change in (
            lambda: client.load_version("m", "1"),
            lambda: client.unload_version("m", "1"),
            lambda: client.set_alias("m", "a", "1"),
            lambda: client.roll_back_alias("m", "a"),
            lambda: client.delete_alias("m", "a"),
        ):
            with pytest.raises(RemoteFailed):
                change()
    assert seen == ["POST", "POST", "PUT", "POST", "DELETE"]


def test_what_nobody_waits_for_is_not_tried_again():
    seen = []

    def answer(request):
        seen.append(request)
        # Both requests come at the same time.
        return problem("queue_full", 429, retry_after=50) if b"\2" in images_of(request) else for_each_image(request)

    with answered_by("sync", answer) as client:
        answers = client.predict_iter([b"\1"] * 16 + [b"\2"] * 16)
        next(answers)
        started = time.monotonic()
        answers.close()
        assert time.monotonic() - started < 40
    assert len(seen) <= 2
