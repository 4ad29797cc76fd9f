"""Clients that send nothing, or nonsense, or too much, to the guard over real sockets; others must not suffer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from condconv_serve.errors import ConfigurationError
from condconv_serve.http import guard
from condconv_serve.http.body import OpenBodies
from condconv_serve.http.guard import GuardedProtocol
from condconv_serve.http.limits import MAX_HEADER_BYTES, REFUSED_AT_ONCE
from condconv_serve.http.uvicorn_members import check_uvicorn
from tests.unit.http.guarded import (
    GET,
    HEAD,
    LONG,
    PATIENCE,
    Running,
    answer,
    assert_refused,
    begun,
    everything,
    gone,
    may_answer,
    serving,
    wait_for,
)


@pytest.fixture
def running() -> Iterator[Running]:
    with serving() as server:
        yield server


WISH = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
"""Other protocols may be asked for with any request, as by curl --http2; none is spoken."""


def wishing(request: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\n" + WISH + b"\r\n", 1)


def test_silent_connection_is_closed() -> None:
    started = time.monotonic()
    with serving(header_timeout=PATIENCE) as running, running.connect() as connected:
        assert everything(connected) == b""
    assert time.monotonic() - started > PATIENCE * 0.9
    assert running.rejected("request_timeout") == 1


def test_headers_that_begin_with_the_request_before_them_are_late_as_others_are() -> None:
    with serving(header_timeout=PATIENCE) as running, running.connect_with(GET + GET[:20]) as connected:
        assert answer(connected).endswith(b"ok")
        assert_refused(everything(connected), 408, "request_timeout")


def test_pipelined_requests(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET * 2 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert everything(connected).count(b"ok") == 3


@pytest.mark.parametrize(
    ("version", "hosts", "wrong"),
    [
        ("1.1", [], "has no Host header"),
        ("1.1", ["x", "x"], "has several Host headers"),
        ("1.0", ["x", "y"], "has several Host headers"),
        ("1.1", ["x y"], "is no name or address"),
        ("1.1", ["user@x"], "is no name or address"),
        ("1.1", ["x/ok"], "is no name or address"),
        ("1.1", ["x:port"], "is no name or address"),
        ("1.1", ["[::1"], "is no name or address"),
        ("1.0", [], None),
        ("1.1", [""], None),
        ("1.1", ["a_service.example:8000"], None),
        ("1.1", [" 127.0.0.1 "], None),
        ("1.1", ["[::1]:8000"], None),
        ("1.1", ["[fe80::1%25eth0]"], None),
    ],
)
def test_host(running: Running, version: str, hosts: list[str], wrong: str | None) -> None:
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    for more in ("Connection: close\r\n", "Connection: close, Upgrade\r\nUpgrade: h2c\r\n"):
        with running.connect_with(f"GET /ok HTTP/{version}\r\n{lines}{more}\r\n".encode()) as connected:
            received = everything(connected)
        if wrong is None:
            assert received.endswith(b"ok")
        else:
            assert_refused(received, 400, "malformed_request")
            assert wrong.encode() in received


def test_requests_before_a_wrong_host_are_answered(running: Running) -> None:
    with running.connect_with(GET + GET.replace(b"Host: x", b"Host: x\r\nHost: y") + GET) as connected:
        received = everything(connected)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.count(b"200 OK") == 1


@pytest.mark.parametrize("pieces", [1, 2, 20])
def test_a_wish_for_another_protocol_is_ignored(running: Running, pieces: int) -> None:
    smuggled = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
    echo = wishing(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(smuggled)) + smuggled
    step = -(-len(echo) // pieces)
    with running.connect() as connected:
        for _ in range(2):  # on the same connection
            for start in range(0, len(echo), step):
                connected.sendall(echo[start : start + step])
                time.sleep(0.1 / pieces)
            assert answer(connected).partition(b"\r\n\r\n")[2] == smuggled
        connected.sendall(GET)
        assert answer(connected).endswith(b"ok")


def test_wishes_among_pipelined_requests(running: Running) -> None:
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    requests = [wishing(GET), GET, wishing(chunked) + b"4\r\nbody\r\n0\r\n\r\n", wishing(GET) * 500, GET]
    with running.connect() as connected:
        connected.sendall(b"".join(requests)[:-2] + b"Connection: close\r\n\r\n")
        received = everything(connected)
    assert received.count(b"HTTP/1.1 200 OK") == 504
    assert received.count(b"ok") == 503
    assert received.count(b"body") == 1


def test_body_that_never_comes_after_a_wish() -> None:
    with serving(bodies=OpenBodies(pause=PATIENCE)) as running, running.connect() as connected:
        connected.sendall(wishing(HEAD))
        assert_refused(everything(connected), 408, "request_timeout")


@pytest.mark.parametrize("target", [b"x:80", b"/ok"])
def test_no_tunnel(running: Running, target: bytes) -> None:
    with running.connect() as connected:
        connected.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert_refused(everything(connected), 400, "malformed_request")
    with running.connect() as connected:
        connected.sendall(GET + b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        assert everything(connected).startswith(b"HTTP/1.1 200 OK")


def test_body_that_stalls() -> None:
    with serving(bodies=OpenBodies(pause=PATIENCE)) as running:
        with running.connect() as connected:
            connected.sendall(HEAD + b"12345")
            assert_refused(everything(connected), 408, "request_timeout")
        wait_for(lambda: running.rejected("request_timeout") == 1)


def test_body_that_never_starts() -> None:
    with serving(bodies=OpenBodies(pause=PATIENCE)) as running, running.connect() as connected:
        connected.sendall(HEAD)
        assert_refused(everything(connected), 408, "request_timeout")


def test_more_requests_than_may_wait_behind_one(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_PIPELINED", 20)  # so few that all are read at once
    with running.connect() as connected:
        connected.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 40)
        received = everything(connected)
    assert received.count(b"HTTP/1.1 200 OK") == 1 + 20


def test_endless_trailers(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n")
        with contextlib.suppress(OSError):
            for _ in range(20):
                connected.sendall(b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(1000)))
        assert_refused(everything(connected), 431, "headers_too_large")


@pytest.mark.parametrize("before", [b"", GET, GET * 2])
def test_a_client_that_leaves_is_noticed_among_pipelined_requests(running: Running, before: bytes) -> None:
    with running.connect() as connected:
        connected.sendall(before + b"GET /until_gone HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        assert begun.wait(LONG)
        time.sleep(0.2)
        assert not gone.is_set()
    assert gone.wait(LONG)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """As it is for minutes in a server: what points at itself stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def objects(kind: type[object]) -> int:
    return sum(isinstance(found, kind) for found in gc.get_objects())


