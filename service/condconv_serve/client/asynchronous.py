"""The client for asyncio: as `Client`, with coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

import httpx

from condconv_serve.client import calls
from condconv_serve.client.answers import read_ablation, read_detection_ablation
from condconv_serve.client.calls import Call
from condconv_serve.client.connection import Connection, Verify
from condconv_serve.client.exchange import exchange, is_ready, until_ready
from condconv_serve.client.live import LiveRouting
from condconv_serve.client.many import DETECT, FEATURES, PREDICT, ROUTING, one_image
from condconv_serve.client.models import AliasTarget, ModelDetails, ModelSummary, VersionState
from condconv_serve.client.options import (
    AblationOptions,
    DetectionAblationOptions,
    DetectOptions,
    FeaturesOptions,
    PredictOptions,
    RoutingOptions,
    check_options,
)
from condconv_serve.client.task_sender import Images, TaskSender
from condconv_serve.domain import RoutingChange, Variant
from condconv_serve.inputs import ImageInput
from condconv_serve.results import (
    DetectionAblation,
    ImageAblation,
    ImageDetections,
    ImageFeatures,
    ImagePrediction,
    ImageRouting,
)

Answer = TypeVar("Answer")
Many = Iterable[ImageInput] | AsyncIterable[ImageInput]


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
        self._sender = TaskSender(connection, transport)

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
        await self._sender.close()

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
                `no_cache`, `on_error`; see `condconv_serve.client.options.PredictOptions`.

        Returns:
            The answer about the image; or for several a list in their order, in which an image that failed has `error`.

        Raises:
            ServiceError: the request can't be answered, or the only image can't be used.
        """
        return await self._sender.one_or_many(PREDICT, images, options)

    def predict_iter(self, images: Images, **options: Unpack[PredictOptions]) -> AsyncGenerator[ImagePrediction, None]:
        """Classify many images, and give each answer as it comes, in order. Only a few images are read ahead."""
        return self._sender.many(PREDICT, images, options)

    @overload
    async def routing(self, images: ImageInput, **options: Unpack[RoutingOptions]) -> ImageRouting: ...  # type: ignore[overload-overlap]
    @overload
    async def routing(self, images: Many, **options: Unpack[RoutingOptions]) -> list[ImageRouting]: ...
    async def routing(self, images: Images, **options: Unpack[RoutingOptions]) -> ImageRouting | list[ImageRouting]:
        """The routing weights of an image or of many, with classes or objects and an insight; otherwise as `predict`.

        With a detector it takes the options of `detect`, but for `routing`.
        """
        return await self._sender.one_or_many(ROUTING, images, options)

    def routing_iter(self, images: Images, **options: Unpack[RoutingOptions]) -> AsyncGenerator[ImageRouting, None]:
        """The routing weights of many images; as `predict_iter`."""
        return self._sender.many(ROUTING, images, options)

    @overload
    async def detect(self, images: ImageInput, **options: Unpack[DetectOptions]) -> ImageDetections: ...  # type: ignore[overload-overlap]
    @overload
    async def detect(self, images: Many, **options: Unpack[DetectOptions]) -> list[ImageDetections]: ...
    async def detect(self, images: Images, **options: Unpack[DetectOptions]) -> ImageDetections | list[ImageDetections]:
        """Find the objects in an image, or in many, with a detector: their classes, scores and boxes.

        As `predict`, with the options `model`, `version`, `score_threshold`, `iou_threshold`, `max_detections`,
        `routing`, `timeout`, `priority`, `split_key`, `no_cache` and `on_error`; see
        `condconv_serve.client.options.DetectOptions`.
        """
        return await self._sender.one_or_many(DETECT, images, options)

    def detect_iter(self, images: Images, **options: Unpack[DetectOptions]) -> AsyncGenerator[ImageDetections, None]:
        """The objects in many images; as `predict_iter`."""
        return self._sender.many(DETECT, images, options)

    @overload
    async def features(self, images: ImageInput, **options: Unpack[FeaturesOptions]) -> ImageFeatures: ...  # type: ignore[overload-overlap]
    @overload
    async def features(self, images: Many, **options: Unpack[FeaturesOptions]) -> list[ImageFeatures]: ...
    async def features(self, images: Images, **options: Unpack[FeaturesOptions]) -> ImageFeatures | list[ImageFeatures]:
        """What the classifier reads of an image or of many: a vector by which images can be compared.

        As `predict`, with the options `model`, `version`, `logits`, `timeout`, `priority`, `split_key`, `no_cache` and
        `on_error`.
        """
        return await self._sender.one_or_many(FEATURES, images, options)

    def features_iter(self, images: Images, **options: Unpack[FeaturesOptions]) -> AsyncGenerator[ImageFeatures, None]:
        """The features of many images; as `predict_iter`."""
        return self._sender.many(FEATURES, images, options)

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
        """What a classifier's answer to an image would be without each expert, or with the routings that you give.

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
        check_options(options, AblationOptions, of="ablation")
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
                read=read_ablation,
            )
        )

    async def detection_ablation(
        self,
        image: ImageInput,
        *,
        blocks: Sequence[str] | None = None,
        experts: Sequence[int] | None = None,
        variants: Sequence[Variant | RoutingChange] | None = None,
        uniform: bool = True,
        routing: bool = False,
        **options: Unpack[DetectionAblationOptions],
    ) -> DetectionAblation:
        """Which objects a detector would find in an image without each expert, or with the routings that you give.

        As `ablation`, with the options `score_threshold`, `iou_threshold` and `max_detections` of `detect`, too.
        """
        check_options(options, DetectionAblationOptions, of="detection_ablation")
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
                read=read_detection_ablation,
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

    async def set_alias(
        self, name: str, alias: str, versions: str | Mapping[str, int], *, mirror: Mapping[str, int] | None = None
    ) -> AliasTarget:
        """Point an alias at a version, or at several by weight. Needs a key with the scope `admin`.

        Args:
            name: of the model.
            alias: its name.
            versions: a version, or several with their relative weights.
            mirror: versions that get copies of its requests, with the percentage for each; nothing is mirrored if None.
        """
        return await self._call(calls.set_alias(name, alias, versions, mirror=mirror))

    async def roll_back_alias(self, name: str, alias: str) -> AliasTarget:
        """Point an alias back to where it pointed before. Needs a key with the scope `admin`."""
        return await self._call(calls.roll_back_alias(name, alias))

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Needs a key with the scope `admin`."""
        await self._call(calls.delete_alias(name, alias))

    # --- health

    async def ready(self) -> bool:
        """Whether the server takes requests. It doesn't while it loads its models or shuts down, or if it is away."""
        return await self._sender.run(is_ready(self._sender.policy))

    async def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Wait until the server takes requests.

        Raises:
            ServiceError: why it still doesn't after so many seconds.
        """
        await self._sender.run(until_ready(self._sender.policy, seconds=seconds))

    async def _call(self, call: Call[Answer]) -> Answer:
        return await self._sender.run(exchange(call, self._sender.policy))
