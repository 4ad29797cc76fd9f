"""`condconv predict --server URL --output FILE`: killed, interrupted, and with servers that come and go."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import pictures
from tests.e2e.server import FAKE, PATIENCE, Server, environment, wait_for
from tests.forked import ForkedServer, forker
from tests.free_ports import free_ports

PHOTOS = 112
AT_ONCE = 16
"""Images in a request."""
ENOUGH = 40
"""So many are those of two requests, and some of a third."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of a few sizes, two of which are none."""
    small = [pictures.jpeg(pictures.photo("coffee", (60 + width, 60))) for width in range(4)]
    (photos := tmp_path / "photos").mkdir()
    for number in range(PHOTOS):
        (photos / f"{number:03}.jpg").write_bytes(b"no image" if number in (5, 57) else small[number % 4])
    return photos


class Job:
    """The command, in a process of its own."""

    def __init__(self, process: ForkedServer, log: Path) -> None:
        self.process, self._log = process, log

    def ended(self) -> tuple[int, str]:
        """Exit code, and what was said."""
        code = self.process.wait(PATIENCE)
        said = self._log.read_text()
        assert "Traceback" not in said
        return code, said


@contextlib.contextmanager
def job(folder: Path, server: Server, *options: str, output: str = "out.jsonl") -> Iterator[Job]:
    """Start the command; it is killed if the block leaves it."""
    (log := folder.parent / "log").write_text("")
    command = ("predict", str(folder), "--server", server.url, "--output", str(folder.parent / output), "--top-k", "1")
    process = forker(FAKE).start(*command, *options, environment=environment(), output=log)
    try:
        yield Job(process, log)
    finally:
        process.kill()
        process.wait(PATIENCE)


def rows(folder: Path, output: str = "out.jsonl") -> list[tuple[Any, ...]]:
    """The output's rows, without the last digits of probabilities: the stand-in's depend on the batch a little."""
    found = [json.loads(line) for line in (folder.parent / output).read_text().splitlines()]
    return [(row["path"], row["size"], row["error"], row["label"], round(row["probability"] or 0, 4)) for row in found]


def images(server: Server) -> float:
    """How many images it has answered."""
    return sum(value for name, value in server.metrics().items() if name.startswith("condconv_version_rows_total"))


@contextlib.contextmanager
def stuck_job(folder: Path, server: Server, *options: str, output: str = "out.jsonl") -> Iterator[Job]:
    """A job whose third request is under way, and gets no answer before `server.fault()`. The first one is kept."""
    done = images(server)
    server.fault(f"after {ENOUGH} hold rows")
    with job(folder, server, "--concurrency", "1", *options, output=output) as running:
        wait_for(lambda: images(server) >= done + ENOUGH)
        assert running.process.poll() is None
        yield running


def stop_listening(server: Server) -> None:
    """Let it take no more requests, and answer those that it has."""
    server.terminate()
    wait_for(server.refuses_connections)
    server.fault()
    server.stop()


def test_killed_and_interrupted_jobs_go_on(folder: Path) -> None:
    """Their output is the one of a job that nobody disturbs, and nothing is asked twice but what was under way."""
    with Server() as server:
        with job(folder, server, output="whole.jsonl") as undisturbed:
            code, said = undisturbed.ended()
        assert (code, "whole.jsonl: 112 images, 2 failed (unsupported_image 2)" in said) == (1, True)
        whole = rows(folder, "whole.jsonl")
        assert len(whole) == PHOTOS
        for number, exit_code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
            before, output = images(server), f"{number.name}.jsonl"
            with stuck_job(folder, server, output=output) as running:
                running.process.send_signal(number)
                code, said = running.ended()
            assert code == exit_code
            if number != signal.SIGKILL:
                assert f"{output}: " in said.partition("interrupted; wrote ")[2]
                assert said.endswith("To go on, run the same command again.\n")
                part = rows(folder, output)
                assert AT_ONCE <= len(part) < PHOTOS
                assert part == [row for row in whole if row in part]
            server.fault()
            with job(folder, server, output=output) as last:
                assert last.ended()[0] == 1
            assert rows(folder, output) == whole
            assert images(server) - before <= PHOTOS + 2 * AT_ONCE


def test_a_server_that_restarts_in_between(folder: Path) -> None:
    (port,) = free_ports(1)
    with Server(port=port) as first, stuck_job(folder, first) as running:
        stop_listening(first)
        assert running.process.poll() is None
        with Server(port=port):
            code, said = running.ended()
    assert (code, "112 images, 2 failed (unsupported_image 2)" in said) == (1, True)


def test_a_server_that_stays_away(folder: Path) -> None:
    """What was answered is in the output, and the next run goes on."""
    with Server() as server, stuck_job(folder, server, "--patience", "8") as running:
        stop_listening(server)
        code, said = running.ended()
    assert code == 1
    assert "To go on, run the same command again.\nerror: The server at " in said
    answered = sum(error != "deadline_exceeded" for _, _, error, _, _ in rows(folder))
    assert 0 < answered < PHOTOS
    with Server() as server, job(folder, server) as running:
        code, _ = running.ended()
        assert images(server) <= PHOTOS - answered
    assert (code, len(rows(folder))) == (1, PHOTOS)


def test_a_server_with_a_short_queue(folder: Path) -> None:
    """It refuses again and again, and every photo is answered in the end."""
    with Server(max_queue_rows=4, max_images_per_request=4) as server:
        server.fault("hold rows")
        with job(folder, server, "--concurrency", "8") as running:
            wait_for(lambda: server.metrics().get('condconv_rejected_total{reason="queue_full"}', 0) > 0)
            server.fault("slow 0.01")
            code, said = running.ended()
    assert (code, "112 images, 2 failed (unsupported_image 2)" in said) == (1, True)