def test_pipelined_requests_of_a_client_that_left_take_no_memory(running: Running) -> None:
    with no_collection():
        before = objects(RequestResponseCycle)
        with running.connect() as connected:
            connected.sendall(b"GET /until_gone HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 100)
            wait_for(lambda: objects(RequestResponseCycle) > before + 100)
        wait_for(lambda: objects(RequestResponseCycle) < before + 5)


@pytest.mark.parametrize(
    ("sent", "hears"),
    [
        (GET, True),
        (GET.replace(b"Host: x", b"Host: x\r\nConnection: close"), True),
        (b"rubbish\r\n\r\n", True),
        (HEAD.replace(b" 10", b" 1000000") + b"x" * 1000, False),
        (HEAD.replace(b" 10", b" 1000000").replace(b"/echo", b"/ok") + b"x" * 1000, True),
        (b"GET /until_gone HTTP/1.1\r\nHost: x\r\n\r\n", False),
        (GET[:10], False),
        (b"", False),
    ],
    ids=["answered", "closed", "malformed", "half sent", "answered early", "leaves early", "half a head", "silent"],
)
def test_a_connection_that_is_over_takes_no_memory(running: Running, sent: bytes, hears: bool) -> None:
    def connect() -> None:
        with running.connect() as connected:
            connected.sendall(sent)
            if hears:
                assert connected.recv(1000)

    connect()
    with no_collection():
        before = objects(HttpToolsProtocol)
        for _ in range(10):
            connect()
        wait_for(lambda: running.connections() == 0 and objects(HttpToolsProtocol) <= before + 1)


def test_large_rest_of_a_body_is_no_header(running: Running) -> None:
    size = MAX_HEADER_BYTES * 10
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"/echo", b"/early").replace(b"10\r\n\r\n", b"%d\r\n\r\n" % size))
        assert answer(connected).endswith(b"early")
        connected.sendall(bytes(size) + GET)
        assert answer(connected).endswith(b"ok")


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00\x01\x00", b"NONSENSE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_no_http(running: Running, rubbish: bytes) -> None:
    with running.connect() as connected:
        connected.sendall(rubbish)
        assert_refused(everything(connected), 400, "malformed_request")
    assert running.rejected("malformed_request") == 1


OTHER = GET.replace(b"/ok", b"/other/ok")


