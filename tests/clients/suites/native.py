"""Our own way in, beside the others: `/predict` says the same when everybody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.clients.given import Given
from tests.e2e.server import probabilities

Agrees = Callable[[Callable[[bytes], Any]], None]


def test_a_hundred_photos(given: Given, agrees: Agrees) -> None:
    with httpx.Client(base_url=f"http://{given.http}", timeout=60) as client:
        agrees(lambda photo: probabilities(client.post("/predict?top_k=1000", content=photo))[0])
