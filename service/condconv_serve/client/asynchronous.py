"""The client for asyncio: as `Client`, with coroutines."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack, cast, overload

import httpx

from condconv_serve.client import calls
from condconv_serve.client.answers import Reply
from condconv_serve.client.calls import Call
from condconv_serve.client.connection import Connection, Verify, reply_of, request_of
from condconv_serve.client.exchange import Pause, Send, Work, exchange, is_ready, until_ready
from condconv_serve.client.live import LiveRouting
from condconv_serve.client.many import (
    FEATURES,
    PREDICT,
    ROUTING,
    Kind,
    Loaded,
    Packer,
    Result,
    answer_one,
    answer_some,
    in_turn,
    load,
    one_image,
)
from condconv_serve.client.models import AliasTarget, ModelDetails, ModelSummary, VersionState
from condconv_serve.client.options import AblationOptions, CallOptions, FeaturesOptions, PredictOptions, RoutingOptions
from condconv_serve.domain import RoutingChange, Variant
from condconv_serve.inputs import GivenImage, GivenImages, ImageInput, ImagesInput, images_of
from condconv_serve.results import ImageAblation, ImageFeatures, ImagePrediction, ImageRouting

Answer = TypeVar("Answer")
Many = Iterable[ImageInput] | AsyncIterable[ImageInput]
Images = ImagesInput | AsyncIterable[ImageInput]


class AsyncClient:
    """A server's answers in Python, for asyncio: as `Client`, with coroutines.

    ```python
    async with AsyncClient("http://127.0.0.1:8000") as client:
        print((await client.predict("photo.jpg")).label)
    ```

    Tasks of one event loop may share it. Cancelling a call ends its requests, and the server drops their images. Errors
    and repetitions are those of `Client`. Many images may come from an asynchronous iterable, too.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        concurrency: int = 4,
        verify: Verify = True,
        proxy: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare to talk to a server. Nothing is sent yet.

        Args:
            url: where it listens, with the path prefix if it has one, such as `https://example.org/classify`. Default:
                `CONDCONV_URL`, or else `http://127.0.0.1:8000`.
            api_key: if the server needs keys. Default: `CONDCONV_API_KEY`; `""` sends none.
            timeout: seconds that a request may take, its repetitions included. Calls about images may give their own.
            retries: how often a request is sent again at most.
            concurrency: how many requests of one call are under way at once.
            verify: False takes any certificate; or a file or directory of authorities; or an `ssl.SSLContext`.
            proxy: address of a proxy. Default: what `HTTP_PROXY` and the like say.
            transport: sends requests in place of HTTPX's own.

        Raises:
            ConfigurationError: there can be no such server, key, proxy, or certificates.
            InvalidParameter: a number is impossible.
        """
        connection = Connection(
            url,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            verify=verify,
            proxy=proxy,
        )
        self.url = connection.url
        self._policy = connection.policy
        self._concurrency = concurrency
        self._http = httpx.AsyncClient(**connection.options, transport=transport)

    async def __aenter__(self) -> Self:
        """Keep connections until the block ends."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections. The client can't be used any more."""
        await self._http.aclose()

    def __repr__(self) -> str:
        """Which server it asks."""
        return f"<AsyncClient of {self.url}>"

    # --- images

    @overload
    async def predict(self, images: ImageInput, **options: Unpack[PredictOptions]) -> ImagePrediction: ...  # type: ignore[overload-overlap]
    @overload
    async def predict(self, images: Many, **options: Unpack[PredictOptions]) -> list[ImagePrediction]: ...
    async def predict(
        self, images: Images, **options: Unpack[PredictOptions]
    ) -> ImagePrediction | list[ImagePrediction]:
        """Classify an image, or many.

        Args:
            images: a file's name, bytes, an open file, a PIL image or an array, uint8 `[height, width]` or
                `[height, width, channels]`; or many: any iterable of these, an array `[N, height, width, channels]`,
                the name of a folder, or a pattern such as `"photos/*.jpg"`. Many are sent in requests of a few images
                each, some at once. Type checkers take a lone name for one image, so give them a folder as `[folder]`.
            options: `model`, `version`, `top_k`, `threshold`, `routing`, `timeout`, `priority`, `split_key`,
                `on_error`; see `condconv_serve.client.options.PredictOptions`.

        Returns:
            The answer about the image; or for several a list in their order, in which an image that failed has `error`.

        Raises:
            ServiceError: the request can't be answered, or the only image can't be used.
        """
        return await self._one_or_many(PREDICT, images, options)

    def predict_iter(self, images: Images, **options: Unpack[PredictOptions]) -> AsyncGenerator[ImagePrediction, None]:
        """Classify many images, and give each answer as it comes, in order. Only a few images are read ahead."""
        return self._many(PREDICT, images, options)

    @overload
    async def routing(self, images: ImageInput, **options: Unpack[RoutingOptions]) -> ImageRouting: ...  # type: ignore[overload-overlap]
    @overload
    async def routing(self, images: Many, **options: Unpack[RoutingOptions]) -> list[ImageRouting]: ...
    async def routing(self, images: Images, **options: Unpack[RoutingOptions]) -> ImageRouting | list[ImageRouting]:
        """The routing weights of an image or of many, with classes and an insight; otherwise as `predict`."""
        return await self._one_or_many(ROUTING, images, options)

    def routing_iter(self, images: Images, **options: Unpack[RoutingOptions]) -> AsyncGenerator[ImageRouting, None]:
        """The routing weights of many images; as `predict_iter`."""
        return self._many(ROUTING, images, options)

    @overload
    async def features(self, images: ImageInput, **options: Unpack[FeaturesOptions]) -> ImageFeatures: ...  # type: ignore[overload-overlap]
    @overload
    async def features(self, images: Many, **options: Unpack[FeaturesOptions]) -> list[ImageFeatures]: ...
    async def features(self, images: Images, **options: Unpack[FeaturesOptions]) -> ImageFeatures | list[ImageFeatures]:
        """What the classifier reads of an image or of many: a vector by which images can be compared.

        As `predict`, with the options `model`, `version`, `logits`, `timeout`, `priority`, `split_key` and `on_error`.
        """
        return await self._one_or_many(FEATURES, images, options)

    def features_iter(self, images: Images, **options: Unpack[FeaturesOptions]) -> AsyncGenerator[ImageFeatures, None]:
        """The features of many images; as `predict_iter`."""
        return self._many(FEATURES, images, options)

    async def ablation(
        self,
        image: ImageInput,
        *,
        blocks: Sequence[str] | None = None,
        experts: Sequence[int] | None = None,
        variants: Sequence[Variant | RoutingChange] | None = None,
        uniform: bool = True,
        routing: bool = False,
        **options: Unpack[AblationOptions],
    ) -> ImageAblation:
        """What the answer to an image would be without each expert, or with the routings that you give.

        Args:
            image: as for `predict`.
            blocks: names of the blocks whose experts are switched off one by one; all if None.
            experts: which experts of these blocks; all if None.
            variants: try exactly these routings instead.
            uniform: whether to try uniform routing, too, in each of the blocks.
            routing: whether to return the routing weights of each variant.
            options: `model`, `version`, `timeout`.

        Raises:
            ServiceError: the image can't be used, there is no such block or expert, or too many ablations wait.
        """
        source = await asyncio.to_thread(one_image, image)
        return await self._call(
            calls.ablation(
                source,
                blocks=blocks,
                experts=experts,
                variants=variants,
                uniform=uniform,
                routing=routing,
                options=options,
            )
        )

    async def recent_routing(self, request_id: str) -> list[ImageRouting]:
        """The answer to a recent request of yours, by its `request_id`.

        Raises:
            RoutingNotFound: the server doesn't have it any more, or another key sent it.
        """
        return await self._call(calls.recent_routing(request_id))

    async def live_routing(
        self,
        *,
        model: str | None = None,
        version: str | None = None,
        window: str | None = None,
        classes: int | None = None,
    ) -> LiveRouting:
        """What live traffic does: how each expert is used, and drift from the reference profile.

        Args:
            model: name of the model; the default one if None.
            version: its version, or an alias.
            window: `1m`, `15m` or `all`; the server's choice if None.
            classes: how many of the most frequent classes to list.
        """
        return await self._call(calls.live_routing(model=model, version=version, window=window, classes=classes))

    # --- models

    async def models(self) -> tuple[ModelSummary, ...]:
        """All models of the server's store."""
        return await self._call(calls.models())

    async def model(self, name: str, version: str | None = None) -> ModelDetails:
        """One served version of a model, in full; the version may be an alias."""
        return await self._call(calls.model(name, version))

    async def aliases(self, name: str) -> Mapping[str, AliasTarget]:
        """A model's aliases, by name."""
        return await self._call(calls.aliases(name))

    async def load_version(self, name: str, version: str) -> VersionState:
        """Make the server load a version from its store, and keep it. Needs a key with the scope `admin`."""
        return await self._call(calls.load_version(name, version))

    async def unload_version(self, name: str, version: str) -> VersionState:
        """Make the server unload a version. Needs a key with the scope `admin`."""
        return await self._call(calls.unload_version(name, version))

    async def set_alias(self, name: str, alias: str, versions: str | Mapping[str, int]) -> AliasTarget:
        """Point an alias at a version, or at several by weight. Needs a key with the scope `admin`."""
        return await self._call(calls.set_alias(name, alias, versions))

    async def roll_back_alias(self, name: str, alias: str) -> AliasTarget:
        """Point an alias back to where it pointed before. Needs a key with the scope `admin`."""
        return await self._call(calls.roll_back_alias(name, alias))

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Needs a key with the scope `admin`."""
        await self._call(calls.delete_alias(name, alias))

    # --- health

    async def ready(self) -> bool:
        """Whether the server takes requests. It doesn't while it loads its models or shuts down, or if it is away."""
        return await self._run(is_ready(self._policy))

    async def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Wait until the server takes requests.

        Raises:
            ServiceError: why it still doesn't after so many seconds.
        """
        await self._run(until_ready(self._policy, seconds=seconds))

    # --- sending and waiting

    async def _call(self, call: Call[Answer]) -> Answer:
        return await self._run(exchange(call, self._policy))

    async def _run(self, work: Work[Answer]) -> Answer:
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

    async def _send(self, step: Send) -> Reply:
        request = request_of(self._http, step)
        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.send(request)
        except TimeoutError as error:
            raise httpx.ReadTimeout("the answer came too slowly", request=request) from error
        return reply_of(response, response.content, self.url)

    async def _one_or_many(self, kind: Kind[Result], images: Images, options: CallOptions) -> Result | list[Result]:
        kind.check(options)
        if isinstance(images, AsyncIterable):
            return [result async for result in self._answers(kind, images, options)]
        given = await asyncio.to_thread(GivenImages, images)
        if not given.alone:
            return [result async for result in self._answers(kind, given, options)]
        (image,) = await asyncio.to_thread(list, given)
        loaded = await asyncio.to_thread(load, image, keep=False)
        return await self._run(answer_one(kind, loaded, options, self._policy))

    def _many(self, kind: Kind[Result], images: Images, options: CallOptions) -> AsyncGenerator[Result, None]:
        kind.check(options)  # now, not when the first answer is asked for
        return self._answers(kind, images if isinstance(images, AsyncIterable) else GivenImages(images), options)

    async def _answers(
        self, kind: Kind[Result], images: GivenImages | AsyncIterable[ImageInput], options: CallOptions
    ) -> AsyncGenerator[Result, None]:
        free = asyncio.Semaphore(self._concurrency)
        coming: deque[asyncio.Task[list[Result]]] = deque()

        async def ask(some: Sequence[Loaded]) -> list[Result]:
            async with free:
                return await self._run(answer_some(kind, some, options, self._policy))

        def send(requests: Iterable[list[Loaded]]) -> None:
            coming.extend(asyncio.create_task(ask(some)) for some in requests)

        packer, unknown = Packer(self._policy), not isinstance(images, GivenImages) or images.total is None
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
