"""Clients that send photos one after the other, and remember each answer."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import condconv_serve

PHOTO = (Path(condconv_serve.__file__).parent / "samples" / "coffee.jpg").read_bytes()


class Clients:
    """Threads that POST to `/predict` until they are told to stop; a connection per request, as short-lived callers do.

    `outcomes` counts status codes, `refused` for connections that nobody took, and `lost` for requests that somebody
    took and didn't answer.
    """

    def __init__(
        self,
        address: str,
        *,
        threads: int,
        body: bytes = PHOTO,
        headers: dict[str, str] | None = None,
        pause: float = 0,
    ) -> None:
        """`address` is host:port."""
        self._address = address
        self._body = body
        self._headers = {"Connection": "close", **(headers or {})}
        self._pause = pause
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send_on) for _ in range(threads)]
        self.outcomes: Counter[int | str] = Counter()
        self.troubles: list[str] = []

    def __enter__(self) -> Clients:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for(self, answers: int, *, within: float = 60) -> None:
        """Wait until so many requests more have been answered with 200."""
        wanted = self.outcomes[200] + answers
        deadline = time.monotonic() + within
        while self.outcomes[200] < wanted:
            assert time.monotonic() < deadline, f"{self.outcomes} {self.troubles[-3:]}"
            time.sleep(0.05)

    def _send_on(self) -> None:
        while not self._stop.is_set():
            outcome = self._send()
            with self._lock:
                self.outcomes[outcome] += 1
            self._stop.wait(0.05 if outcome == "refused" else self._pause)

    def _send(self) -> int | str:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.connect()
        except OSError:
            return "refused"
        try:
            connection.request("POST", "/predict", self._body, self._headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.troubles.append(repr(error))
            return "lost"
        finally:
            connection.close()
        if answer.status != 200:
            self.troubles.append(text.decode(errors="replace")[:300])
        return answer.status


def without(outcomes: Counter[int | str], expected: Sequence[int | str]) -> dict[int | str, int]:
    """What else happened."""
    return {outcome: number for outcome, number in outcomes.items() if outcome not in expected and number}
