"""Traffic whose answers are known, to run beside a fault: whatever happens, each photograph must get its own answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np

from condconv_serve.domain import Pixels
from tests import pictures
from tests.e2e.server import new_client, probabilities

TOLERANCE = 1e-4
PATH = "/predict?top_k=1000"


def photos(count: int = 16) -> list[bytes]:
    """Different crops of four photographs, as JPEGs."""
    crops = []
    for i in range(count):
        pixels = pictures.photo(list(pictures.PHOTOS)[i % 4], (400, 300))
        crops.append(pictures.jpeg(pixels[8 * (i // 4) : 8 * (i // 4) + 200, 10 * (i // 4) : 10 * (i // 4) + 260]))
    return crops


def plain(colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    pixels: Pixels = np.full((224, 224, 3), colour, np.uint8)
    return pictures.encode(pixels, "PNG")


@dataclass
class Traffic:
    """Photos and the answers that each got when it was alone."""

    photos: list[bytes]
    expected: list[list[float]]
    responses: list[httpx.Response] = field(default_factory=list)

    @classmethod
    def learn(cls, client: httpx.Client, count: int = 16) -> Traffic:
        """Ask for each photo alone."""
        taken = photos(count)
        return cls(taken, [probabilities(client.post(PATH, content=photo))[0] for photo in taken])

    def check(self, number: int, response: httpx.Response) -> None:
        """The response must be the answer for the photo of that number."""
        (found,) = probabilities(response)
        assert np.abs(np.subtract(found, self.expected[number])).max() <= TOLERANCE

    @contextmanager
    def flowing(self, url: str, clients: int = 8, *, pause: float = 0) -> Iterator[list[tuple[int, httpx.Response]]]:
        """Let clients ask again and again while the block runs; afterwards every answer must have been right.

        They ask without pause, or with one between an answer and the next request.
        Yields the answers with the numbers of their photos, to which more are added as they come.
        """
        ended = threading.Event()
        answers: list[tuple[int, httpx.Response]] = []

        def ask(client_number: int) -> None:
            with new_client(url) as client:
                number = client_number
                while not ended.wait(pause):
                    number = (number + 1) % len(self.photos)
                    answers.append((number, client.post(PATH, content=self.photos[number])))

        with ThreadPoolExecutor(clients) as pool:
            futures = [pool.submit(ask, i) for i in range(clients)]
            try:
                yield answers
            finally:
                ended.set()
            for future in futures:
                future.result()
        assert len(answers) >= clients
        for number, response in answers:
            self.check(number, response)
        self.responses = [response for _, response in answers]
