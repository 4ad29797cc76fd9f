"""The values and protocols that cross module borders. Frozen, and free of HTTP, TensorFlow and Pillow."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ServiceError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
TransformName = Literal["official", "pillow"]
Pixels = NDArray[np.uint8]
"""RGB, uint8: a whole photo `[height, width, 3]`."""
Row = NDArray[np.generic]
"""RGB on the scale 0..255, `[image_size, image_size, 3]`: a photo as the network takes it, or several `[B, ...]`.

Which type it has is `Preprocessing.row_type`; engines take uint8 in any case."""
JpegCropper = Callable[[bytes, int, int, int], Pixels | None]
"""Decodes the square with the corner `left, top` and the side `side` of a JPEG; None if it can't."""


def readable(path: str | os.PathLike[str]) -> str:
    r"""A file's name for documents, which are UTF-8: bytes that are none are spelled out, as in `caf\xe9.jpg`."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def can_be_label(text: str) -> bool:
    """Whether a class can be called so: not blank, UTF-8, and without control characters."""
    return bool(text.strip()) and readable(text) == text and not _CONTROL.search(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What happens to a photo before the network sees it.

    `transform` and `image_size` (pixels) are applied outside the graph and give a `Row`; `(x - mean) / std` per
    channel, on the scale 0..255, is applied inside.
    """

    transform: TransformName
    image_size: int
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    crop_padding: int = 32
    """The centre crop takes `image_size / (image_size + crop_padding)` of the short side."""
    exact_decoding: bool = False
    """Whether the network sees the very pixels that the reference evaluation sees.

    If so, large JPEGs are decoded at full size, too, instead of at a fraction that leaves enough pixels; and those of
    `official` with TensorFlow's decoder, and its rows are not rounded to whole levels.
    """

    @property
    def row_type(self) -> type[np.uint8] | type[np.float32]:
        """What rows are made of."""
        return np.float32 if self.exact_decoding and self.transform == "official" else np.uint8


@dataclass(frozen=True, slots=True)
class Label:
    """The name of one class; `synset` is its WordNet id where it has one."""

    index: int
    label: str
    synset: str | None = None


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What the network says of `B` rows: `logits` float32 `[B, classes]`, `routing` float32 `[B, blocks, experts]`."""

    logits: NDArray[np.float32]
    routing: NDArray[np.float32]


class Engine(Protocol):
    """Computes a batch: rows `[B, image_size, image_size, 3]` in, a `ModelOutput` out. Thread-safe, any `B`."""

    def __call__(self, rows: Row, stream: int = 0, /) -> ModelOutput:
        """Compute all rows in one pass; `stream` is the number of the calling stream."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What computes a model, and the reason why this engine was chosen."""

    engine: str
    precision: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedModel:
    """One version of a model, ready to compute. Compared by identity: a reloaded version is another one."""

    name: str
    version: str
    engine: Engine
    labels: Sequence[Label]
    preprocessing: Preprocessing
    routing_blocks: tuple[str, ...]
    """Names of the CondConv blocks, in the order of the second axis of `ModelOutput.routing`."""
    num_experts: int
    """The most experts of any block; the third axis of `ModelOutput.routing`."""
    computed_by: EngineDescription
    description: Mapping[str, Any] = field(default_factory=dict)
    """What `GET /models/{name}` tells of it."""
    experts_per_block: tuple[int, ...] | None = None
    """Experts of each block, where they differ from `num_experts`; what a block has less is zero in the arrays."""
    crop_jpeg: JpegCropper | None = None
    """What decodes its JPEGs, if not what decodes all other photos."""
    routing_profile: RoutingProfile | None = None
    """What its routing looks like on known images; the bundle may carry it."""

    @property
    def experts(self) -> tuple[int, ...]:
        """How many experts each block has."""
        return self.experts_per_block or (self.num_experts,) * len(self.routing_blocks)


