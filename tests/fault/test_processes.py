"""A server with workers whose processes die, one by one and all together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from condconv_serve.http.server import REPEAT_SECONDS
from tests import pictures
from tests.e2e.server import (
    PATIENCE,
    Server,
    assert_problem,
    command,
    environment,
    new_client,
    sample_name,
    wait_for,
)

IMAGE = pictures.jpeg(pictures.photo("coffee", (64, 64)))
FRONTS = 2
PROCESSES = {"engine", "front1", "front2"}
pytestmark = pytest.mark.workers


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """A server whose processes are back after each test."""
    with Server(workers=FRONTS) as running:
        wait_until_all_run(running)
        yield running


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    shared.fault()
    wait_until_all_run(shared)


def wait_until_all_run(server: Server) -> None:
    """A process has its name once signals that are sent to all do nothing to it."""
    wait_for(lambda: server.children().keys() == PROCESSES and server.is_ready())


def kill(server: Server, name: str) -> Callable[[], bool]:
    """Kill a child, and wait until it has ended; what is returned says whether another one has taken its place."""
    before = server.children()[name]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: not _lives(before))
    return lambda: server.children().get(name, before) != before


def wait_for_rows(server: Server, count: int) -> None:
    """Wait until so many rows are at the engine process, which holds them."""

    def there() -> float:
        metrics = server.metrics()
        return metrics.get("condconv_rows_in_flight", 0.0) + metrics.get("condconv_queue_rows", 0.0)

    wait_for(lambda: there() == count)


def predict(client: httpx.Client) -> httpx.Response:
    return client.post("/predict", content=IMAGE)


def new(server: Server) -> httpx.Client:
    """A client with a connection of its own for each request, so that any front may get it."""
    return httpx.Client(base_url=server.url, timeout=PATIENCE, headers={"Connection": "close"}, trust_env=False)


def test_one_limit_of_connections_holds_for_all_fronts() -> None:
    with Server(workers=FRONTS, max_connections=4) as server, ThreadPoolExecutor(12) as pool:
        clients = [new_client(server.url) for _ in range(12)]
        with server.holding():
            asked = [pool.submit(predict, client) for client in clients]
            wait_for(lambda: sum(future.done() for future in asked) >= 6)
        answers = [future.result() for future in asked if not future.exception()]  # who asks late is only cut off
        for client in clients:
            client.close()
        for refused in (answer for answer in answers if answer.status_code != 200):
            assert_problem(refused, 503, "too_many_connections")
        # All four at one front, and its share of two at the other one.
        assert 3 <= sum(answer.status_code == 200 for answer in answers) <= 6


def test_each_process_has_a_name(server: Server) -> None:
    assert server.children().keys() == PROCESSES


def test_a_killed_front_is_replaced_and_the_others_answer_meanwhile(server: Server) -> None:
    before = restarts(server)
    with new(server) as client:
        is_back = kill(server, "front1")
        answers = []
        while not is_back():
            answers.append(predict(client).status_code)
        assert set(answers) <= {200}
        # The new one may listen before it has heard from the engine process.
        wait_for(lambda: {predict(client).status_code for _ in range(10)} == {200})
        assert restarts(server) == before | {"front": before["front"] + 1}
    wait_for(lambda: "front 1 (process" in server.log and "has ended by SIGKILL" in server.log)


def restarts(server: Server) -> dict[str, float]:
    metrics = server.metrics()
    return {name: metrics[sample_name("condconv_worker_restarts_total", process=name)] for name in ("front", "engine")}


def test_a_killed_front_loses_only_what_it_was_answering(server: Server) -> None:
    """And a half of those who asked lose nothing: theirs is the other front."""
    with ThreadPoolExecutor(8) as pool, server.holding():
        clients = [new_client(server.url) for _ in range(8)]
        asked = [pool.submit(predict, client) for client in clients]
        wait_for_rows(server, 8)
        others = _connections(server, "front2")
        kill(server, "front1")
        server.fault()
        answered = [future.exception() is None and future.result().status_code == 200 for future in asked]
        for client in clients:
            client.close()
    assert sum(answered) >= others - 1  # the tests' own connection may be among them


def _connections(server: Server, name: str) -> int:
    """How many connections a front has."""
    process = server.children()[name]
    inodes = set()
    for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == server.address[1] and fields[3] == "01":
            inodes.add(fields[9])
    found = 0
    for link in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            found += os.readlink(link)[8:-1] in inodes
    return found


def test_without_an_engine_fronts_say_when_to_come_again(server: Server) -> None:
    server.fault("hold load")
    with new(server) as client:
        is_back = kill(server, "engine")
        wait_for(lambda: client.get("/readyz").status_code == 503)
        response = predict(client)
        assert_problem(response, 503, "not_ready")
        assert float(response.headers["retry-after"]) > 0
        assert client.get("/livez").status_code == 200
        assert client.get("/v2/health/ready").status_code != 200
        server.fault()
        wait_for(is_back)
        wait_for(lambda: predict(client).status_code == 200)


def test_requests_that_an_engine_takes_along_can_be_sent_again(server: Server) -> None:
    with new_client(server.url) as client, ThreadPoolExecutor(1) as pool:
        with server.holding():
            asked = pool.submit(predict, client)
            wait_for_rows(server, 1)
            kill(server, "engine")
            response = asked.result()
        assert_problem(response, 503, "not_ready")
        assert float(response.headers["retry-after"]) > 0
        # On the same connection, so of the front that has noticed.
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert predict(client).status_code == 200


def test_an_engine_that_hangs_makes_nobody_wait_for_ever() -> None:
    with Server(workers=FRONTS, worker_timeout=0) as server, new(server) as client, ThreadPoolExecutor(1) as pool:
        wait_until_all_run(server)
        engine = server.children()["engine"]
        os.kill(engine, signal.SIGSTOP)
        try:
            wait_for(lambda: _state(engine) == "T")
            asked = pool.submit(predict, server.client)
            assert_problem(asked.result(PATIENCE), 503, "not_ready")
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert_problem(predict(client), 503, "not_ready", "doesn't answer")
            assert client.get("/livez").status_code == 200
        finally:
            os.kill(engine, signal.SIGCONT)
        wait_for(lambda: predict(client).status_code == 200)


@pytest.mark.parametrize("name", ["engine", "front1"])
def test_a_process_that_hangs_is_replaced(name: str) -> None:
    with Server(workers=FRONTS, worker_timeout=3) as server, new(server) as client:
        wait_until_all_run(server)
        before = server.children()[name]
        os.kill(before, signal.SIGSTOP)
        wait_for(lambda: server.children().get(name, before) != before)
        wait_until_all_run(server)
        assert {predict(client).status_code for _ in range(10)} == {200}
        assert "has not moved for 3 s, and is killed" in server.log


def test_all_is_answered_and_ends_in_order() -> None:
    with Server(workers=FRONTS) as server:
        clients = [new_client(server.url) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool, server.holding():
            asked = [pool.submit(predict, client) for client in clients]
            wait_for_rows(server, 8)
            before = server.children()
            server.terminate()
            wait_for(server.refuses_connections)
            server.fault()
            assert [future.result().status_code for future in asked] == [200] * 8
        for client in clients:
            client.close()
        assert server.wait() == 0
        assert not any(Path(f"/proc/{process}").exists() for process in before.values())


@pytest.mark.parametrize("fault", ["", "hold rows"])
def test_nobody_outlives_a_parent_that_was_killed(fault: str) -> None:
    with Server(workers=FRONTS, exit_code=-signal.SIGKILL) as server:
        server.fault(fault)
        before = server.children()
        assert len(before) == FRONTS + 1
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(predict, server.client)
            os.kill(server.process_id, signal.SIGKILL)
            wait_for(lambda: not any(_lives(process) for process in before.values()))
            asked.exception()


def test_a_process_manager_may_send_signals_to_all_of_them() -> None:
    """As systemd does it by default: each process of the service gets the signal, in any order."""
    with Server(workers=FRONTS) as server:
        wait_until_all_run(server)
        before = server.children()
        for process in before.values():
            os.kill(process, signal.SIGUSR1)
        clients = [new_client(server.url) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool, server.holding():
            asked = [pool.submit(predict, client) for client in clients]
            wait_for_rows(server, 4)
            for process in before.values():
                os.kill(process, signal.SIGTERM)
            time.sleep(REPEAT_SECONDS)  # on a busy machine the supervisor is slow to pass it on
            server.terminate()
            wait_for(server.refuses_connections)
            server.fault()
            assert [future.result().status_code for future in asked] == [200] * 4
        for client in clients:
            client.close()
        assert server.wait() == 0
        assert "the engine process (process" not in server.log, "it ends after the fronts"


def _state(process: int) -> str:
    """The letter that the system has for a process's state; none if there is no such process."""
    try:
        found = re.search(r"^State:\t(\w)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _lives(process: int) -> bool:
    return _state(process) not in ("", "Z", "X")


def test_a_second_signal_ends_all_at_once() -> None:
    with Server(workers=FRONTS, exit_code=128 + signal.SIGTERM) as server:
        server.fault("hold rows")
        before = server.children()
        with new_client(server.url) as client, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(predict, client)
            wait_for_rows(server, 1)
            server.terminate()
            wait_for(server.refuses_connections)
            time.sleep(REPEAT_SECONDS)
            server.tell(signal.SIGTERM)
            assert server.wait() == 128 + signal.SIGTERM
            asked.exception()
        wait_for(lambda: not any(_lives(process) for process in before.values()))


@pytest.mark.slow
def test_the_real_command_starts_processes_and_says_what_is_wrong(tmp_path: Path) -> None:
    import subprocess

    ended = subprocess.run(
        command("--port", "0", "--workers", "2"),
        env=environment(model_store=tmp_path / "none"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "error: " in ended.stderr
    assert "Traceback" not in ended.stderr
