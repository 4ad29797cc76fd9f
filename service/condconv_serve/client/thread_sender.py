"""Sends requests and waits for answers, on threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar, cast

import httpx

from condconv_serve.client.answers import Reply
from condconv_serve.client.connection import Connection, reply_of, request_of
from condconv_serve.client.exchange import Pause, Send, Work
from condconv_serve.client.many import Kind, Loaded, Packer, Result, answer_one, answer_some, in_turn, load
from condconv_serve.client.options import CallOptions
from condconv_serve.client.threads import started
from condconv_serve.inputs import GivenImages, ImagesInput

Answer = TypeVar("Answer")


class ThreadSender:
    """Does what calls are made of, for any number of threads at once."""

    def __init__(self, connection: Connection, transport: httpx.BaseTransport | None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            connection: where to, and how.
            transport: sends requests in place of HTTPX's own.
        """
        self.policy = connection.policy
        self._url = connection.url
        self._concurrency = connection.concurrency
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._under_way = 0
        self._http = httpx.Client(**connection.options, transport=transport)

    def close(self) -> None:
        """Send no more. What is under way ends first, on threads of its own."""
        with self._lock:
            self._closed.set()
            idle = not self._under_way
        if idle:
            self._http.close()

    def run(self, work: Work[Answer], given_up: threading.Event | None = None) -> Answer:
        """Do what the work says until it is done, or nobody waits for it any more."""
        given_up = given_up or self._closed
        try:
            step = next(work)
            while True:
                if given_up.wait(step.seconds if isinstance(step, Pause) else 0):
                    raise RuntimeError("The client is closed.")
                if isinstance(step, Pause):
                    step = work.send(None)
                    continue
                try:
                    reply = self._send(step)
                except httpx.RequestError as error:
                    step = work.throw(error)
                else:
                    step = work.send(reply)
        except StopIteration as done:
            return cast(Answer, done.value)

    def one_or_many(self, kind: Kind[Result], images: ImagesInput, options: CallOptions) -> Result | list[Result]:
        """The answer about an image, or a list of answers about many."""
        kind.check(options)
        given = GivenImages(images)
        if not given.alone:
            return list(self._answers(kind, given, options))
        (image,) = given
        return self.run(answer_one(kind, load(image, keep=False), options, self.policy))

    def many(self, kind: Kind[Result], images: ImagesInput, options: CallOptions) -> Generator[Result, None, None]:
        """The answers about many images, each as it comes."""
        kind.check(options)  # now, not when the first answer is asked for
        return self._answers(kind, GivenImages(images), options)

    def _send(self, step: Send) -> Reply:
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("The client is closed.")
            self._under_way += 1
        try:
            return self._exchange(step)
        finally:
            with self._lock:
                self._under_way -= 1
                last = self._closed.is_set() and not self._under_way
            if last:  # a connection must not be closed while another thread reads from it
                self._http.close()

    def _exchange(self, step: Send) -> Reply:
        request = request_of(self._http, step)
        end = time.monotonic() + step.seconds
        response = self._http.send(request, stream=True)
        try:
            chunks: list[bytes] = []
            for chunk in response.iter_bytes():
                chunks.append(chunk)
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer came too slowly", request=request)
        finally:
            response.close()
        return reply_of(response, b"".join(chunks), self._url)

    def _answers(self, kind: Kind[Result], given: GivenImages, options: CallOptions) -> Generator[Result, None, None]:
        free, given_up = threading.Semaphore(self._concurrency), threading.Event()
        coming: deque[Future[list[Result]]] = deque()

        def ask(some: Sequence[Loaded]) -> list[Result]:
            with free:
                return self.run(answer_some(kind, some, options, self.policy), given_up)

        def send(requests: Iterable[list[Loaded]]) -> None:
            coming.extend(started(partial(ask, some)) for some in requests)

        packer = Packer(self.policy)
        try:
            for image in given:
                # Nobody knows when the next image of an iterator comes, so none waits for it while a request is free.
                idle = given.total is None and sum(not one.done() for one in coming) < self._concurrency
                send(packer.add(load(image, keep=True), at_once=idle))
                # Twice as many, so that one slow request keeps no others waiting.
                while coming and (coming[0].done() or len(coming) >= 2 * self._concurrency):
                    yield from in_turn(coming.popleft().result(), options)
            send(packer.rest())
            while coming:
                yield from in_turn(coming.popleft().result(), options)
        finally:
            given_up.set()