@pytest.mark.parametrize(
    ("sent", "slug"),
    [
        (OTHER[:-2] + b"no header\r\n\r\n", "malformed_request"),
        (OTHER[:-2] + b"X: " + b"y" * 2 * MAX_HEADER_BYTES, "headers_too_large"),
        (
            HEAD.replace(b"/echo", b"/other/x").replace(b"Content-Length: 10", b"Transfer-Encoding: x"),
            "malformed_request",
        ),
    ],
)
def test_the_path_chooses_the_shape_of_the_answer(running: Running, sent: bytes, slug: str) -> None:
    with running.connect() as connected:
        connected.sendall(sent)
        received = everything(connected)
    assert b"content-type: application/other+json" in received.lower()
    assert slug.encode() in received


def test_late_headers_are_answered_in_that_shape_too() -> None:
    with serving(header_timeout=PATIENCE) as running, running.connect_with(OTHER[:-2]) as connected:
        received = everything(connected)
    assert b"content-type: application/other+json" in received.lower()
    assert b"request_timeout" in received


def test_body_that_is_no_chunked_encoding(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(HEAD.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked") + b"xyz\r\n")
        assert_refused(everything(connected), 400, "malformed_request")


def test_rubbish_behind_a_request_leaves_its_answer_alone(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET.replace(b"/ok", b"/slow") + b"NONSENSE\r\n\r\n")
        received = everything(connected)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith(b"slow")


def test_endless_headers(running: Running) -> None:
    with running.connect() as connected:
        connected.sendall(GET[:-2] + b"X: ")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connected.sendall(b"y" * 10_000)
                time.sleep(0.001)
                if running.rejected("headers_too_large"):
                    break
        assert_refused(everything(connected), 431, "headers_too_large")


def test_connections_beyond_the_limit_are_told() -> None:
    with serving() as running, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(running.connect()) for _ in range(20)]
        wait_for(lambda: running.connections() == 20)
        response = running.get()
        assert (response.status_code, response.json()["slug"]) == (503, "too_many_connections")
        assert response.headers["connection"] == "close"
        upload = httpx.post(f"{running.url}/echo", content=bytes(500_000), trust_env=False, timeout=LONG)
        assert upload.json()["slug"] == "too_many_connections"
        other = running.get("/other/ok")
        assert (other.status_code, other.headers["content-type"]) == (503, "application/other+json")
        idle[0].close()
        wait_for(lambda: running.connections() == 19)
        assert running.get().status_code == 200


def test_a_refused_connection_is_told_to_come_again_once_it_would_be_closed() -> None:
    with serving(max_connections=1, refusal_seconds=1.0) as running, running.connect():
        wait_for(lambda: running.connections() == 1)
        with running.connect_with(GET) as connected:
            assert b"\r\nretry-after: 1\r\n" in everything(connected).lower()


def test_idle_connections_make_room_the_one_that_is_idle_longest_first() -> None:
    with serving(max_connections=3) as running, contextlib.ExitStack() as stack:
        first, second, busy = (stack.enter_context(running.connect()) for _ in range(3))
        for connected in (first, second, first):  # the second one is idle longest
            connected.sendall(GET)
            assert answer(connected).endswith(b"ok")
        busy.sendall(GET[:20])
        wait_for(lambda: running.connections() == 3)
        third, fourth, fifth = (stack.enter_context(running.connect()) for _ in range(3))
        for connected, closed in ((third, second), (fourth, first)):
            connected.sendall(GET[:20])
            assert everything(closed) == b""
        fifth.sendall(GET)
        assert_refused(everything(fifth), 503, "too_many_connections")
        assert running.rejected("too_many_connections") == 1
        for connected in (busy, third, fourth):
            connected.sendall(GET[20:])
            assert answer(connected).endswith(b"ok")


def test_connections_of_other_processes_count_but_leave_each_process_its_share() -> None:
    elsewhere, told = [2], list[int]()

    def tell(own: int) -> int:
        told.append(own)
        return elsewhere[0]

    with (
        serving(max_connections=4, elsewhere=tell, share=1) as running,
        contextlib.ExitStack() as stack,
    ):
        busy = [stack.enter_context(running.connect()) for _ in range(2)]
        for connected in busy:
            connected.sendall(GET[:20])
        wait_for(lambda: running.connections() == 2)
        assert running.get().status_code == 503
        elsewhere[0] = 1
        assert running.get().status_code == 200
        elsewhere[0] = 100
        for connected in busy:
            connected.sendall(GET[20:])
            assert answer(connected).endswith(b"ok")
        wait_for(lambda: running.connections() == 2)
        third = stack.enter_context(running.connect())
        third.sendall(GET[:20])
        assert everything(busy[0]) == b"", "an idle one makes room"
        busy[1].close()
        third.close()
        wait_for(lambda: told[-1] == 0)
        assert running.get().status_code == 200, "its share"


@pytest.mark.parametrize("together", [True, False])
def test_a_connection_is_not_idle_while_its_next_request_comes(together: bool) -> None:
    with serving(max_connections=1) as running, running.connect() as begun:
        begun.sendall(GET + GET[:20] if together else GET)
        answer(begun)
        if not together:
            begun.sendall(GET[:20])
        wait_for(lambda: running.connections() == 1)
        assert running.get().status_code == 503
        begun.sendall(GET[20:])
        assert answer(begun).endswith(b"ok")


def test_a_request_that_comes_with_the_rest_of_the_one_before_it_is_not_idle() -> None:
    with serving(max_connections=1) as running, running.connect() as connected:
        connected.sendall(HEAD.replace(b"/echo", b"/early") + b"1")
        assert answer(connected).endswith(b"early")
        connected.sendall(b"234567890" + GET.replace(b"/ok", b"/held"))
        assert begun.wait(LONG)
        assert running.get().status_code == 503
        may_answer.set()
        assert answer(connected).endswith(b"held")


def test_connections_that_may_still_send_a_request_make_no_room() -> None:
    with serving(max_connections=1) as running, running.connect() as connected:
        connected.sendall(GET[:20])
        wait_for(lambda: running.connections() == 1)
        assert running.get().status_code == 503
        connected.sendall(GET[20:])
        assert answer(connected).endswith(b"ok")


def test_connections_that_send_no_request_make_room_after_a_while() -> None:
    """Whoever opens as many as are allowed must not keep others out for the time that headers may take."""
    with (
        serving(max_connections=4, head_grace=PATIENCE) as running,
        contextlib.ExitStack() as stack,
    ):
        useless = [stack.enter_context(running.connect()) for _ in range(3)]
        busy = stack.enter_context(running.connect())
        useless[0].sendall(GET[:20])
        busy.sendall(GET.replace(b"/ok", b"/until_gone") + GET[:20])
        wait_for(lambda: running.connections() == 4)
        time.sleep(PATIENCE)
        others = [stack.enter_context(running.connect()) for _ in range(3)]
        for other in others:
            other.sendall(GET.replace(b"/ok", b"/slow"))
        for other in others:
            assert answer(other).endswith(b"slow")
        assert [everything(connected) for connected in useless] == [b""] * 3
        assert not gone.is_set()


def test_a_flood_of_connections_beyond_the_limit_is_closed() -> None:
    with serving(max_connections=1, refusal_seconds=1.0) as running, contextlib.ExitStack() as stack:
        first = stack.enter_context(running.connect())
        wait_for(lambda: running.connections() == 1)
        with running.standing_still():
            flood = [stack.enter_context(running.connect()) for _ in range(REFUSED_AT_ONCE + 30)]
        assert [everything(connected) for connected in flood] == [b""] * len(flood)
        assert running.rejected("too_many_connections") >= 30
        first.sendall(GET)
        assert answer(first).endswith(b"ok")


def test_this_uvicorn_has_all_that_the_guard_replaces() -> None:
    check_uvicorn(GuardedProtocol)


def without(name: str) -> type:
    """uvicorn's protocol, had it no such method."""
    members = {key: value for key, value in vars(HttpToolsProtocol).items() if key not in (name, "__dict__")}
    return type("Other", (asyncio.Protocol,), members)


def set_nowhere(self: object) -> None:
    """A constructor that sets less."""
    self.cycle = self.parser = self.timeout_keep_alive_task = None  # type: ignore[attr-defined]
    self.flow = self.expect_100_continue = None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["on_response_complete", "shutdown", "timeout_keep_alive_handler", "on_headers_complete"]
)
def test_a_uvicorn_without_a_method_that_the_guard_replaces_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^uvicorn {uvicorn.__version__} lacks {name}, so slow and silent"):
        check_uvicorn(GuardedProtocol, protocol=without(name))


def test_a_uvicorn_that_keeps_an_attribute_elsewhere_is_refused() -> None:
    other = without("__init__")
    other.__init__ = set_nowhere  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match=r"lacks pipeline, so"):
        check_uvicorn(GuardedProtocol, protocol=other)
    with pytest.raises(ConfigurationError, match="lacks disconnected, keep_alive"):
        check_uvicorn(GuardedProtocol, cycle=object)


def test_the_check_comes_before_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HttpToolsProtocol, "on_response_complete")
    with pytest.raises(ConfigurationError, match="lacks on_response_complete"), serving():
        pass
