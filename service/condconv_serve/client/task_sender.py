"""Sends requests and waits for answers, in tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import TypeVar, cast

import httpx

from condconv_serve.client.answers import Reply
from condconv_serve.client.connection import Connection, reply_of, request_of
from condconv_serve.client.exchange import Pause, Send, Work
from condconv_serve.client.many import Kind, Loaded, Packer, Result, answer_one, answer_some, in_turn, load
from condconv_serve.client.options import CallOptions
from condconv_serve.inputs import GivenImage, GivenImages, ImageInput, ImagesInput, images_of

Answer = TypeVar("Answer")
Images = ImagesInput | AsyncIterable[ImageInput]


class TaskSender:
    """Does what calls are made of, for any number of tasks at once."""

    def __init__(self, connection: Connection, transport: httpx.AsyncBaseTransport | None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            connection: where to, and how.
            transport: sends requests in place of HTTPX's own.
        """
        self.policy = connection.policy
        self._url = connection.url
        self._concurrency = connection.concurrency
        self._http = httpx.AsyncClient(**connection.options, transport=transport)

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def run(self, work: Work[Answer]) -> Answer:
        """Do what the work says until it is done."""
        try:
            step = next(work)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = work.send(None)
                    continue
                try:
                    reply = await self._send(step)
                except httpx.RequestError as error:
                    step = work.throw(error)
                else:
                    step = work.send(reply)
        except StopIteration as done:
            return cast(Answer, done.value)

    async def one_or_many(self, kind: Kind[Result], images: Images, options: CallOptions) -> Result | list[Result]:
        """The answer about an image, or a list of answers about many."""
        kind.check(options)
        if isinstance(images, AsyncIterable):
            return [result async for result in self._answers(kind, images, options)]
        given = await asyncio.to_thread(GivenImages, images)
        if not given.alone:
            return [result async for result in self._answers(kind, given, options)]
        (image,) = await asyncio.to_thread(list, given)
        loaded = await asyncio.to_thread(load, image, keep=False)
        return await self.run(answer_one(kind, loaded, options, self.policy))

    def many(self, kind: Kind[Result], images: Images, options: CallOptions) -> AsyncGenerator[Result, None]:
        """The answers about many images, each as it comes."""
        kind.check(options)  # now, not when the first answer is asked for
        return self._answers(kind, images if isinstance(images, AsyncIterable) else GivenImages(images), options)

    async def _send(self, step: Send) -> Reply:
        request = request_of(self._http, step)
        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.send(request)
        except TimeoutError as error:
            raise httpx.ReadTimeout("the answer came too slowly", request=request) from error
        return reply_of(response, response.content, self._url)

    async def _answers(
        self, kind: Kind[Result], images: GivenImages | AsyncIterable[ImageInput], options: CallOptions
    ) -> AsyncGenerator[Result, None]:
        free = asyncio.Semaphore(self._concurrency)
        coming: deque[asyncio.Task[list[Result]]] = deque()

        async def ask(some: Sequence[Loaded]) -> list[Result]:
            async with free:
                return await self.run(answer_some(kind, some, options, self.policy))

        def send(requests: Iterable[list[Loaded]]) -> None:
            coming.extend(asyncio.create_task(ask(some)) for some in requests)

        packer, unknown = Packer(self.policy), not isinstance(images, GivenImages) or images.total is None
        try:
            async for image in _each(images):
                # Nobody knows when the next image of an iterator comes, so none waits for it while a request is free.
                idle = unknown and sum(not one.done() for one in coming) < self._concurrency
                send(packer.add(await asyncio.to_thread(load, image, keep=True), at_once=idle))
                # Twice as many, so that one slow request keeps no others waiting.
                while coming and (coming[0].done() or len(coming) >= 2 * self._concurrency):
                    for result in in_turn(await coming.popleft(), options):
                        yield result
            send(packer.rest())
            while coming:
                for result in in_turn(await coming.popleft(), options):
                    yield result
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)


async def _each(images: GivenImages | AsyncIterable[ImageInput]) -> AsyncIterator[GivenImage]:
    """The images one by one; what blocks is done on a thread."""
    if isinstance(images, AsyncIterable):
        place = 0
        async for item in images:
            found = await asyncio.to_thread(images_of, item, place)
            place += len(found)
            for image in found:
                yield image
        return
    waiting = iter(images)
    while (following := await asyncio.to_thread(_next, waiting)) is not None:
        yield following


def _next(images: Iterator[GivenImage]) -> GivenImage | None:
    return next(images, None)
