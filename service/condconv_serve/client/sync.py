"""The client for threads, scripts and notebooks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
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
from condconv_serve.client.threads import started
from condconv_serve.domain import RoutingChange, Variant
from condconv_serve.inputs import GivenImages, ImageInput, ImagesInput
from condconv_serve.results import ImageAblation, ImageFeatures, ImagePrediction, ImageRouting

Answer = TypeVar("Answer")


class Client:
    """A server's answers in Python.

    ```python
    with Client("http://127.0.0.1:8000") as client:
        print(client.predict("photo.jpg").label)
    ```

    Threads may share it. It keeps its connections open: close it, or use it as a context manager.

    Errors are those of `condconv_serve.errors`, as the server tells them. Besides, every call may raise `RemoteFailed`
    (the server can't be reached, or what answers isn't condconv-serve) and `DeadlineExceeded` (no answer in time).
    What only reads or computes is sent again where that may help: after lost connections, and when the server is busy,
    starts or ends. `Retry-After` is honoured. What changes the server is sent once.
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
        transport: httpx.BaseTransport | None = None,
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
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._under_way = 0
        self._http = httpx.Client(**connection.options, transport=transport)

    def __enter__(self) -> Self:
        """Keep connections until the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connections."""
        self.close()

    def close(self) -> None:
        """Close connections. The client can't be used any more. What is under way ends first, on threads of its own."""
        with self._lock:
            self._closed.set()
            idle = not self._under_way
        if idle:
            self._http.close()

    def __repr__(self) -> str:
        """Which server it asks."""
        return f"<Client of {self.url}>"

    # --- images

    @overload
    def predict(self, images: ImageInput, **options: Unpack[PredictOptions]) -> ImagePrediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[ImageInput], **options: Unpack[PredictOptions]) -> list[ImagePrediction]: ...
    def predict(
        self, images: ImagesInput, **options: Unpack[PredictOptions]
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
        return self._one_or_many(PREDICT, images, options)

    def predict_iter(
        self, images: ImagesInput, **options: Unpack[PredictOptions]
    ) -> Generator[ImagePrediction, None, None]:
        """Classify many images, and give each answer as it comes, in order. Only a few images are read ahead."""
        return self._many(PREDICT, images, options)

    @overload
    def routing(self, images: ImageInput, **options: Unpack[RoutingOptions]) -> ImageRouting: ...  # type: ignore[overload-overlap]
    @overload
    def routing(self, images: Iterable[ImageInput], **options: Unpack[RoutingOptions]) -> list[ImageRouting]: ...
    def routing(self, images: ImagesInput, **options: Unpack[RoutingOptions]) -> ImageRouting | list[ImageRouting]:
        """The routing weights of an image or of many, with classes and an insight; otherwise as `predict`."""
        return self._one_or_many(ROUTING, images, options)

    def routing_iter(
        self, images: ImagesInput, **options: Unpack[RoutingOptions]
    ) -> Generator[ImageRouting, None, None]:
        """The routing weights of many images; as `predict_iter`."""
        return self._many(ROUTING, images, options)

    @overload
    def features(self, images: ImageInput, **options: Unpack[FeaturesOptions]) -> ImageFeatures: ...  # type: ignore[overload-overlap]
    @overload
    def features(self, images: Iterable[ImageInput], **options: Unpack[FeaturesOptions]) -> list[ImageFeatures]: ...
    def features(self, images: ImagesInput, **options: Unpack[FeaturesOptions]) -> ImageFeatures | list[ImageFeatures]:
        """What the classifier reads of an image or of many: a vector by which images can be compared.

        As `predict`, with the options `model`, `version`, `logits`, `timeout`, `priority`, `split_key` and `on_error`.
        """
        return self._one_or_many(FEATURES, images, options)

    def features_iter(
        self, images: ImagesInput, **options: Unpack[FeaturesOptions]
    ) -> Generator[ImageFeatures, None, None]:
        """The features of many images; as `predict_iter`."""
        return self._many(FEATURES, images, options)

    def ablation(
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
        source = one_image(image)
        return self._call(
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

    def recent_routing(self, request_id: str) -> list[ImageRouting]:
        """The answer to a recent request of yours, by its `request_id`.

        Raises:
            RoutingNotFound: the server doesn't have it any more, or another key sent it.
        """
        return self._call(calls.recent_routing(request_id))

    def live_routing(
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
        return self._call(calls.live_routing(model=model, version=version, window=window, classes=classes))

    # --- models

    def models(self) -> tuple[ModelSummary, ...]:
        """All models of the server's store."""
        return self._call(calls.models())

    def model(self, name: str, version: str | None = None) -> ModelDetails:
        """One served version of a model, in full; the version may be an alias."""
        return self._call(calls.model(name, version))

    def aliases(self, name: str) -> Mapping[str, AliasTarget]:
        """A model's aliases, by name."""
        return self._call(calls.aliases(name))

    def load_version(self, name: str, version: str) -> VersionState:
        """Make the server load a version from its store, and keep it. Needs a key with the scope `admin`."""
        return self._call(calls.load_version(name, version))

    def unload_version(self, name: str, version: str) -> VersionState:
        """Make the server unload a version. Needs a key with the scope `admin`."""
        return self._call(calls.unload_version(name, version))

    def set_alias(self, name: str, alias: str, versions: str | Mapping[str, int]) -> AliasTarget:
        """Point an alias at a version, or at several by weight. Needs a key with the scope `admin`."""
        return self._call(calls.set_alias(name, alias, versions))

    def roll_back_alias(self, name: str, alias: str) -> AliasTarget:
        """Point an alias back to where it pointed before. Needs a key with the scope `admin`."""
        return self._call(calls.roll_back_alias(name, alias))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Needs a key with the scope `admin`."""
        self._call(calls.delete_alias(name, alias))

    # --- health

    def ready(self) -> bool:
        """Whether the server takes requests. It doesn't while it loads its models or shuts down, or if it is away."""
        return self._run(is_ready(self._policy))

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Wait until the server takes requests.

        Raises:
            ServiceError: why it still doesn't after so many seconds.
        """
        self._run(until_ready(self._policy, seconds=seconds))

    # --- sending and waiting

    def _call(self, call: Call[Answer]) -> Answer:
        return self._run(exchange(call, self._policy))

    def _run(self, work: Work[Answer], given_up: threading.Event | None = None) -> Answer:
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
        return reply_of(response, b"".join(chunks), self.url)

    def _one_or_many(self, kind: Kind[Result], images: ImagesInput, options: CallOptions) -> Result | list[Result]:
        kind.check(options)
        given = GivenImages(images)
        if not given.alone:
            return list(self._answers(kind, given, options))
        (image,) = given
        return self._run(answer_one(kind, load(image, keep=False), options, self._policy))

    def _many(self, kind: Kind[Result], images: ImagesInput, options: CallOptions) -> Generator[Result, None, None]:
        kind.check(options)  # now, not when the first answer is asked for
        return self._answers(kind, GivenImages(images), options)

    def _answers(self, kind: Kind[Result], given: GivenImages, options: CallOptions) -> Generator[Result, None, None]:
        free, given_up = threading.Semaphore(self._concurrency), threading.Event()
        coming: deque[Future[list[Result]]] = deque()

        def ask(some: Sequence[Loaded]) -> list[Result]:
            with free:
                return self._run(answer_some(kind, some, options, self._policy), given_up)

        def send(requests: Iterable[list[Loaded]]) -> None:
            coming.extend(started(partial(ask, some)) for some in requests)

        packer = Packer(self._policy)
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
