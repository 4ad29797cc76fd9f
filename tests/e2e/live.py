"""Traffic beside changes of versions, and what a server says of these."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e.server import new_client
from tests.e2e.tiny_models import answered_by

MODEL = "tiny"
PAUSE = 0.02
"""Between an answer and the client's next request, so that the server has time for its versions."""


def served(client: httpx.Client, model: str = MODEL) -> list[str]:
    return next((m["versions"] for m in client.get("/models").json()["models"] if m["name"] == model), [])


def state(client: httpx.Client, version: str, model: str = MODEL) -> dict[str, str]:
    versions = next(m["all_versions"] for m in client.get("/models").json()["models"] if m["name"] == model)
    return next((v for v in versions if v["version"] == version), {})


class Load:
    """Clients that ask again and again, for single images and for several."""

    def __init__(self, url: str, photo: bytes, *, query: str = "", clients: int = 4, pause: float = PAUSE) -> None:
        self.answers: Counter[str] = Counter()
        self.problems: list[str] = []
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(url, photo, query, number)) for number in range(clients)
        ]

    def _ask(self, url: str, photo: bytes, query: str, number: int) -> None:
        with new_client(url) as client:
            while not self._stop.wait(self._pause):
                files = [("image", (str(i), photo)) for i in range(1 + 4 * (number % 2))]
                try:
                    self.answers[answered_by(client.post(f"/predict?top_k=1{query}", files=files))] += 1
                except (AssertionError, httpx.HTTPError) as error:
                    self.problems.append(str(error) or repr(error))

    @contextmanager
    def flowing(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        assert self.problems == [], self.problems[:3]


def rewrite(path: Path, **changes: object) -> None:
    """Change fields of a bundle's manifest."""
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