class ModelSource(Protocol):
    """Where the classifier finds its models."""

    def get(self, name: str | None, version: str | None, *, key: str | None = None) -> ServedModel:
        """Return the model.

        Args:
            name: of the model; None means the default one.
            version: its version, or an alias; None means the alias `default`, or the newest if there is no such alias.
            key: where an alias splits traffic, equal keys get equal versions, and no key the one with the most weight.

        Raises:
            ModelNotFound: no such model is served.
            VersionNotFound: the model is not served in this version.
        """
        ...

    def lease(
        self, name: str | None, version: str | None, *, key: str | None = None
    ) -> contextlib.AbstractContextManager[ServedModel]:
        """Return the model like `get`, and keep it loaded until the block ends."""
        ...


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of an answer; `probability` is the softmax over all classes."""

    index: int
    label: str
    synset: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """The routing weights of one image: `weights` float32 `[blocks, experts]`, each the sigmoid's value in 0..1.

    `experts` are those of each block; where it has fewer than others, its row is filled up with zeros. None: all alike.
    """

    blocks: tuple[str, ...]
    weights: NDArray[np.float32]
    experts: tuple[int, ...] | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many experts each block has."""
        return self.experts or (self.weights.shape[-1],) * len(self.blocks)

    def by_block(self) -> dict[str, NDArray[np.float32]]:
        """The weights of each block's own experts, float32 `[experts]`."""
        named = zip(self.blocks, self.weights, self.counts, strict=True)
        return {block: weights[:count] for block, weights, count in named}


@dataclass(frozen=True, slots=True, eq=False)
class RoutingOverrides:
    """The routing of `V` variants of one image.

    Attributes:
        weights: float32 `[V, blocks, experts]`; NaN leaves what the model itself gives, seeing what was changed before.
        uniform: bool `[V, blocks]`: whether every expert whose weight is NaN gets the mean of what the model itself
            gives.
    """

    weights: NDArray[np.float32]
    uniform: NDArray[np.bool_]


class Ablation(Protocol):
    """Computes one image with many routings; not thread-safe."""

    def __call__(self, row: Row, overrides: RoutingOverrides, *, stopped: Callable[[], bool]) -> ModelOutput | None:
        """Compute `V + 1` rows, the first of which is unchanged, with the weights used; None if `stopped` says so."""
        ...

    def close(self) -> None:
        """Release the weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablated:
    """What an ablation found, and how long it waited and took (seconds).

    `output` is of the variants and, before them, of the image as it is.
    """

    output: ModelOutput
    queue: float
    inference: float


class Ablator(Protocol):
    """Computes ablations beside the ordinary traffic."""

    def check(self) -> None:
        """Say whether an ablation would be taken now.

        Raises:
            AblationBusy: as many as allowed are waiting already.
        """
        ...

    def admit(self) -> AbstractContextManager[None]:
        """See `condconv_serve.inference.ablation_queue.SlowLane`."""
        ...

    async def ablate(self, model: ServedModel, row: Row, overrides: RoutingOverrides, *, deadline: float) -> Ablated:
        """Compute a row with other routings, by `deadline` on the monotonic clock. Cancelling stops it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutingProfile:
    """What a model's routing looks like on known images, to compare live traffic with.

    Attributes:
        images: how many images it is made of.
        mean: float32 `[blocks, experts]`, the mean routing weight.
        deviation: float32 `[blocks, experts]`, the standard deviation.
        histogram: int64 `[blocks, experts, bins]`, images by weight, in equal bins from 0 to 1.
        load: float32 `[blocks, experts]`, the share of images whose strongest expert this is.
        entropy: float32 `[blocks]`, the mean entropy, 0 to 1.
        classes: int64 `[K]`, ascending: the predicted classes with enough images for a profile of their own.
        class_images: int64 `[K]`, how many images each had.
        class_mean: float32 `[K, blocks, experts]`, their mean routing weights.
    """

    images: int
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    histogram: NDArray[np.int64]
    load: NDArray[np.float32]
    entropy: NDArray[np.float32]
    classes: NDArray[np.int64]
    class_images: NDArray[np.int64]
    class_mean: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where an image's time went, in seconds. `total` also holds what lies between the stages."""

    decode: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one image."""

    classes: tuple[ClassScore, ...]
    routing: RoutingTrace
    timings: Timings
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """What became of one image of a request: exactly one of `prediction` and `error` is set."""

    id: str
    filename: str | None
    prediction: Prediction | None = None
    error: ServiceError | None = None


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image as it came in: undecoded bytes and the name its sender gave it."""

    data: bytes
    filename: str | None = None
    id: str | None = None
