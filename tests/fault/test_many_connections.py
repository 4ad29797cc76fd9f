"""Many clients at once that are idle, silent, slow, or sending what nobody reads: others are served all the same."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.server import Server, new_client, wait_for

EACH = 15
LONG = 600
"""Seconds: longer than any test lasts."""
HOST = b"Host: x\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n"
EARLY = POST.replace(b"/predict", b"/predict?model=none")
PROBE = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
CLIENTS = {
    "idle": PROBE,
    "silent": b"",
    "headers": b"POST /predict HTTP/1.1\r\nHost: ",
    "body": POST + b"\r\n" + bytes(100),
    "chunks": POST.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked") + b"\r\n5\r\nhello\r\n",
    "expecting": POST + b"Expect: 100-continue\r\n\r\n",
    "pipelined": 3 * PROBE + POST + b"\r\n" + bytes(100),
    "early": EARLY + b"\r\n" + bytes(100),
    "early and last": EARLY + b"Connection: close\r\n\r\n" + bytes(100),
}
TRICKLING = ("headers", "body", "pipelined", "early", "early and last")
ANSWERS = {
    "idle": ["200"],
    "silent": [],
    "headers": ["503"],
    "body": ["503"],
    "chunks": ["503"],
    "expecting": ["100", "503"],
    "pipelined": ["200", "200", "200", "503"],
    "early": ["404"],
    "early and last": ["404"],
}
EARLIER = {name: sum(status != "503" for status in answers) for name, answers in ANSWERS.items()}
"""How many of these come before the server ends."""


@contextlib.contextmanager
def connected(server: Server) -> Iterator[list[tuple[str, socket.socket]]]:
    """Clients of all kinds. Some go on sending a byte now and then."""
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        clients = []
        for name, sent in CLIENTS.items():
            for _ in range(EACH):
                client = stack.enter_context(socket.create_connection(server.address, timeout=60))
                client.sendall(sent)
                clients.append((name, client))

        def trickle() -> None:
            while not ended.wait(0.2):
                for name, client in clients:
                    if name in TRICKLING:
                        with contextlib.suppress(OSError):
                            client.send(b"x")

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            yield clients
        finally:
            ended.set()
            trickling.join()


def answered(client: socket.socket) -> int:
    """How many answers have come, without taking them."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return client.recv(65536, socket.MSG_PEEK).count(b"HTTP/1.1 ") if poll.poll(0) else 0


def statuses(client: socket.socket) -> tuple[list[str], bytes]:
    """Those of all answers until the end of the connection, which must not be a reset, and the last bytes."""
    received = b""
    while more := client.recv(65536):
        received += more
    return re.findall(r"HTTP/1\.1 (\d+) ", received.decode()), received


def wait_for_first_answers(clients: list[tuple[str, socket.socket]]) -> None:
    """Then the server has taken all connections: the last ones are answered."""
    wait_for(lambda: all(answered(client) >= EARLIER[name] for name, client in clients))


def test_each_gets_its_answer_at_the_end_of_the_server() -> None:
    with Server(shutdown_timeout=4, header_timeout=LONG) as server, connected(server) as clients:
        wait_for_first_answers(clients)
        time.sleep(0.5)  # nothing tells when what has no answer yet has come
        server.terminate()
        with ThreadPoolExecutor(len(clients)) as pool:
            ends = list(pool.map(lambda client: statuses(client[1]), clients))
        for (name, _), (found, received) in zip(clients, ends, strict=True):
            assert found == ANSWERS[name], name
            if found[-1:] == ["503"]:
                assert b'"slug":"draining"' in received
        assert server.wait() == 0
        assert " ERROR " not in server.log


def is_open(client: socket.socket) -> bool:
    """Whether the server has not closed the connection, whatever it has answered before."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


@pytest.mark.one_process("a front lets its share of CONDCONV_MAX_CONNECTIONS in, however many others have")
def test_those_that_are_being_received_keep_their_connections_and_all_others_make_room() -> None:
    needed = {name for name, answers in ANSWERS.items() if "503" in answers} - {"headers"}
    everybody = len(CLIENTS) * EACH
    with (
        Server(max_connections=everybody, shutdown_timeout=1, body_timeout=LONG) as server,
        connected(server) as clients,
        contextlib.ExitStack() as stack,
    ):
        wait_for_first_answers(clients)
        time.sleep(1.2)  # whoever has sent no whole request is left alone for a second
        new = []
        for _ in range(everybody - len(needed) * EACH):
            client = stack.enter_context(socket.create_connection(server.address))
            client.sendall(CLIENTS["body"])
            new.append(client)
        with new_client(server.url) as another:
            wait_for(lambda: another.get("/livez").status_code == 503)
            assert another.get("/livez").json()["slug"] == "too_many_connections"
        assert all(map(is_open, new))
        wait_for(lambda: not any(is_open(client) for kind, client in clients if kind not in needed))
        assert all(is_open(client) for kind, client in clients if kind in needed)
